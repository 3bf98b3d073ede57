package import Postgres

/// The result of a call of `cut` (`outbox.cut_result`).
package enum Cut: Sendable, Equatable {
    /// The number of newly committed events that are now in batches; with none, nothing is left to
    /// do.
    case events(Int)
    /// No event came into a batch, and there is more to do at once.
    case more
    /// Another worker is cutting at this moment.
    case busy
    /// Enough batches are waiting to be claimed.
    case enough
}

extension Connection {
    /// Turns newly committed events into batches, at most `budget` of them, so that a transaction
    /// with a million rows cannot make one giant batch.
    package mutating func cut(batchSize: Int, budget: Int) throws -> Cut {
        let result = try query("SELECT events, state FROM outbox.cut(\(Int32(batchSize)), \(Int32(budget)))")
            .one(Int.self, String.self)
        return switch result {
        case (1..., _): .events(result.0)
        case (_, "busy"): .busy
        case (_, "enough"): .enough
        case (_, "more"): .more
        default: .events(0)
        }
    }

    /// Announces that a worker sleeps for this long, so that producers notify it. Producers see it
    /// at once, even if this transaction rolls back. False where producers would not notify: a
    /// transaction that has notified could not be prepared.
    package mutating func sleep(for duration: Duration) throws -> Bool {
        try query(
            """
            SELECT CASE WHEN current_setting('max_prepared_transactions') = '0'
                        THEN setval('outbox.asleep_until', (date_part('epoch', clock_timestamp() + \(duration)) + 1)::bigint) END
                   IS NOT NULL
            """
        ).one(Bool.self)
    }

    /// Announces that a worker is awake. Another worker that sleeps still scans every poll
    /// interval.
    package mutating func wake() throws { try query("SELECT setval('outbox.asleep_until', 1)") }

    /// Makes a copy of a database a home: its new events are delivered from here. In another
    /// cluster the stream switches to that cluster's transaction ids. Returns how many events
    /// became batches. It is one transaction, in which no producer publishes; its duration follows
    /// the number of events kept.
    ///
    /// Throws a `PostgresError` with SQLSTATE `OB012` when the database cannot be told from its
    /// original, and neither of the two options is set.
    ///
    /// - Parameters:
    ///   - isNewInstance: the installation gets a new name, so that its webhook-ids differ from the
    ///     original's.
    ///   - disablesEndpoints: nothing is sent until an operator enables an endpoint.
    package mutating func rebase(
        batchSize: Int = 500, isNewInstance: Bool = false, disablesEndpoints: Bool = false
    ) throws -> Int {
        try query(
            "SELECT requeued FROM outbox.rebase(\(Int32(batchSize)), \(isNewInstance), \(disablesEndpoints))",
            within: .seconds(3600)
        )
        .one(Int.self)
    }

    /// Removes some cuts that nothing reads any more, and returns how many; the newest thousand
    /// stay for investigations.
    mutating func trimHistory() throws -> Int {
        try query(
            """
            DELETE FROM outbox.cut WHERE id = ANY (ARRAY(
                SELECT id FROM outbox.cut WHERE id < (SELECT max(id) - 1000 FROM outbox.cut) ORDER BY id LIMIT 10000))
            """
        ).affected
    }
}
