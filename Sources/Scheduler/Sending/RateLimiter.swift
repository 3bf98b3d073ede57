import DequeModule
import Outbox

/// Keeps to the rates of one endpoint. Only the owner of its lane sends to it, so that what this
/// allows is all that is sent. Pure: time is a parameter.
struct RateLimiter {
    let limits: [RateLimit]
    /// When the last requests started, as many as the largest window holds; oldest first.
    private var history: Deque<ContinuousClock.Instant> = []
    /// For each limit with a burst: when its bucket will be full again.
    private var fullAt: [ContinuousClock.Instant?]

    init(_ limits: [RateLimit]) {
        self.limits = limits
        fullAt = limits.map { _ in nil }
    }

    /// Other limits, with what is known of the past.
    func changed(to limits: [RateLimit]) -> RateLimiter {
        history.reduce(into: RateLimiter(limits)) { $0.take(at: $1) }
    }

    /// How much of the past has to be known: so many requests, in so long a time.
    static func memory(of limits: [RateLimit]) -> (count: Int, period: Duration) {
        (
            limits.map { max($0.count, ($0.burst ?? 0) * 2) }.max() ?? 0,
            limits.map { limit in limit.burst.map { limit.period * $0 / limit.count } ?? limit.period }.max() ?? .zero
        )
    }

    /// Goes on where somebody stopped whose last requests started then, oldest first. What a bucket
    /// held before that time is not known; it counts as empty then, which can only make the next
    /// request later.
    init(_ limits: [RateLimit], starts: [ContinuousClock.Instant], now: ContinuousClock.Instant) {
        self.init(limits)
        for start in starts { take(at: start) }
        for (index, limit) in limits.enumerated() {
            guard let burst = limit.burst else { continue }
            let full = limit.period * burst / limit.count
            let recent = starts.count { now - $0 < full }
            fullAt[index] = recent == 0 ? nil : now + limit.period * min(recent, burst) / limit.count
        }
    }

    /// How many requests may start within a time from now, at most so many.
    func startable(from now: ContinuousClock.Instant, within time: Duration, atMost most: Int) -> Int {
        var copy = self
        for count in 0..<most {
            let next = max(copy.earliest() ?? now, now)
            if next > now + time { return count }
            copy.take(at: next)
        }
        return most
    }

    /// When the next request may start; in the past when it may now.
    func earliest() -> ContinuousClock.Instant? {
        var earliest: ContinuousClock.Instant?
        for (limit, fullAt) in zip(limits, fullAt) {
            var time: ContinuousClock.Instant?
            if let burst = limit.burst {
                // The bucket holds one more as soon as it is not farther from full than all but one
                // of its drops.
                time = fullAt.map { $0 - limit.period * (burst - 1) / limit.count }
            } else if history.count >= limit.count {
                // So many starts ago: that one must have left the window.
                time = history[history.count - limit.count] + limit.period
            }
            if let time { earliest = max(earliest ?? time, time) }
        }
        return earliest
    }

    /// Counts a request that starts at that time.
    mutating func take(at now: ContinuousClock.Instant) {
        history.append(now)
        let most = limits.map(\.count).max() ?? 0
        while history.count > most { history.removeFirst() }
        for (index, limit) in limits.enumerated() where limit.burst != nil {
            fullAt[index] = max(fullAt[index] ?? now, now) + limit.period / limit.count
        }
    }
}
