package import Postgres

/// What a call of `cut` did (`outbox.cut_result`).
package enum Cut: Sendable, Equatable {
    /// So many newly committed events are in batches now; with none, nothing is left to do.
    case events(Int)
    /// Nothing came into a batch, and there is more to do at once.
    case more
    /// Another worker is cutting at this moment.
    case busy
    /// Enough batches wait to be claimed.
    case enough
}

extension Connection {
    /// Turns newly committed events into batches, at most `budget` of them, so that a transaction with a million rows
    /// cannot make one giant batch.
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

    /// Says that a worker sleeps for so long, so that producers notify it. It is seen at once, whatever becomes of this transaction.
    /// False where they would not: a transaction that has notified could not be prepared.
    package mutating func sleep(for duration: Duration) throws -> Bool {
        try query(
            """
            SELECT CASE WHEN current_setting('max_prepared_transactions') = '0'
                        THEN setval('outbox.asleep_until', (date_part('epoch', clock_timestamp() + \(duration)) + 1)::bigint) END
                   IS NOT NULL
            """
        ).one(Bool.self)
    }

    /// Says that a worker is awake. Another one that sleeps still looks every poll interval.
    package mutating func wake() throws { try query("SELECT setval('outbox.asleep_until', 1)") }

    /// Makes a copy of a database a home: what is new in it is delivered from here. In another cluster the stream goes over to that
    /// one's transaction ids. Returns how many events became batches. One transaction, in which no producer publishes; its time
    /// follows the events kept.
    ///
    /// Throws a `PostgresError` whose SQLSTATE is `OB012` when the database is no copy that can be told from its original, and
    /// neither of the two is asked for.
    ///
    /// - Parameters:
    ///   - isNewInstance: the installation gets a name of its own, and its webhook-ids are other ones than the original's.
    ///   - disablesEndpoints: nothing is sent until somebody enables an endpoint.
    package mutating func rebase(
        batchSize: Int = 500, isNewInstance: Bool = false, disablesEndpoints: Bool = false
    ) throws -> Int {
        try query(
            "SELECT requeued FROM outbox.rebase(\(Int32(batchSize)), \(isNewInstance), \(disablesEndpoints))",
            within: .seconds(3600)
        )
        .one(Int.self)
    }

    /// Removes some cuts that nothing reads any more, and returns how many; the newest thousand stay for whoever investigates.
    mutating func trimHistory() throws -> Int {
        try query(
            """
            DELETE FROM outbox.cut WHERE id = ANY (ARRAY(
                SELECT id FROM outbox.cut WHERE id < (SELECT max(id) - 1000 FROM outbox.cut) ORDER BY id LIMIT 10000))
            """
        ).affected
    }
}
