import Postgres
import Synchronization

/// The database's time without asking for it: the last reading, carried on by the local monotonic clock. The local
/// calendar clock is never looked at.
final class DatabaseClock: Sendable {
    private let reading = Mutex<(time: Timestamp, at: ContinuousClock.Instant)?>(nil)

    /// Takes a reading that just came from the database.
    func set(_ time: Timestamp) {
        reading.withLock { $0 = (time, .now) }
    }

    /// The database's time now.
    var now: Timestamp {
        reading.withLock { reading in
            guard let reading else { return .distantPast }
            return reading.time + (.now - reading.at)
        }
    }
}
