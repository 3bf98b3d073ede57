package import Postgres

/// The log of every request that was made: appended to, never changed.
extension Connection {
    /// Appends the attempts among the outcomes.
    mutating func append(_ outcomes: [Outcome], worker: String) throws {
        if outcomes.contains(where: { $0.attempt != nil }) { try query(attempts(of: outcomes, worker: worker)) }
    }

    /// The statement that appends them.
    func attempts(of outcomes: [Outcome], worker: String) -> SQL {
        let rows = outcomes.compactMap { outcome in outcome.attempt.map { (outcome, $0) } }
        func column<Value>(_ value: (Outcome, Attempt) -> Value) -> [Value] { rows.map { value($0.0, $0.1) } }
        func microseconds(_ value: (Attempt) -> Duration?) -> [Int32?] {
            rows.map { value($0.1).map { Int32(clamping: $0.microseconds) } }
        }
        return """
            INSERT INTO outbox.attempt (event_id, event_at, endpoint_id, number, trigger, lease_id, worker, started_at, dns_us, connect_us,
                                        tls_us, first_byte_us, total_us, outcome, status, error_class, error, response, request_id)
            SELECT a.event_id, a.event_at, a.endpoint_id, a.number, a.trigger, a.lease_id, \(worker), a.started_at, a.dns_us, a.connect_us,
                   a.tls_us, a.first_byte_us, a.total_us, CASE WHEN a.success THEN 'success' ELSE 'failure' END, a.status,
                   a.error_class, a.error, a.response, a.request_id
              FROM unnest(\(pairRows(column { outcome, _ in outcome.pair })),
                          \(column { Int32(clamping: $1.number) }), \(column { $1.trigger.rawValue }),
                          \(column { outcome, _ in outcome.holder.lease }), \(column { $1.startedAt }),
                          \(microseconds(\.dns)), \(microseconds(\.connect)), \(microseconds(\.tls)), \(microseconds(\.firstByte)),
                          \(microseconds { $0.total }), \(column { $1.isSuccess }), \(column { $1.status.map { Int32($0) } }),
                          \(column { $1.errorClass }), \(column { $1.error }), \(column { $1.response.map { Bytes($0) } }),
                          \(column { $1.requestID }))
                   AS a(event_id, event_at, endpoint_id, number, trigger, lease_id, started_at, dns_us, connect_us, tls_us, first_byte_us,
                        total_us, success, status, error_class, error, response, request_id)
            """
    }

    /// Whether a group whose commit got no answer took effect: reads back what only this group can have left.
    ///
    /// That is an attempt row, or the waiting row of a pair that nobody else can have moved. A group with neither moves
    /// rows in lanes, adds pairs of shared batches or deletes batches: writing it again changes nothing.
    package mutating func wasRecorded(_ group: RecordGroup) throws -> Bool {
        if let outcome = group.outcomes.first(where: { $0.attempt != nil }), let attempt = outcome.attempt {
            return try query(
                """
                SELECT FROM outbox.attempt a WHERE \(lookUp("a", outcome.pair))
                   AND lease_id = \(outcome.holder.lease) AND number = \(attempt.number) AND started_at = \(attempt.startedAt) LIMIT 1
                """
            ).count > 0
        }
        let own = group.outcomes.first { $0.holder.batch != nil && !$0.mayBeShared }
        // Whatever removes the row again leaves another: a success, a dead letter.
        return try own.map { try resolvedPairs(of: [$0.pair.event]).contains($0.pair) } ?? false
    }

    /// Writes down which of these events were sent although this database does not have them, and returns how many of them nobody
    /// had noted: a failover or a restore has lost them.
    mutating func noteGhosts(among events: [EventKey], worker: String) throws -> Int {
        if events.isEmpty { return 0 }
        return try query(
            """
            INSERT INTO outbox.ghost (event_id, event_at, worker)
            SELECT DISTINCT k.id, k.created_at, \(worker)
              FROM unnest(\(events.map(\.id)), \(events.map(\.createdAt))) AS k(id, created_at)
             WHERE NOT EXISTS (SELECT FROM outbox.event e WHERE e.id = k.id AND e.created_at = k.created_at)
               AND EXISTS (SELECT FROM outbox.attempt a WHERE a.event_id = k.id AND a.event_at = k.created_at
                              AND a.trigger NOT IN ('test', 'evaluate'))
            ON CONFLICT DO NOTHING
            """
        ).affected
    }

    /// The same for events that have the numbers of these, which somebody else's attempts of them show.
    package mutating func noteGhosts(numberedAs events: [EventKey], worker: String) throws -> Int {
        let sent = try query(
            "SELECT DISTINCT event_id, event_at FROM outbox.attempt WHERE event_id = ANY (\(events.map(\.id)))"
        ).map { row throws(PostgresError) in EventKey(id: try row[0], createdAt: try row[1]) }
        return try noteGhosts(among: Array(Set(sent).subtracting(events)), worker: worker)
    }

    /// Appends a trial, which belongs to no delivery, and returns its id.
    package mutating func recordTrial(_ attempt: Attempt, event: EventKey, endpoint: EndpointID) throws -> LeaseID {
        let id = LeaseID.random()
        let timing = [attempt.dns, attempt.connect, attempt.tls, attempt.firstByte, attempt.total]
        try query(
            """
            SELECT outbox.record_trial(
                \(endpoint), \(event.id), \(event.createdAt), \(attempt.trigger.rawValue), \(id), \(attempt.startedAt),
                \(timing.map { $0.map { Int32(clamping: $0.microseconds) } }), \(attempt.isSuccess), \(attempt.status.map { Int32($0) }),
                \(attempt.errorClass), \(attempt.error), \(attempt.response.map { Bytes($0) }), \(attempt.requestID))
            """)
        return id
    }
}
