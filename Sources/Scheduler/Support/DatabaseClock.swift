import Postgres
import Synchronization

/// The database's time without asking for it: the last reading, carried on by the local monotonic
/// clock. The local calendar clock is never looked at.
final class DatabaseClock: Sendable {
    private let reading = Mutex<(time: Timestamp, at: ContinuousClock.Instant)?>(nil)

    /// How long a reading is carried on before a later one replaces it whatever it says.
    private static let validity = Duration.seconds(10)

    /// Takes a reading that just came from the database. It is late by as long as it was on its
    /// way, so that of several the one which is furthest ahead is the closest.
    func set(_ time: Timestamp) {
        let now = ContinuousClock.now
        reading.withLock { reading in
            if let last = reading, now - last.at < Self.validity, last.time + (now - last.at) > time { return }
            reading = (time, now)
        }
    }

    /// The database's time now.
    var now: Timestamp {
        reading.withLock { reading in
            guard let reading else { return .distantPast }
            return reading.time + (.now - reading.at)
        }
    }

    /// How long it is until then.
    func time(until time: Timestamp) -> Duration { .microseconds(time.microseconds &- now.microseconds) }
}
