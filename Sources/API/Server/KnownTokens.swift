import Outbox
import Postgres
import Synchronization

/// Tokens that were looked up: asked again after five seconds, so that a revocation bites by then.
final class KnownTokens: Sendable {
    private struct Entry {
        let token: Token?
        let until: ContinuousClock.Instant
    }

    private let entries = Mutex<[[UInt8]: Entry]>([:])
    private static let age = Duration.seconds(5)

    /// The valid token; nil for one that is not.
    func token(_ hash: [UInt8], _ lookUp: () async throws -> (token: Token, now: Timestamp)?) async throws -> Token? {
        let now = ContinuousClock.now
        if let known = entries.withLock({ $0[hash] }), known.until > now { return known.token }
        let found = try await lookUp()
        // One that expires before is not remembered for longer.
        let left = found.map { $0.token.expiresAt - $0.now } ?? Self.age
        entries.withLock { entries in
            // Mostly tokens that never were: whoever makes them up must not make us search.
            if entries.count > 10_000 { entries = [:] }
            entries[hash] = Entry(token: found?.token, until: now + min(left, Self.age))
        }
        return found?.token
    }
}
