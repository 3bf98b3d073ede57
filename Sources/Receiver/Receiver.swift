import Glibc
import Synchronization
import Threads

/// A local HTTP/1.1 server that keeps the raw bytes of its requests and can misbehave in every way
/// that real receivers do: `outboxctl listen` and the tests use it. One thread per connection;
/// loopback only; not for production.
///
/// An HTTP library would be in the way here: none of them lets a handler drip, lie about lengths or
/// hang up in the middle of a response.
package final class Receiver: Sendable {
    /// A request as received.
    package struct Request: Sendable {
        package let method: String
        /// Path and query, byte for byte.
        package let target: String
        /// In order, with names as sent.
        package let headers: [(name: String, value: String)]
        package let body: [UInt8]
        /// Head and body as they were on the wire.
        package let raw: [UInt8]
        /// The number of the connection, counted from 1, to see which requests shared one.
        package let connection: Int

        /// The first header of that name, in any case.
        package subscript(_ name: String) -> String? {
            headers.first { isSameName($0.name, name) }?.value
        }
    }

    /// How to respond.
    package struct Response: Sendable {
        package enum Manner: Sendable {
            /// As HTTP specifies.
            case proper
            /// Close the connection without a byte.
            case hangUp
            /// Never respond.
            case silence
            /// The header, then one body byte per interval.
            case drip(Duration)
            /// The header, then nothing more.
            case stall
            /// The header, then bytes without end.
            case endlessBody
            /// Header lines without end.
            case endlessHeader
            /// These bytes instead of HTTP, then close.
            case bytes([UInt8])
        }

        package var status: Int
        package var headers: [(name: String, value: String)]
        package var body: [UInt8]
        package var delay: Duration
        package var manner: Manner
        /// Unsolicited bytes, their delay after the response, and an action once they are written.
        package var unasked: (after: Duration, bytes: [UInt8], written: @Sendable () -> Void)?

        package init(
            _ status: Int = 200, headers: [(name: String, value: String)] = [], body: [UInt8] = Array("ok".utf8),
            delay: Duration = .zero, manner: Manner = .proper
        ) {
            self.status = status
            self.headers = headers
            self.body = body
            self.delay = delay
            self.manner = manner
        }
    }

    package let port: UInt16
    private let listening: Int32
    private let answer: @Sendable (Request) -> Response
    private let holdsBack: Bool

    private struct State {
        var connections: Set<Int32> = []
        var accepted = 0
        var isStopped = false
    }

    private let state = Mutex(State())

    /// Listens on 127.0.0.1 and responds to every request with the closure's result; the closure
    /// runs on the connection's thread and may block.
    ///
    /// - Parameters:
    ///   - port: 0 for any free one.
    ///   - holdsBack: a small piece waits until the one before it is acknowledged, which is the
    ///     system's default.
    package init(
        port: UInt16 = 0, holdsBack: Bool = false, answer: @escaping @Sendable (Request) -> Response
    ) throws {
        let listener = try LoopbackListener(port: port)
        signal(SIGPIPE, SIG_IGN)
        listening = listener.descriptor
        self.port = listener.port
        self.answer = answer
        self.holdsBack = holdsBack
        do { try Thread("receiver") { self.accept() } } catch {
            listener.close()
            throw error
        }
    }

    /// Where it listens.
    package var url: String { "http://127.0.0.1:\(port)" }

    /// Closes the socket and every connection, as a receiver that crashed would.
    package func stop() {
        // Under the lock, like closing: a closed number may already be another connection's
        // descriptor.
        state.withLock { state in
            if !state.isStopped { shutdown(listening, Int32(SHUT_RDWR)) }
            state.isStopped = true
            for connection in state.connections { shutdown(connection, Int32(SHUT_RDWR)) }
        }
    }

    private func accept() {
        while true {
            let connection = Glibc.accept(listening, nil, nil)
            guard connection >= 0 else {
                if state.withLock({ $0.isStopped }) || errno == EBADF || errno == EINVAL { break }
                continue
            }
            // Child processes must not hold our connections open.
            _ = fcntl(connection, F_SETFD, FD_CLOEXEC)
            let number: Int? = state.withLock { state in
                if state.isStopped { return nil }
                state.connections.insert(connection)
                state.accepted += 1
                return state.accepted
            }
            guard let number else { close(connection); break }
            let end = { @Sendable in
                self.state.withLock { state in
                    state.connections.remove(connection)
                    shutdown(connection, Int32(SHUT_RDWR))
                    _ = close(connection)
                }
            }
            do {
                try Thread("receiver") {
                    self.serve(connection, number)
                    end()
                }
            } catch { end() }
        }
        close(listening)
    }

    private func serve(_ descriptor: Int32, _ number: Int) {
        var isAtOnce: Int32 = holdsBack ? 0 : 1
        setsockopt(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, &isAtOnce, socklen_t(MemoryLayout<Int32>.size))
        let connection = ReceiverConnection(descriptor)
        while let request = connection.readRequest(number) {
            let answer = answer(request)
            if answer.delay > .zero { Thread.pause(answer.delay) }
            guard connection.write(answer, isStopped: { self.state.withLock { $0.isStopped } }) else { return }
            if let (delay, bytes, written) = answer.unasked {
                Thread.pause(delay)
                guard connection.send(bytes) else { return }
                written()
            }
        }
    }
}

/// Names of headers have no case, among the letters of ASCII (RFC 9110 5.1).
private func isSameName(_ left: String, _ right: String) -> Bool {
    func lower(_ byte: UInt8) -> UInt8 { (0x41...0x5A).contains(byte) ? byte + 0x20 : byte }
    return left.utf8.elementsEqual(right.utf8) { lower($0) == lower($1) }
}
