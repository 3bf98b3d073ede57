package import Postgres

/// What lists are narrowed by; nil means everything.
package struct ListFilter: Sendable {
    package var endpoint: EndpointID?
    package var eventType: String?
    package var changeType: String?
    package var customerID: String?
    package var transactionID: UniqueID?
    package var event: EventReference?
    package var state: String?
    package var since: Timestamp?
    package var until: Timestamp?
    package var limit = 100

    package init() {}
}

extension Connection {
    /// Events, newest first.
    package mutating func listEvents(_ filter: ListFilter) throws -> Listing {
        try listing(
            """
            SELECT e.id, outbox.webhook_id(e.id, e.created_at) AS webhook_id, e.created_at, e.customer_id, e.type, e.change_type, e.transaction_id,
                   e.identity, e.ordering_key, e.deliver_at, coalesce(e.occurred_at, e.created_at) AS occurred_at
              FROM outbox.event e
             WHERE (\(filter.eventType) IS NULL OR e.type = \(filter.eventType))
               AND (\(filter.changeType) IS NULL OR e.change_type = \(filter.changeType))
               AND (\(filter.customerID) IS NULL OR e.customer_id = \(filter.customerID))
               AND (\(filter.transactionID) IS NULL OR e.transaction_id = \(filter.transactionID))
               AND (\(filter.event?.id) IS NULL OR e.id = \(filter.event?.id))
               AND (\(filter.event?.createdAt) IS NULL OR e.created_at = \(filter.event?.createdAt))
               AND (\(filter.since) IS NULL OR e.created_at >= \(filter.since))
               AND (\(filter.until) IS NULL OR e.created_at < \(filter.until))
             ORDER BY e.id DESC LIMIT \(filter.limit)
            """)
    }

    /// One event with its bodies.
    package mutating func event(_ key: EventKey) throws -> Listing {
        let found = try listing(
            """
            SELECT e.id, outbox.webhook_id(e.id, e.created_at) AS webhook_id, e.created_at, e.customer_id, e.type, e.change_type, e.transaction_id,
                   e.identity, e.ordering_key, e.deliver_at, coalesce(e.occurred_at, e.created_at) AS occurred_at, e.headers,
                   e.before, e.after
              FROM outbox.event e WHERE e.id = \(key.id) AND e.created_at = \(key.createdAt)
            """)
        guard !found.rows.isEmpty else {
            throw OperationRefusal(.notFound, "event \(key.id) not found", hint: "See: outboxctl event list")
        }
        return found
    }

    /// Deliveries by the columns of `outbox.deliveries`, newest event first.
    package mutating func listDeliveries(_ filter: ListFilter) throws -> Listing {
        try listing(
            """
            SELECT d.* FROM outbox.deliveries d
             WHERE (\(filter.endpoint) IS NULL OR d.endpoint_id = \(filter.endpoint))
               AND (\(filter.state) IS NULL OR d.state = \(filter.state))
               AND (\(filter.eventType) IS NULL OR d.event_type = \(filter.eventType))
               AND (\(filter.customerID) IS NULL OR d.customer_id = \(filter.customerID))
               AND (\(filter.transactionID) IS NULL OR d.transaction_id = \(filter.transactionID))
               AND (\(filter.event?.id) IS NULL OR d.event_id = \(filter.event?.id))
               AND (\(filter.event?.createdAt) IS NULL OR d.created_at = \(filter.event?.createdAt))
               AND (\(filter.since) IS NULL OR d.created_at >= \(filter.since))
               AND (\(filter.until) IS NULL OR d.created_at < \(filter.until))
             ORDER BY d.event_id DESC, d.endpoint LIMIT \(filter.limit)
            """)
    }

    /// One delivery by the columns of `outbox.deliveries`.
    package mutating func delivery(_ pair: Pair) throws -> Listing {
        let found = try listing(
            """
            SELECT d.* FROM outbox.deliveries d
             WHERE d.event_id = \(pair.event.id) AND d.created_at = \(pair.event.createdAt) AND d.endpoint_id = \(pair.endpoint)
            """)
        guard !found.rows.isEmpty else {
            throw OperationRefusal(
                .notFound, "there is no delivery of event \(pair.event.id) to that endpoint",
                hint:
                    "It may not be dispatched yet, or the endpoint does not match. See: outboxctl delivery list --event-id \(pair.event.id)"
            )
        }
        return found
    }

    /// Attempts by the columns of `outbox.attempts`, newest first.
    package mutating func listAttempts(_ filter: ListFilter) throws -> Listing {
        try listing(
            """
            SELECT a.* FROM outbox.attempts a
             WHERE (\(filter.endpoint) IS NULL OR a.endpoint_id = \(filter.endpoint))
               AND (\(filter.event?.id) IS NULL OR a.event_id = \(filter.event?.id))
               AND (\(filter.event?.createdAt) IS NULL OR a.created_at = \(filter.event?.createdAt))
               AND (\(filter.state) IS NULL OR a.outcome = \(filter.state))
               AND (\(filter.since) IS NULL OR a.started_at >= \(filter.since))
               AND (\(filter.until) IS NULL OR a.started_at < \(filter.until))
             ORDER BY a.started_at DESC LIMIT \(filter.limit)
            """)
    }

    /// Dead letters by the columns of `outbox.dead_letters`, newest first.
    package mutating func listDeadLetters(_ filter: ListFilter) throws -> Listing {
        try listing(
            """
            SELECT d.* FROM outbox.dead_letters d
             WHERE (\(filter.endpoint) IS NULL OR d.endpoint_id = \(filter.endpoint))
               AND (\(filter.eventType) IS NULL OR d.event_type = \(filter.eventType))
               AND (\(filter.customerID) IS NULL OR d.customer_id = \(filter.customerID))
               AND (\(filter.event?.id) IS NULL OR d.event_id = \(filter.event?.id))
               AND (\(filter.event?.createdAt) IS NULL OR d.created_at = \(filter.event?.createdAt))
               AND (\(filter.since) IS NULL OR d.dead_at >= \(filter.since))
               AND (\(filter.until) IS NULL OR d.dead_at < \(filter.until))
             ORDER BY d.dead_at DESC, d.event_id DESC LIMIT \(filter.limit)
            """)
    }

    /// One dead letter by the columns of `outbox.dead_letters`.
    package mutating func deadLetter(_ pair: Pair) throws -> Listing {
        let found = try listing(
            """
            SELECT d.* FROM outbox.dead_letters d
             WHERE d.event_id = \(pair.event.id) AND d.created_at = \(pair.event.createdAt) AND d.endpoint_id = \(pair.endpoint)
            """)
        guard !found.rows.isEmpty else {
            throw OperationRefusal(
                .notFound, "event \(pair.event.id) is not among that endpoint's dead letters",
                hint: "See: outboxctl dead list")
        }
        return found
    }

    /// Everything that one operation caused, as one JSON document: events, their deliveries, each one's attempts.
    package mutating func trace(_ transaction: UniqueID) throws -> (
        json: String, events: Listing, deliveries: Listing, attempts: Listing
    ) {
        var filter = ListFilter()
        filter.transactionID = transaction
        filter.limit = 10_000
        let events = try listEvents(filter)
        guard !events.rows.isEmpty else {
            throw OperationRefusal(
                .notFound, "no event has TransactionId \(transaction)", hint: "See: outboxctl event list")
        }
        let deliveries = try listDeliveries(filter)
        let attempts = try listing(
            """
            SELECT a.* FROM outbox.attempts a
             WHERE (a.event_id, a.created_at) IN (SELECT id, created_at FROM outbox.event WHERE transaction_id = \(transaction)) ORDER BY a.event_id, a.started_at
            """)
        let document = try query(
            """
            SELECT json_build_object('transaction_id', \(transaction), 'events', json_agg(x ORDER BY x.id))::text FROM (
                SELECT e.id, outbox.webhook_id(e.id, e.created_at) AS webhook_id, e.created_at, e.customer_id, e.type, e.change_type, e.identity,
                       coalesce((SELECT json_agg(d) FROM (
                           SELECT d.*, coalesce((SELECT json_agg(a ORDER BY a.started_at) FROM outbox.attempts a
                                        WHERE a.event_id = d.event_id AND a.created_at = d.created_at AND a.endpoint_id = d.endpoint_id), '[]') AS attempts_made
                             FROM outbox.deliveries d WHERE d.event_id = e.id AND d.created_at = e.created_at) d), '[]') AS deliveries
                  FROM outbox.event e WHERE e.transaction_id = \(transaction)) x
            """
        ).first { row throws(PostgresError) in try row[0] as String }
        return (document ?? "{}", events, deliveries, attempts)
    }

    /// One row that says how the installation stands.
    package mutating func status() throws -> Listing {
        try listing(
            """
            SELECT (SELECT max(version) FROM outbox.migration) AS schema_version,
                   (SELECT instance FROM outbox.setting) AS instance,
                   (SELECT count(*) FROM outbox.worker WHERE heartbeat_at > clock_timestamp() - interval '30 s') AS workers,
                   (SELECT count(*) FROM outbox.endpoint WHERE deleted_at IS NULL) AS endpoints,
                   (SELECT count(*) FROM outbox.endpoint_health WHERE state <> 'active') AS endpoints_not_active,
                   (SELECT coalesce(sum(waiting), 0)::bigint FROM outbox.backlog WHERE stage <> 'lane') AS events_waiting,
                   (SELECT count(*) FROM outbox.delivery) AS deliveries_waiting,
                   (SELECT count(*) FROM outbox.dead_letter WHERE reason <> 'cancelled') AS dead_letters,
                   (SELECT coalesce(greatest(0, extract(epoch FROM clock_timestamp() - min(oldest_at))), 0)::float8 FROM outbox.backlog)
                       AS oldest_waiting_seconds,
                   (SELECT count(*) FROM outbox.problems) AS problems
            """)
    }

    /// Who has waited for a second for a lock that stops everybody behind, in the columns of `problems`. It reads nothing of ours,
    /// and so answers when a look at `problems` would be one of those who wait.
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
            """)
    }

    /// What is wrong with the installation; empty is healthy.
    package mutating func problems() throws -> Listing {
        try listing("SELECT * FROM outbox.problems")
    }

    /// Reads an event as people write it: its number, or its `webhook-id` of this installation.
    package mutating func eventReference(_ text: String) throws -> EventReference {
        guard let reference = EventReference(text) else {
            throw OperationRefusal(
                .invalid, "\"\(text.prefix(64))\" is not an event id",
                hint: "Expected a number such as 42, or evt_<instance>_<time>_42")
        }
        if let instance = reference.instance, try self.instance() != instance {
            throw OperationRefusal(.notFound, "event \(text.prefix(64)) belongs to another installation")
        }
        return reference
    }

    /// Looks an event up as people write it. One whose row is gone is still known by what waits or is parked for it.
    package mutating func eventKey(_ text: String) throws -> EventKey {
        let reference = try eventReference(text)
        let known = try query(
            """
            SELECT created_at FROM outbox.event WHERE id = \(reference.id)
            UNION SELECT event_at FROM outbox.delivery WHERE event_id = \(reference.id)
            UNION SELECT event_at FROM outbox.dead_letter WHERE event_id = \(reference.id)
            ORDER BY 1 DESC
            """
        ).map { row throws(PostgresError) in EventKey(id: reference.id, createdAt: try row[0]) }
        if let createdAt = reference.createdAt, let key = known.first(where: { $0.createdAt == createdAt }) {
            return key
        }
        guard reference.createdAt == nil, let key = known.first else {
            throw OperationRefusal(.notFound, "event \(text.prefix(64)) not found", hint: "See: outboxctl event list")
        }
        if known.count > 1 {
            let instance = try instance()
            throw OperationRefusal(
                .conflict, "\(known.count) events have the number \(reference.id)",
                hint:
                    "Name one by its webhook-id: \(known.map { $0.webhookID(instance: instance) }.joined(separator: ", "))"
            )
        }
        return key
    }
}

/// An event as people write it: `42`, or `evt_<instance>_<time>_42`, which says which one of that number.
package struct EventReference: Sendable {
    package let id: EventID
    package let createdAt: Timestamp?
    let instance: String?

    /// Nil for what is neither.
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
