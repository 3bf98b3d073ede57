import Outbox
import Synchronization

/// Counts the failures of each endpoint, as this process sees them, and says when its breaker trips
/// (`EndpointState`).
///
/// It trips after ten failures in a row, or when half of a hundred outcomes within 30 seconds are
/// failures: enough that a single lost packet or a deploy of some seconds does not count, little
/// enough that a dead receiver costs nobody much.
final class FailureCounter: Sendable {
    static let maxInARow = 10
    static let share = (outcomes: 100, failures: 50, within: Duration.seconds(30))

    private struct Count {
        var inARow = 0
        var outcomes = 0
        var failures = 0
        let since: ContinuousClock.Instant
    }

    /// Of endpoints that have failed lately; an endpoint without failures costs one look.
    private let counts = Mutex<[EndpointID: Count]>([:])

    /// Counts an outcome; true when the breaker trips now.
    func count(_ endpoint: EndpointID, isFailure: Bool, at now: ContinuousClock.Instant = .now) -> Bool {
        counts.withLock { counts in
            guard isFailure || counts[endpoint] != nil else { return false }
            var count = counts[endpoint] ?? Count(since: now)
            // A hundred at a time: a few failures a second are no half of thousands.
            if count.outcomes == Self.share.outcomes || now - count.since > Self.share.within {
                count = Count(inARow: count.inARow, since: now)
            }
            count.outcomes += 1
            count.inARow = isFailure ? count.inARow + 1 : 0
            if isFailure { count.failures += 1 }
            let trips =
                count.inARow >= Self.maxInARow
                || count.outcomes == Self.share.outcomes && count.failures >= Self.share.failures
            counts[endpoint] = trips || count.failures == 0 && count.inARow == 0 ? nil : count
            return trips
        }
    }
}
