package import Postgres

extension Connection {
    /// With the events of the transaction that is asked for, of a giant one the newest: a TransactionId does not say when it was.
    private mutating func resolved(_ filter: ListFilter) throws -> ListFilter {
        guard let transaction = filter.transactionID, filter.ofTransaction == nil else { return filter }
        var filter = filter
        let most = max(filter.limit, Trace.most)
        var keys: [EventKey] = []
        for span in try spans(of: "event") where keys.count < most {
            keys += try query(
                """
                SELECT e.id, e.created_at FROM outbox.event e WHERE e.transaction_id = \(transaction) AND \(span.holds("e.created_at"))
                 ORDER BY e.id DESC LIMIT \(raw: "\(most - keys.count)")
                """
            ).map { row throws(PostgresError) in EventKey(id: try row[0], createdAt: try row[1]) }
        }
        filter.ofTransaction = keys
        return filter
    }

    /// What no index has is looked for back from the newest event, in growing steps, until the list is full or somebody would wait too
    /// long; then the list says how far that went.
    private mutating func lookingBack(
        _ filter: ListFilter, _ list: (inout Connection, ListFilter) throws -> Listing
    ) throws -> Listing {
        let filter = try resolved(filter)
        guard filter.looksAtEvents, let newest = try newestEvent(before: filter.until) else {
            return try list(&self, filter)
        }
        let began = ContinuousClock.now
        var span: Int64 = 20_000
        while true {
            var narrowed = filter
            let from = newest - span
            narrowed.from = from > 0 ? EventID(rawValue: from) : nil
            let begin = ContinuousClock.now
            let found = try list(&self, narrowed)
            let (took, elapsed) = (ContinuousClock.now - begin, ContinuousClock.now - began)
            if found.rows.count >= filter.limit || from <= 0 { return found }
            // As many more as there is time for.
            let more = min(4, (filter.patience - elapsed) / max(took, .milliseconds(1)))
            guard more > 1.2 else {
                return found.noting(
                    "looked for among the newest \(span) events\(filter.until == nil ? "" : " of that time"), down to event \(from); "
                        + "for older ones: --until, --event-id or --transaction-id")
            }
            span = Int64(Double(span) * more)
        }
    }

    /// The number of the newest event, or of the newest before a time: found by halves, since numbers are given in order of time but for
    /// those of transactions that overlap.
    private mutating func newestEvent(before time: Timestamp?) throws -> Int64? {
        func event(_ statement: SQL) throws -> (id: Int64, at: Timestamp)? {
            try query(statement).first { row throws(PostgresError) in (try row[0], try row[1]) }
        }
        let newest = try event("SELECT id, created_at FROM outbox.event ORDER BY id DESC LIMIT 1")
        guard let newest, let time, newest.at >= time else { return newest?.id }
        guard var low = try event("SELECT id, created_at FROM outbox.event ORDER BY id LIMIT 1")?.id else { return nil }
        var high = newest.id
        while high - low > 1 {
            let middle = low + (high - low) / 2
            let found = try event(
                "SELECT id, created_at FROM outbox.event WHERE id >= \(middle) ORDER BY id LIMIT 1")
            if let found, found.at < time { low = max(middle, found.id) } else { high = middle }
        }
        return high + 10_000
    }

    /// Events, newest first.
    package mutating func listEvents(_ filter: ListFilter) throws -> Listing {
        try lookingBack(filter) { try $0.listEvents(narrowed: $1) }
    }

    private mutating func listEvents(narrowed filter: ListFilter) throws -> Listing {
        try listing(
            """
            SELECT e.id, outbox.webhook_id(e.id, e.created_at) AS webhook_id, e.created_at, e.customer_id, e.type, e.change_type, e.transaction_id,
                   e.identity, e.ordering_key, e.deliver_at, coalesce(e.occurred_at, e.created_at) AS occurred_at
              FROM (SELECT * FROM outbox.event e WHERE \(conjunction(filter.events)) ORDER BY e.id DESC LIMIT \(filter.rows)) e
             ORDER BY e.id DESC
            """)
    }

    /// Deliveries by the columns of `outbox.deliveries`, newest event first.
    ///
    /// Each kind of pair is read newest first from its own table, and no further than the list goes; what is delivered is found by its
    /// events, where events are asked for. Names and events are looked up for what is left.
    package mutating func listDeliveries(_ filter: ListFilter) throws -> Listing {
        try lookingBack(filter) { try $0.listDeliveries(narrowed: $1) }
    }

    private mutating func listDeliveries(narrowed filter: ListFilter) throws -> Listing {
        let kinds = Self.kinds(of: filter)
        let pairs = kinds.dropFirst().reduce(kinds.first ?? "SELECT * FROM outbox.delivery WHERE false") {
            "\($0) UNION ALL \($1)"
        }
        return try listing(
            """
            WITH pair AS (\(pairs)),
            newest AS (
                SELECT p.*, n.name, n.disabled_at FROM pair p LEFT JOIN outbox.endpoint n ON n.id = p.endpoint_id
                 ORDER BY p.event_id DESC, n.name, p.endpoint_id, p.event_at LIMIT \(filter.rows)),
            \(Self.eventsOf("newest"))
            SELECT p.event_id || ':' || p.endpoint_id AS id, p.event_id, outbox.webhook_id(p.event_id, p.event_at) AS webhook_id, p.endpoint_id,
                   p.name AS endpoint, e.customer_id, e.event_type, e.change_type, e.transaction_id,
                   CASE WHEN p.state = 'waiting' AND \(Self.isPaused("l", "p")) THEN 'paused' ELSE p.state END AS state,
                   p.attempts, p.trigger,
                   CASE WHEN p.due_at IS NOT NULL THEN nullif(greatest(p.due_at, l.held_until::timestamptz), 'infinity') END AS due_at,
                   p.last_at, p.last_status, p.last_error_class, p.last_error, p.reason, p.event_at AS created_at
              FROM newest p
              LEFT JOIN outbox.lane l ON l.endpoint_id = p.endpoint_id
              LEFT JOIN event e ON e.id = p.event_id AND e.created_at = p.event_at
             ORDER BY p.event_id DESC, p.name, p.endpoint_id, p.event_at
            """)
    }

    /// What lists show of the events of these rows, as a part of a statement.
    private static func eventsOf(_ rows: String) -> SQL {
        """
        event AS MATERIALIZED (
            SELECT e.id, e.created_at, e.customer_id::text, e.type::text AS event_type, e.change_type::text, e.transaction_id
              FROM (SELECT array_agg(k.event_id) AS ids, array_agg(k.event_at) AS times
                      FROM (SELECT DISTINCT r.event_id, r.event_at FROM \(raw: rows) r) k) k
             CROSS JOIN LATERAL outbox.events_at(k.ids, k.times) e)
        """
    }

    private static func isPaused(_ lane: String, _ endpoint: String) -> SQL {
        """
        (\(raw: endpoint).disabled_at IS NOT NULL
         OR \(raw: lane).paused_from <= statement_timestamp() AND \(raw: lane).paused_until > statement_timestamp())
        """
    }

    /// One statement for each kind of pair that the filter lets through, each with the same columns, newest event first.
    private static func kinds(of filter: ListFilter) -> [SQL] {
        var kinds: [SQL] = []
        func newest(_ select: SQL, _ conditions: [SQL]) -> SQL {
            "(\(select) WHERE \(conjunction(conditions)) ORDER BY x.event_id DESC FETCH FIRST \(filter.rows) ROWS WITH TIES)"
        }
        let row = filter.ofRow("x", time: true)
        if filter.state == nil || filter.state == "waiting" || filter.state == "paused" {
            let paused: SQL = """
                (ARRAY(SELECT l.endpoint_id FROM outbox.lane l JOIN outbox.endpoint n ON n.id = l.endpoint_id WHERE \(isPaused("l", "n"))))
                """
            let state: [SQL] =
                switch filter.state {
                case "waiting": ["x.endpoint_id <> ALL \(paused)"]
                case "paused": ["x.endpoint_id = ANY \(paused)"]
                default: []
                }
            kinds.append(
                newest(
                    """
                    SELECT x.event_id, x.endpoint_id, x.event_at, 'waiting' AS state, x.attempts, x.trigger, x.due_at, x.last_at, x.last_status,
                           x.last_error_class, x.last_error, NULL::text AS reason FROM outbox.delivery x
                    """, row + state))
            kinds.append(
                newest(
                    """
                    SELECT x.event_id, x.endpoint_id, x.event_at, 'waiting', 0, 'first', NULL::timestamptz, NULL::timestamptz, NULL::int,
                           NULL::text, NULL::text, NULL::text FROM outbox.unrouted x
                    """, row + state))
        }
        if filter.state == nil || filter.state == "dead" || filter.state == "cancelled" {
            let state: [SQL] =
                switch filter.state {
                case "dead": ["x.reason <> 'cancelled'"]
                case "cancelled": ["x.reason = 'cancelled'"]
                default: []
                }
            kinds.append(
                newest(
                    """
                    SELECT x.event_id, x.endpoint_id, x.event_at, CASE x.reason WHEN 'cancelled' THEN 'cancelled' ELSE 'dead' END AS state, x.attempts,
                           NULL::text AS trigger, NULL::timestamptz AS due_at, x.dead_at AS last_at, x.status AS last_status,
                           x.error_class AS last_error_class, x.error AS last_error, x.reason FROM outbox.dead_letter x
                    """, row + state))
        }
        if filter.state == nil || filter.state == "delivered" { kinds.append(delivered(filter)) }
        return kinds
    }

    /// Of an attempt `x`, that it may be a delivery's.
    private static let isSuccess: SQL = "x.outcome = 'success' AND x.trigger NOT IN ('test', 'evaluate')"

    /// Of one that is, that its event is here.
    private static let hasEvent: SQL =
        "EXISTS (SELECT FROM outbox.event e WHERE e.id = x.event_id AND e.created_at = x.event_at OFFSET 0)"

    /// Of one that is, that it is the first recorded success of a pair that has nothing outstanding. `OFFSET 0`: each is looked up; as a
    /// join, all would be read.
    private static func isDelivery(_ filter: ListFilter) -> [SQL] {
        [
            isSuccess,
            "NOT EXISTS (SELECT FROM outbox.delivery d WHERE \(lookUp("d", by: "x")) OFFSET 0)",
            "NOT EXISTS (SELECT FROM outbox.dead_letter d WHERE \(lookUp("d", by: "x")) OFFSET 0)",
            """
            NOT EXISTS (SELECT FROM outbox.attempt o
                         WHERE o.event_id = x.event_id AND o.event_at = x.event_at AND o.endpoint_id IS NOT DISTINCT FROM x.endpoint_id
                           AND o.outcome = 'success' AND o.trigger NOT IN ('test', 'evaluate')
                           AND o.started_at >= x.event_at - interval '1 day' AND o.started_at <= x.started_at AND \(conjunction(filter.attempted("o")))
                           AND (o.started_at, o.number, o.lease_id) < (x.started_at, x.number, x.lease_id) OFFSET 0)
            """,
        ] + filter.attempted("x")
    }

    private static func delivered(_ filter: ListFilter) -> SQL {
        let columns: SQL = """
            x.event_id, x.endpoint_id, x.event_at, 'delivered' AS state, x.number AS attempts, x.trigger, NULL::timestamptz AS due_at,
            x.started_at AS last_at, x.status AS last_status, NULL::text AS last_error_class, NULL::text AS last_error, NULL::text AS reason
            """
        let endpoint: [SQL] = filter.endpoint.map { ["x.endpoint_id IS NOT DISTINCT FROM \($0)"] } ?? []
        if filter.namesEvents {
            return """
                (SELECT p.* FROM outbox.event e
                  CROSS JOIN LATERAL (SELECT \(columns) FROM outbox.attempt x
                                       WHERE x.event_id = e.id AND x.event_at = e.created_at AND \(conjunction(endpoint + isDelivery(filter))) OFFSET 0) p
                  WHERE \(conjunction(filter.events)) ORDER BY e.id DESC FETCH FIRST \(filter.rows) ROWS WITH TIES)
                """
        }
        guard let id = filter.endpoint else {
            return """
                (SELECT \(columns) FROM outbox.attempt x WHERE \(conjunction(isDelivery(filter) + [hasEvent]))
                  ORDER BY x.event_id DESC FETCH FIRST \(filter.rows) ROWS WITH TIES)
                """
        }
        // By time, which the endpoint's index has in order: what is newer than the oldest event of the newest deliveries has all that
        // can be in the list.
        return """
            (SELECT \(columns) FROM (
                SELECT *, x.event_id + 0 AS place FROM outbox.attempt x
                 WHERE x.endpoint_id = \(id) AND \(isSuccess)
                   AND x.started_at >= coalesce((
                       SELECT min(f.event_at) - interval '1 day' FROM (
                           SELECT x.event_at FROM outbox.attempt x WHERE x.endpoint_id = \(id) AND \(conjunction(isDelivery(filter) + [hasEvent]))
                            ORDER BY x.started_at DESC LIMIT \(filter.rows)) f HAVING count(*) = \(filter.rows)), '-infinity')
                 ORDER BY place DESC OFFSET 0) x
              WHERE \(conjunction(isDelivery(filter) + [hasEvent])) ORDER BY x.place DESC FETCH FIRST \(filter.rows) ROWS WITH TIES)
            """
    }

    /// Attempts by the columns of `outbox.attempts`, newest first.
    package mutating func listAttempts(_ filter: ListFilter) throws -> Listing {
        try lookingBack(filter) { try $0.listAttempts(narrowed: $1) }
    }

    private mutating func listAttempts(narrowed filter: ListFilter) throws -> Listing {
        let conditions =
            filter.ofRow("a", time: false) + filter.attempted("a") + (filter.state.map { ["a.outcome = \($0)"] } ?? [])
        func list(_ time: [SQL]) throws -> Listing {
            try listing(
                """
                SELECT a.event_id, outbox.webhook_id(a.event_id, a.event_at) AS webhook_id, a.endpoint_id, n.name AS endpoint, a.number, a.trigger,
                       a.started_at, a.outcome, a.status, a.error_class, a.error, a.dns_us, a.connect_us, a.tls_us, a.first_byte_us,
                       a.total_us, a.request_id, a.worker, a.lease_id, a.event_at AS created_at
                  FROM (SELECT * FROM outbox.attempt a WHERE \(conjunction(conditions + time)) ORDER BY a.started_at DESC, a.event_id DESC, a.endpoint_id
                         LIMIT \(filter.rows)) a
                  LEFT JOIN outbox.endpoint n ON n.id = a.endpoint_id
                 ORDER BY a.started_at DESC, a.event_id DESC, a.endpoint_id
                """)
        }
        // An event's or an endpoint's have an index.
        if filter.event != nil || filter.transactionID != nil || filter.endpoint != nil || filter.from != nil {
            return try list(filter.within("a.started_at"))
        }
        // All others are in order of time only as far as their partitions are: looked through in growing steps, back from the newest.
        let bounds = try query(
            """
            SELECT coalesce(\(filter.until), clock_timestamp() + interval '1 day'),
                   greatest(coalesce(\(filter.since), '-infinity'),
                            (SELECT coalesce(min(x.lower), '-infinity') FROM outbox.partitions x WHERE x.parent = 'attempt' AND x.lower IS NOT NULL))
            """
        ).first { row throws(PostgresError) in (end: try row[0] as Timestamp, begin: try row[1] as Timestamp) }
        guard let (end, begin) = bounds else { return try list(filter.within("a.started_at")) }
        var step = Duration.seconds(26 * 3600)
        while true {
            let start = end + (.zero - step)
            if start <= begin || step > .seconds(3650 * 86_400) { return try list(filter.within("a.started_at")) }
            let found = try list(filter.within("a.started_at") + ["a.started_at >= \(start)"])
            if found.rows.count >= filter.limit { return found }
            step = step * 4
        }
    }

    /// Dead letters by the columns of `outbox.dead_letters`, newest first.
    package mutating func listDeadLetters(_ filter: ListFilter) throws -> Listing {
        try lookingBack(filter) { try $0.listDeadLetters(narrowed: $1) }
    }

    private mutating func listDeadLetters(narrowed filter: ListFilter) throws -> Listing {
        let conditions: [SQL] =
            ["d.reason <> 'cancelled'"] + filter.ofRow("d", time: false) + filter.within("d.dead_at")
        // By number, and not by time, where only some are looked at.
        let source: SQL =
            filter.from.map { "(SELECT * FROM outbox.dead_letter d WHERE d.event_id >= \($0) OFFSET 0)" }
            ?? "outbox.dead_letter"
        return try listing(
            """
            WITH newest AS MATERIALIZED (
                SELECT * FROM \(source) d WHERE \(conjunction(conditions)) ORDER BY d.dead_at DESC, d.event_id DESC, d.endpoint_id
                 LIMIT \(filter.rows)),
            \(Self.eventsOf("newest"))
            SELECT d.event_id || ':' || d.endpoint_id AS id, d.event_id, outbox.webhook_id(d.event_id, d.event_at) AS webhook_id, d.endpoint_id,
                   n.name AS endpoint, e.customer_id, e.event_type, e.change_type, e.transaction_id, d.reason, d.attempts,
                   d.status, d.error_class, d.error, d.fingerprint, d.dead_at, d.event_at AS created_at
              FROM newest d
              LEFT JOIN event e ON e.id = d.event_id AND e.created_at = d.event_at
              LEFT JOIN outbox.endpoint n ON n.id = d.endpoint_id
             ORDER BY d.dead_at DESC, d.event_id DESC, d.endpoint_id
            """)
    }
}
