import CCurl
import Glibc
import Synchronization

/// Sees when a connection brings more than responses may have, none of it a part of one: empty
/// frames of HTTP/2, say, or an extension of a chunk that never ends.
///
/// libcurl reads it for as long as it comes, in HTTP/2 within one call, and looks at no time limit
/// meanwhile. So the loop asks in each of its turns about connections with a part of a response
/// (`isFlooded`), and another thread ends them when the loop does not come to its next turn
/// (`end`).
final class Floods: Sendable {
    /// What a connection may receive for each request, in bytes: the longest header and body, in
    /// chunks of one byte.
    private static let maxPerResponse: UInt64 = 4 << 20

    private struct Connection {
        /// Responses that are expected.
        var expected = 0
        /// With more bytes than that it is one that floods.
        var limit: UInt64 = 0
        /// It was ended for that.
        var isEnded = false
    }

    private let connections = Mutex<[Int32: Connection]>([:])

    /// A request is sent on a connection, which may bring its response: one of several in HTTP/2.
    func expectResponse(on descriptor: Int32) { change(descriptor, by: 1) }

    /// A request on the connection is over.
    func responseEnded(on descriptor: Int32) { change(descriptor, by: -1) }

    private func change(_ descriptor: Int32, by count: Int) {
        let received = tcp_bytes_received(descriptor)
        connections.withLock { connections in
            // Of one that is closed nothing is expected any more.
            if count < 0, connections[descriptor] == nil { return }
            var connection = connections[descriptor] ?? Connection()
            connection.expected += count
            connection.limit = received + Self.maxPerResponse * UInt64(max(1, connection.expected))
            connections[descriptor] = connection
        }
    }

    func isFlooded(_ descriptor: Int32) -> Bool {
        guard let connection = connections.withLock({ $0[descriptor] }) else { return false }
        return connection.isEnded || tcp_bytes_received(descriptor) > connection.limit
    }

    /// Ends the connections that flood; whoever reads from them finds their end. From any thread.
    func end() {
        // Under the lock that a connection is forgotten under before it is closed: its number is
        // nobody else's meanwhile.
        connections.withLock { connections in
            for (descriptor, connection) in connections where !connection.isEnded {
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
