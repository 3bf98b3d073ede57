package import Postgres

/// A row of a list as it was found, before its names are looked up.
struct FoundRow: RowDecodable {
    let event: EventKey
    /// Its columns, as one object.
    let json: String

    /// Reads a statement's columns `event_id`, `event_at` and the object.
    init(_ row: Row) throws(PostgresError) {
        event = EventKey(id: try row[0], createdAt: try row[1])
        json = try row[2]
    }
}

/// Lists read few partitions at a time, each in a separate statement, newest first, and combine the
/// rows at the end.
extension Connection {
    /// The columns of events that lists show, as objects: for those of the keys that are here.
    mutating func eventColumns(of keys: [EventKey]) throws -> [EventKey: String] {
        var columns: [EventKey: String] = [:]
        let times = keys.map(\.createdAt)
        guard let first = times.min(), let last = times.max() else { return [:] }
        for span in try spans(of: "event", since: first, until: last == .distantFuture ? nil : last + .microseconds(1))
        {
            let some = Set(keys.filter { span.contains($0.createdAt) })
            if some.isEmpty { continue }
            let found = try query(
                """
                SELECT k.id, k.at, row_to_json(e)::text FROM unnest(\(some.map(\.id)), \(some.map(\.createdAt))) AS k(id, at)
                 CROSS JOIN LATERAL (
                       SELECT e.customer_id, e.type AS event_type, e.change_type, e.transaction_id FROM outbox.event e
                        WHERE e.id = k.id AND e.created_at = k.at AND \(span.holds("e.created_at")) OFFSET 0) e
                """
            ).all(as: FoundRow.self)
            for row in found { columns[row.event] = row.json }
        }
        return columns
    }

    /// Events, newest first.
    package mutating func listEvents(_ filter: ListFilter) throws -> Listing {
        try page(filter) {
            try $0.eventList($1)
        } cursor: {
            ListCursor($0, time: "created_at", event: "id")
        }
    }

    private mutating func eventList(_ filter: ListFilter) throws -> Listing {
        var columns: [String]?
        let (rows, note) = try walkEvents(filter) { connection, keys in
            let listing = try connection.eventRows(keys)
            columns = listing.columns
            return Array(zip(listing.rows, listing.json))
        }
        let shown = rows.prefix(filter.limit)
        return Listing(
            columns: try columns ?? eventRows([]).columns, rows: shown.map(\.0), json: shown.map(\.1), note: note)
    }

    /// Events of few partitions, without their bodies.
    private mutating func eventRows(_ keys: [EventKey]) throws -> Listing {
        let times = keys.map(\.createdAt)
        return try listing(
            """
            SELECT e.id, outbox.webhook_id(e.id, e.created_at) AS webhook_id, e.created_at, e.customer_id, e.type, e.change_type, e.transaction_id,
                   e.identity, e.ordering_key, e.deliver_at, coalesce(e.occurred_at, e.created_at) AS occurred_at
              FROM unnest(\(keys.map(\.id)), \(times)) WITH ORDINALITY AS k(id, at, place)
             CROSS JOIN LATERAL (
                   SELECT * FROM outbox.event e
                    WHERE e.id = k.id AND e.created_at = k.at AND e.created_at >= \(times.min()) AND e.created_at <= \(times.max()) OFFSET 0) e
             ORDER BY k.place
            """)
    }

    /// Attempts by the columns of `outbox.attempts`, newest first.
    package mutating func listAttempts(_ filter: ListFilter) throws -> Listing {
        try page(filter) {
            try $0.attemptList($1)
        } cursor: {
            ListCursor($0, time: "started_at", event: "event_id", endpoint: "endpoint_id", number: "number")
        }
    }

    private mutating func attemptList(_ filter: ListFilter) throws -> Listing {
        let (rows, note) = try walk(filter, eventTime: false) { connection, filter in
            try connection.attempts(filter).filter { filter.names($0.event) }
        }
        return try listing(
            """
            SELECT a.event_id, outbox.webhook_id(a.event_id, a.event_at) AS webhook_id, a.endpoint_id, n.name AS endpoint, a.number, a.trigger,
                   a.started_at, a.outcome, a.status, a.error_class, a.error, a.dns_us, a.connect_us, a.tls_us, a.first_byte_us,
                   a.total_us, a.request_id, a.worker, a.lease_id, a.event_at AS created_at
              FROM unnest(\(rows.map(\.json))) AS f(json) CROSS JOIN LATERAL json_populate_record(NULL::outbox.attempt, f.json::json) a
              LEFT JOIN outbox.endpoint n ON n.id = a.endpoint_id
             ORDER BY a.started_at DESC, a.event_id DESC, a.endpoint_id DESC, a.number DESC LIMIT \(filter.rows)
            """
        ).noting(note)
    }

    private mutating func attempts(_ filter: ListFilter) throws -> [FoundRow] {
        let outcome: [SQL] = filter.state.map { ["a.outcome = \($0)"] } ?? []
        let conditions =
            filter.deliveries("a") + outcome + filter.within("a.started_at")
            + (filter.after?.isBeforeAttempt("a") ?? [])
        let since = [filter.since, filter.attemptedSince].compactMap { $0 }.max()
        // All other lists can use only the order of the partitions in time, and of the pages within
        // them (BRIN).
        let hasIndex = filter.namesEvents || filter.endpoint != nil
        let now =
            try hasIndex
            ? nil : query("SELECT clock_timestamp()").first(Timestamp.self)
        var found: [FoundRow] = []
        let until = [filter.until, (filter.after?.time).map { $0 + .microseconds(1) }].compactMap { $0 }.min()
        let parts = try spans(of: "attempt", since: since, until: until, isOfEvents: filter.namesEvents).flatMap {
            span in
            now.map { span.parts(before: min(until ?? $0, $0)) } ?? [span]
        }
        for span in parts where found.count < filter.limit && span.overlaps(since: filter.since, until: until) {
            found += try query(
                """
                SELECT a.event_id, a.event_at, row_to_json(a)::text FROM (
                    SELECT a.event_id, a.event_at, a.endpoint_id, a.number, a.trigger, a.started_at, a.outcome, a.status, a.error_class, a.error,
                           a.dns_us, a.connect_us, a.tls_us, a.first_byte_us, a.total_us, a.request_id, a.worker, a.lease_id
                      FROM outbox.attempt a WHERE \(conjunction(conditions + [span.holds("a.started_at")]))
                     ORDER BY a.started_at DESC, a.event_id DESC, a.endpoint_id DESC, a.number DESC LIMIT \(raw: "\(filter.limit - found.count)")) a
                """
            ).all(as: FoundRow.self)
        }
        return found
    }

    /// Dead letters by the columns of `outbox.dead_letters`, newest first.
    package mutating func listDeadLetters(_ filter: ListFilter) throws -> Listing {
        try page(filter) {
            try $0.deadLetterList($1)
        } cursor: {
            ListCursor($0, time: "dead_at", event: "event_id", endpoint: "endpoint_id")
        }
    }

    private mutating func deadLetterList(_ filter: ListFilter) throws -> Listing {
        let (rows, note) = try walk(filter, eventTime: false) { connection, filter in
            try connection.deadLetters(filter).filter { filter.names($0.event) }
        }
        let events = try eventColumns(of: rows.map(\.event))
        return try listing(
            """
            SELECT d.event_id || ':' || d.endpoint_id AS id, d.event_id, outbox.webhook_id(d.event_id, d.event_at) AS webhook_id, d.endpoint_id,
                   n.name AS endpoint, e.customer_id, e.event_type, e.change_type, e.transaction_id, d.reason, d.attempts,
                   d.status, d.error_class, d.error, d.fingerprint, d.dead_at, d.event_at AS created_at
              FROM unnest(\(rows.map(\.json)), \(rows.map { events[$0.event] ?? "{}" })) AS f(json, event)
             CROSS JOIN LATERAL json_populate_record(NULL::outbox.dead_letter, f.json::json) d
             CROSS JOIN LATERAL json_to_record(f.event::json) AS e(customer_id text, event_type text, change_type text, transaction_id uuid)
              LEFT JOIN outbox.endpoint n ON n.id = d.endpoint_id
             ORDER BY d.dead_at DESC, d.event_id DESC, d.endpoint_id DESC LIMIT \(filter.rows)
            """
        ).noting(note)
    }

    private mutating func deadLetters(_ filter: ListFilter) throws -> [FoundRow] {
        let conditions: [SQL] =
            ["d.reason <> 'cancelled'"] + filter.deliveries("d") + filter.within("d.dead_at")
            + (filter.after?.isBeforeDeadLetter("d") ?? [])
        return try query(
            """
            SELECT d.event_id, d.event_at, row_to_json(d)::text FROM (
                SELECT * FROM outbox.dead_letter d WHERE \(conjunction(conditions)) ORDER BY d.dead_at DESC, d.event_id DESC, d.endpoint_id DESC
                 LIMIT \(filter.rows)) d
            """
        ).all(as: FoundRow.self)
    }
}
