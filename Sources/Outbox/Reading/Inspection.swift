package import Postgres

extension Connection {
    /// One event with its bodies.
    package mutating func event(_ key: EventKey) throws -> Listing {
        let found = try listing(
            """
            SELECT e.id, outbox.webhook_id(e.id, e.created_at) AS webhook_id, e.created_at, e.customer_id, e.type, e.change_type, e.transaction_id,
                   e.identity, e.ordering_key, e.deliver_at, coalesce(e.occurred_at, e.created_at) AS occurred_at, e.headers,
                   e.before, e.after
              FROM outbox.events_at(\([key.id]), \([key.createdAt])) e
            """)
        guard !found.rows.isEmpty else {
            throw Problem(.notFound, "event \(key.id) not found", next: UseCase("event.list"))
        }
        return found
    }

    /// One delivery by the columns of `outbox.deliveries`.
    package mutating func delivery(_ delivery: DeliveryID) throws -> Listing {
        let found = try listDeliveries(ListFilter(delivery))
        guard !found.rows.isEmpty else {
            throw Problem(
                .notFound, "there is no delivery of event \(delivery.event.id) to that endpoint",
                hint:
                    "It may not be dispatched yet, or the endpoint does not match",
                next: .delivery("delivery.explain", delivery)
            )
        }
        return found
    }

    /// One dead letter by the columns of `outbox.dead_letters`.
    package mutating func deadLetter(_ delivery: DeliveryID) throws -> Listing {
        let found = try listDeadLetters(ListFilter(delivery))
        guard !found.rows.isEmpty else {
            throw Problem(
                .notFound, "event \(delivery.event.id) is not among that endpoint's dead letters",
                next: UseCase("dead.list"))
        }
        return found
    }

    /// Everything that one operation caused: events, their deliveries, and the attempts of each.
    ///
    /// - Throws: a `Problem` when nothing has the TransactionId.
    package mutating func trace(_ transaction: UniqueID) throws -> Trace {
        var filter = ListFilter()
        filter.transactionID = transaction
        filter.limit = Trace.most
        let events = try listEvents(filter)
        guard !events.rows.isEmpty else {
            throw Problem(
                .notFound, "no event has TransactionId \(transaction)", next: UseCase("event.list"))
        }
        return Trace(
            transaction: transaction, events: events, deliveries: try listDeliveries(filter),
            attempts: try listAttempts(filter))
    }

    /// One row with the state of the installation.
    ///
    /// - Parameter problems: their number, when the caller knows it.
    package mutating func status(problems known: Int? = nil) throws -> Listing {
        let problems = try known ?? self.problems().rows.count
        return try listing(
            """
            WITH stream AS MATERIALIZED (SELECT sum(waiting)::bigint AS waiting, min(oldest_at) AS oldest_at FROM outbox.backlog WHERE stage <> 'lane'),
            lane AS MATERIALIZED (SELECT sum(n)::bigint AS waiting, min(oldest_at) AS oldest_at FROM (
                    SELECT count(*) AS n, min(event_at) AS oldest_at FROM outbox.delivery
                    UNION ALL SELECT count(*), min(event_at) FROM outbox.unrouted) l)
            SELECT (SELECT max(version) FROM outbox.migration) AS schema_version,
                   (SELECT instance FROM outbox.setting) AS instance,
                   (SELECT count(*) FROM outbox.worker WHERE heartbeat_at > clock_timestamp() - interval '30 s') AS workers,
                   (SELECT count(*) FROM outbox.endpoint WHERE deleted_at IS NULL) AS endpoints,
                   (SELECT count(*) FROM outbox.endpoint_state WHERE state <> 'active') AS endpoints_not_active,
                   coalesce(stream.waiting, 0) AS events_waiting, coalesce(lane.waiting, 0) AS deliveries_waiting,
                   (SELECT count(*) FROM outbox.dead_letter WHERE reason <> 'cancelled') AS dead_letters,
                   coalesce(greatest(0, extract(epoch FROM clock_timestamp() - least(stream.oldest_at, lane.oldest_at))), 0)::float8
                       AS oldest_waiting_seconds,
                   \(problems)::bigint AS problems
              FROM stream, lane
            """)
    }

    /// Sessions that have waited for over a second for a lock that blocks every later session, and
    /// sessions that hold a lock that others have waited for that long, in the columns of
    /// `problems`. It reads none of our tables, and so returns even when a query of `problems`
    /// would be among the waiting sessions.
    package mutating func lockWaits() throws -> Listing {
        try listing(
            """
            SELECT 'waiting_for_lock' AS problem,
                   format('process %s of role %s waits since %s for %s on outbox.%s, held up by %s', l.pid, a.usename,
                          to_char(l.waitstart AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), l.mode, c.relname,
                          (SELECT string_agg(CASE b WHEN 0 THEN 'a prepared transaction' ELSE format('process %s of role %s', b, h.usename) END, ', ')
                             FROM unnest(pg_blocking_pids(l.pid)) b LEFT JOIN pg_stat_activity h ON h.pid = b)) AS detail,
                   format('Everybody who comes after it waits. Unless it is yours: SELECT pg_terminate_backend(%s)', l.pid) AS fix
              FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
              LEFT JOIN pg_stat_activity a ON a.pid = l.pid
             WHERE n.nspname = 'outbox' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND NOT l.granted AND l.waitstart < clock_timestamp() - interval '1 s'
               AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
            UNION ALL
            (SELECT 'lock_held',
                    format('process %s of role %s holds a lock on outbox.%s that %s others wait for, the first since %s', h.pid, h.usename, w.relname,
                           count(*), to_char(min(w.waitstart) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')),
                    format('Unless it is yours: SELECT pg_terminate_backend(%s)', h.pid)
               FROM (SELECT c.relname, l.waitstart, unnest(pg_blocking_pids(l.pid)) AS blocker
                       FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
                      WHERE n.nspname = 'outbox' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                        AND NOT l.granted AND l.waitstart < clock_timestamp() - interval '1 s'
                        AND l.mode NOT IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
                      LIMIT 100) w
               JOIN pg_stat_activity h ON h.pid = w.blocker
              -- Who waits itself is named above, and so is what it waits for.
              WHERE NOT EXISTS (SELECT FROM pg_locks o WHERE o.pid = w.blocker AND NOT o.granted)
              GROUP BY h.pid, h.usename, w.relname)
            """)
    }

    /// The problems, and the endpoints that cannot be called with these keys.
    package mutating func problems(keyring: Keyring) throws -> Listing {
        let known = try problems()
        let mayRead = try query("SELECT has_table_privilege('outbox.secret', 'SELECT')").first(Bool.self)
        if keyring.isEmpty || mayRead != true { return known }
        let unusable = try endpoints(keyring: keyring).filter { $0.defect != nil }.map { endpoint in
            [
                "endpoint_unusable", "\(endpoint.name) (\(endpoint.id)) cannot be called: \(endpoint.defect ?? "")",
                "When it is about a key, name the right OUTBOX_SECRET_KEY_FILE; else correct what is named: {endpoint.update \(endpoint.id)}",
            ]
        }
        if unusable.isEmpty { return known }
        let rows = try listing(
            """
            SELECT * FROM unnest(\(unusable.map { $0[0] }), \(unusable.map { $0[1] }), \(unusable.map { $0[2] })) AS p(problem, detail, fix)
            """)
        return Listing(columns: known.columns, rows: known.rows + rows.rows, json: known.json + rows.json)
    }

    /// The faults of the installation; an empty list is healthy.
    package mutating func problems() throws -> Listing {
        try listing("SELECT * FROM outbox.problems")
    }

    /// Reads an event as an operator writes it: its number, or its `webhook-id` of this
    /// installation.
    package mutating func eventReference(_ text: String) throws -> EventReference {
        guard let reference = EventReference(text) else {
            throw Problem(
                .invalidValue, "\"\(text.prefix(64))\" is not an event id",
                hint: "Expected a number such as 42, or evt_<instance>_<time>_42")
        }
        if let instance = reference.instance, try self.instance() != instance {
            throw Problem(.notFound, "event \(text.prefix(64)) belongs to another installation")
        }
        return reference
    }

    /// Looks up an event as an operator writes it. An event whose row is gone is still known by its
    /// waiting deliveries and dead letters.
    package mutating func eventKey(_ text: String) throws -> EventKey {
        let reference = try eventReference(text)
        var times = try query(
            """
            SELECT event_at FROM outbox.delivery WHERE event_id = \(reference.id)
            UNION SELECT event_at FROM outbox.dead_letter WHERE event_id = \(reference.id)
            """
        ).all(Timestamp.self)
        for span in try reference.createdAt.map({ [Span(begin: $0, end: $0 + .microseconds(1))] }) ?? spans(of: "event")
        {
            times += try query(
                "SELECT e.created_at FROM outbox.event e WHERE e.id = \(reference.id) AND \(span.holds("e.created_at"))"
            ).all(Timestamp.self)
        }
        let known = Set(times).sorted(by: >).map { EventKey(id: reference.id, createdAt: $0) }
        if let createdAt = reference.createdAt, let key = known.first(where: { $0.createdAt == createdAt }) {
            return key
        }
        guard reference.createdAt == nil, let key = known.first else {
            throw Problem(.notFound, "event \(text.prefix(64)) not found", next: UseCase("event.list"))
        }
        if known.count > 1 {
            let instance = try instance()
            throw Problem(
                .stateConflict, "\(known.count) events have the number \(reference.id)",
                hint:
                    "Name one by its webhook-id: \(known.map { $0.webhookID(instance: instance) }.joined(separator: ", "))"
            )
        }
        return key
    }
}

/// An event as an operator writes it: `42`, or `evt_<instance>_<time>_42`, which tells events of
/// the same number apart.
package struct EventReference: Sendable {
    package let id: EventID
    package let createdAt: Timestamp?
    let instance: String?

    /// Nil for any other text.
    init?(_ text: String) {
        if let number = Int64(text), number > 0 {
            (id, createdAt, instance) = (EventID(rawValue: number), nil, nil)
            return
        }
        let parts = text.split(separator: "_", omittingEmptySubsequences: false)
        guard parts.count == 4, parts[0] == "evt", parts[2].utf8.count == 11, let time = Int64(parts[2], radix: 32),
            let number = Int64(parts[3]), number > 0
        else { return nil }
        (id, createdAt, instance) = (
            EventID(rawValue: number), Timestamp(microseconds: time), String(parts[1])
        )
    }
}

/// Everything that one operation caused.
package struct Trace: Sendable {
    /// The max number of each.
    package static let most = 2000

    let transaction: UniqueID
    package let events: Listing
    package let deliveries: Listing
    package let attempts: Listing

    /// The kinds of rows that were cut off at the max.
    package var cut: [String] {
        [("events", events), ("deliveries", deliveries), ("attempts", attempts)].filter { $0.1.rows.count >= Self.most }
            .map(\.0)
    }

    /// One JSON document: events that contain their deliveries, which contain their attempts.
    package var json: String {
        let attempts = grouped(attempts, by: ["event_id", "created_at", "endpoint_id"])
        let key = ["event_id", "created_at", "endpoint_id"].map(deliveries.place)
        let nested = Listing(
            columns: deliveries.columns, rows: deliveries.rows,
            json: zip(deliveries.rows, deliveries.json).map { row, json in
                with(json, "attempts_made", (attempts[key.map { row[$0] }] ?? []).reversed())
            })
        let byEvent = grouped(nested, by: ["event_id", "created_at"])
        let id = ["id", "created_at"].map(events.place)
        let all = zip(events.rows, events.json).map { row, json in
            with(json, "deliveries", byEvent[id.map { row[$0] }] ?? [])
        }
        return
            "{\"transaction_id\":\"\(transaction)\",\"is_complete\":\(cut.isEmpty),\"events\":[\(all.reversed().joined(separator: ","))]}"
    }

    private func grouped(_ listing: Listing, by columns: [String]) -> [[String?]: [String]] {
        let places = columns.map(listing.place)
        var groups: [[String?]: [String]] = [:]
        for (row, json) in zip(listing.rows, listing.json) { groups[places.map { row[$0] }, default: []].append(json) }
        return groups
    }

    /// The object with one more member.
    private func with(_ object: String, _ name: String, _ elements: [String]) -> String {
        "\(object.dropLast()),\"\(name)\":[\(elements.joined(separator: ","))]}"
    }
}

extension Listing {
    /// The place of one of our columns.
    fileprivate func place(_ column: String) -> Int {
        guard let place = columns.firstIndex(of: column) else { preconditionFailure("there is no column \(column)") }
        return place
    }
}
