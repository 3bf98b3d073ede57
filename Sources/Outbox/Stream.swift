package import Postgres

/// What a call of `cut` did.
package enum Cut: Sendable, Equatable {
    /// So many newly committed events are in batches now.
    case events(Int)
    /// Another worker is cutting at this moment.
    case busy
    /// Enough batches wait to be claimed.
    case enough
}

extension Connection {
    /// Turns newly committed events into batches, at most `budget` of them, so that a transaction with a million rows
    /// cannot make one giant batch.
    package mutating func cut(batchSize: Int, budget: Int) throws -> Cut {
        let events: Int =
            try query("SELECT outbox.cut(\(Int32(batchSize)), \(Int32(budget)))")
            .first { row throws(PostgresError) in try row[0] } ?? 0
        return switch events {
        case -1: .busy
        case ..<0: .enough
        default: .events(events)
        }
    }

    /// Says that this session's worker is about to sleep, so that the next producer notifies. False when a producer has
    /// uncommitted events, or another worker already sleeps: then poll.
    package mutating func beginSleep() throws -> Bool {
        try query("SELECT pg_try_advisory_lock(7231, 2)").first { row throws(PostgresError) in try row[0] } ?? false
    }

    /// Says that this session's worker is awake.
    package mutating func endSleep() throws {
        try query("SELECT pg_advisory_unlock(7231, 2)")
    }

    /// Puts the stream of a database that was restored from another cluster onto this one's transaction ids; returns how
    /// many events became batches. One transaction, in which no producer publishes; its time follows the events kept.
    ///
    /// Throws a `PostgresError` whose SQLSTATE is `OB012` when the database was not restored.
    package mutating func rebase(batchSize: Int = 500) throws -> Int {
        try query("SELECT requeued FROM outbox.rebase(\(Int32(batchSize)))", within: .seconds(3600))
            .first { row throws(PostgresError) in try row[0] } ?? 0
    }

    /// Removes cuts and generations that nothing reads any more; the newest thousand stay for whoever investigates.
    package mutating func trimHistory() throws {
        try query("DELETE FROM outbox.cut WHERE id < (SELECT max(id) - 1000 FROM outbox.cut)")
        try query("DELETE FROM outbox.generation WHERE id < (SELECT max(id) - 1000 FROM outbox.generation)")
    }
}
