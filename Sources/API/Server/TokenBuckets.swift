import Outbox
import Postgres
import Synchronization

/// How many calls each token may make: a bucket for each, which fills with time.
final class TokenBuckets: Sendable {
    private struct Bucket {
        var level: Double
        var at: ContinuousClock.Instant
    }

    private let buckets = Mutex<[UniqueID: Bucket]>([:])

    /// 1,000 a second, and 2,000 at once after a pause, unless the token says otherwise.
    private static let usual = (perSecond: 1000.0, burst: 2000.0)

    struct Standing {
        let burst: Int
        let remaining: Int
        /// Seconds until the bucket has one more.
        let wait: Int
        let isAllowed: Bool
    }

    /// Takes one call of the token's.
    func take(_ token: Token, at now: ContinuousClock.Instant = .now) -> Standing {
        let perSecond =
            token.rate.map { Double($0.count) / (Double($0.period.microseconds) / 1e6) } ?? Self.usual.perSecond
        let burst = token.rate.map { Double($0.burst ?? $0.count) } ?? Self.usual.burst
        return buckets.withLock { buckets in
            // Full ones need not be remembered.
            if buckets.count > 10_000 { buckets = buckets.filter { now - $0.value.at < .seconds(60) } }
            var bucket = buckets[token.id] ?? Bucket(level: burst, at: now)
            let elapsed = Double((now - bucket.at).microseconds) / 1e6
            bucket = Bucket(level: min(burst, bucket.level + elapsed * perSecond), at: now)
            let isAllowed = bucket.level >= 1
            if isAllowed { bucket.level -= 1 }
            buckets[token.id] = bucket
            let wait = bucket.level >= 1 ? 1 : Int(((1 - bucket.level) / perSecond).rounded(.up))
            return Standing(burst: Int(burst), remaining: Int(bucket.level), wait: max(1, wait), isAllowed: isAllowed)
        }
    }
}
