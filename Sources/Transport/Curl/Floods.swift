import CCurl
import Glibc
import Synchronization

/// Sees when a connection brings more than responses may have, none of it a part of one: empty
/// frames of HTTP/2, say, or an extension of a chunk that never ends.
///
/// libcurl reads it for as long as it comes, in HTTP/2 within one call, and looks at no time limit
/// meanwhile. So the loop asks now and then about connections with a part of a response
/// (`isFlooded`), and another thread ends them when the loop does not come to its next turn
/// (`end`).
final class Floods: Sendable {
    /// What a connection may receive for a response that is under way, in bytes: the longest header
    /// and body, in chunks of one byte.
    private static let maxPerResponse: UInt64 = 4 << 20
    /// What the bytes of responses that are over may have taken on the way, for each of them, and
    /// for each response.
    private static let (overhead, overheadPerResponse): (UInt64, UInt64) = (8, 16 << 10)

    private struct Connection {
        /// Responses that are expected.
        var expected: UInt64 = 0
        /// What those that are over may have taken.
        var over: UInt64 = 0
        /// It was ended as one that floods.
        var isEnded = false

        /// With more bytes than that it is one.
        var limit: UInt64 { over + expected * Floods.maxPerResponse }
    }

    private let connections = Mutex<[Int32: Connection]>([:])

    /// A request is sent on a connection, which may bring its response: one of several in HTTP/2.
    func expectResponse(on descriptor: Int32) {
        connections.withLock { $0[descriptor, default: Connection()].expected += 1 }
    }

    /// A request on the connection is over, with a header and body of so many bytes.
    func responseEnded(on descriptor: Int32, bytes: Int) {
        connections.withLock { connections in
            // Of one that is closed nothing is expected any more.
            guard var connection = connections[descriptor] else { return }
            connection.expected -= min(1, connection.expected)
            connection.over += UInt64(bytes) * Self.overhead + Self.overheadPerResponse
            connections[descriptor] = connection
        }
    }

    /// True when the connection has brought more than it may.
    func isFlooded(_ descriptor: Int32) -> Bool {
        guard let connection = connections.withLock({ $0[descriptor] }) else { return false }
        return connection.isEnded || tcp_bytes_received(descriptor) > connection.limit
    }

    /// Ends the connections that flood; whoever reads from them finds their end. From any thread.
    func end() {
        // Under the lock that a connection is forgotten under before it is closed: its number is
        // nobody else's meanwhile.
        connections.withLock { connections in
            for (descriptor, connection) in connections where connection.expected > 0 && !connection.isEnded {
                guard tcp_bytes_received(descriptor) > connection.limit else { continue }
                connections[descriptor]?.isEnded = true
                shutdown(descriptor, Int32(SHUT_RDWR))
            }
        }
    }

    /// The connection is about to be closed; true when it was ended as one that floods.
    func forget(_ descriptor: Int32) -> Bool {
        connections.withLock { $0.removeValue(forKey: descriptor) }?.isEnded ?? false
    }
}

/// Affinities of requests whose receivers have flooded us.
final class Flooding: Sendable {
    private let until = Mutex<[Int: ContinuousClock.Instant]>([:])
    /// Usually there are none, and nobody takes the lock.
    private let isAny = Atomic(false)
    private static let rest = Duration.seconds(600)
    /// So many are kept in mind: one that is forgotten is found again.
    static let most = 1000

    /// From now on for some minutes.
    func add(_ affinity: Int, at now: ContinuousClock.Instant = .now) {
        until.withLock { until in
            if until.count >= Self.most { until = until.filter { $0.value > now } }
            if until.count >= Self.most { until = [:] }
            until[affinity] = now + Self.rest
        }
        isAny.store(true, ordering: .relaxed)
    }

    func contains(_ affinity: Int, at now: @autoclosure () -> ContinuousClock.Instant = .now) -> Bool {
        isAny.load(ordering: .relaxed) && until.withLock { $0[affinity].map { $0 > now() } ?? false }
    }
}
