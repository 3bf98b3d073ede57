import CCurl
import Glibc
import Synchronization

/// Sees when a connection brings more than responses may have, none of it a part of one: empty
/// frames of HTTP/2, say, or an extension of a chunk that never ends.
///
/// libcurl reads it for as long as it comes, in HTTP/2 within one call, and looks at no time limit
/// meanwhile. So the loop asks in each of its turns about connections with a part of a response
/// (`isFlooded`), and another thread ends them when the loop does not come to its next turn (`end`).
final class Floods: Sendable {
    /// What a connection may receive for each request, in bytes: the longest header and body, in
    /// chunks of one byte.
    private static let maxPerResponse: UInt64 = 4 << 20

    /// By connection: with more than that it is one that floods; and whether it was ended for that.
    private let limits = Mutex<[Int32: (bytes: UInt64, isEnded: Bool)]>([:])

    /// A request is sent on a connection, which may bring its response.
    func expectResponse(on descriptor: Int32) {
        let bytes = tcp_bytes_received(descriptor) + Self.maxPerResponse
        limits.withLock { $0[descriptor] = (bytes, false) }
    }

    func isFlooded(_ descriptor: Int32) -> Bool {
        guard let limit = limits.withLock({ $0[descriptor] }) else { return false }
        return limit.isEnded || tcp_bytes_received(descriptor) > limit.bytes
    }

    /// Ends the connections that flood; whoever reads from them finds their end. From any thread.
    func end() {
        // Under the lock that a connection is forgotten under before it is closed: its number is
        // nobody else's meanwhile.
        limits.withLock { limits in
            for (descriptor, limit) in limits where !limit.isEnded {
                guard tcp_bytes_received(descriptor) > limit.bytes else { continue }
                limits[descriptor]?.isEnded = true
                shutdown(descriptor, Int32(SHUT_RDWR))
            }
        }
    }

    /// The connection is about to be closed.
    func forget(_ descriptor: Int32) { limits.withLock { $0[descriptor] = nil } }
}
