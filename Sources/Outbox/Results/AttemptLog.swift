package import Postgres

/// The log of every request that was made: appended to, never changed.
extension Connection {
    /// Appends the attempts among the outcomes.
    mutating func append(_ outcomes: [Outcome], worker: String) throws {
        if outcomes.contains(where: { $0.attempt != nil }) { try query(attempts(of: outcomes, worker: worker)) }
    }

    /// The statement that appends them. A column that none of them has is left out: it would be an
    /// array of NULLs to send, to read and to unnest, and a successful request over an existing
    /// connection has neither times of connecting nor an error. The statement then has eight forms,
    /// each prepared once.
    func attempts(of outcomes: [Outcome], worker: String) -> SQL {
        let rows = outcomes.compactMap { outcome in outcome.attempt.map { (outcome, $0) } }
        func column<Value>(_ value: (Outcome, Attempt) -> Value) -> [Value] { rows.map { value($0.0, $0.1) } }
        func microseconds(_ value: (Attempt) -> Duration?) -> [Int32?] {
            rows.map { value($0.1).map { Int32(clamping: $0.microseconds) } }
        }
        var names =
            "event_id, event_at, endpoint_id, number, trigger, lease_id, started_at, first_byte_us, total_us, status"
        var values: SQL = """
            \(deliveryRows(column { outcome, _ in outcome.delivery })), \(column { Int32(clamping: $1.number) }),
            \(column { $1.trigger.rawValue }), \(column { outcome, _ in outcome.holder.lease }), \(column { $1.startedAt }),
            \(microseconds(\.firstByte)), \(microseconds { $0.total }), \(column { $1.status.map { Int32($0) } })
            """
        if rows.contains(where: { $1.dns != nil || $1.connect != nil || $1.tls != nil }) {
            names += ", dns_us, connect_us, tls_us"
            values = "\(values), \(microseconds(\.dns)), \(microseconds(\.connect)), \(microseconds(\.tls))"
        }
        if rows.contains(where: { $1.requestID != nil }) {
            names += ", request_id"
            values = "\(values), \(column { $1.requestID })"
        }
        let isSilent = rows.allSatisfy { $1.isSuccess && $1.errorClass == nil && $1.error == nil && $1.response == nil }
        if isSilent {
            return """
                INSERT INTO outbox.attempt (worker, outcome, \(raw: names))
                SELECT \(worker), 'success', a.* FROM unnest(\(values)) AS a(\(raw: names))
                """
        }
        names += ", outcome, error_class, error, response"
        values = """
            \(values), \(column { $1.isSuccess ? "success" : "failure" }), \(column { $1.errorClass }), \(column { $1.error }),
            \(column { $1.response.map { Bytes($0) } })
            """
        return """
            INSERT INTO outbox.attempt (worker, \(raw: names))
            SELECT \(worker), a.* FROM unnest(\(values)) AS a(\(raw: names))
            """
    }

    /// Whether a group whose commit got no response took effect: reads back a row that only this
    /// group can have written.
    ///
    /// That is an attempt row, or the waiting row of a delivery that no other worker can have
    /// moved. A group with neither moves rows in lanes, adds deliveries of shared batches or
    /// deletes batches: writing it again changes nothing.
    package mutating func wasRecorded(_ group: RecordGroup) throws -> Bool {
        let written = group.outcomes.filter { !group.leaves($0) }
        if let outcome = written.first(where: { $0.attempt != nil }), let attempt = outcome.attempt {
            return try query(
                """
                SELECT FROM \(attemptRows(of: [outcome.delivery.event])) a WHERE \(lookUp("a", outcome.delivery))
                   AND lease_id = \(outcome.holder.lease) AND number = \(attempt.number) AND started_at = \(attempt.startedAt) LIMIT 1
                """
            ).count > 0
        }
        let own = written.first { $0.holder.batch != nil && !$0.mayBeShared }
        // Every change that removes the row again leaves another: a success, a dead letter.
        return try own.map { try resolvedDeliveries(of: [$0.delivery.event]).contains($0.delivery) } ?? false
    }

    /// Notes which of these events were sent although this database does not have them, and returns
    /// how many of them were not noted before: a failover or a restore has lost them.
    mutating func noteGhosts(among events: [EventKey], worker: String) throws -> Int {
        if events.isEmpty { return 0 }
        return try query(
            """
            WITH known AS MATERIALIZED (
                SELECT e.id, e.created_at FROM outbox.events_at(\(events.map(\.id)), \(events.map(\.createdAt))) e),
            sent AS MATERIALIZED (
                SELECT a.event_id, a.event_at FROM \(attemptRows(of: events)) a WHERE outbox.is_delivery(a.trigger))
            INSERT INTO outbox.ghost (event_id, event_at, worker)
            SELECT DISTINCT k.id, k.created_at, \(worker)
              FROM unnest(\(events.map(\.id)), \(events.map(\.createdAt))) AS k(id, created_at)
             WHERE NOT EXISTS (SELECT FROM known e WHERE e.id = k.id AND e.created_at = k.created_at)
               AND EXISTS (SELECT FROM sent a WHERE a.event_id = k.id AND a.event_at = k.created_at)
            ON CONFLICT DO NOTHING
            """
        ).affected
    }

    /// The same for lost events with the numbers of these, as shown by another worker's attempts.
    package mutating func noteGhosts(numberedAs events: [EventKey], worker: String) throws -> Int {
        // A number is reused only where the database has gone back: elsewhere no partition from
        // before the events is read.
        let sent = try query(
            """
            SELECT DISTINCT event_id, event_at
              FROM outbox.attempts_at(\(events.map(\.id)), CASE WHEN outbox.has_gone_back() THEN '-infinity'
                                                               ELSE \(events.map(\.createdAt).min()) END)
            """
        ).all(as: EventKey.self)
        return try noteGhosts(among: Array(Set(sent).subtracting(events)), worker: worker)
    }

    /// Appends an endpoint test, which belongs to no delivery, and returns its id.
    package mutating func recordEndpointTest(_ attempt: Attempt, event: EventKey, endpoint: EndpointID) throws
        -> LeaseID
    {
        let id = LeaseID.random()
        let timing = [attempt.dns, attempt.connect, attempt.tls, attempt.firstByte, attempt.total]
        try query(
            """
            SELECT outbox.record_endpoint_test(
                \(endpoint), \(event.id), \(event.createdAt), \(attempt.trigger.rawValue), \(id), \(attempt.startedAt),
                \(timing.map { $0.map { Int32(clamping: $0.microseconds) } }), \(attempt.isSuccess), \(attempt.status.map { Int32($0) }),
                \(attempt.errorClass), \(attempt.error), \(attempt.response.map { Bytes($0) }), \(attempt.requestID))
            """)
        return id
    }
}
