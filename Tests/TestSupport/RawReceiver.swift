import Glibc
import Receiver
import Synchronization
import Threads

/// A receiver that responses each request with these bytes, whatever HTTP makes of them, and keeps
/// the connection.
package final class RawReceiver: Sendable {
    private let listener: LoopbackListener
    private let accepted = Atomic(0)
    private let received = Mutex<[String]>([])
    private let answer: @Sendable (Int) -> [UInt8]
    private let endless: [UInt8]?

    /// - Parameters:
    ///   - endless: what comes after each answer again and again, for as long as it is read.
    ///   - answer: gets the number of the connection.
    package init(endless: [UInt8]? = nil, answer: @escaping @Sendable (Int) -> [UInt8]) throws {
        self.endless = endless
        signal(SIGPIPE, SIG_IGN)
        listener = try LoopbackListener(port: 0)
        self.answer = answer
        try Thread("raw receiver") { self.accept() }
    }

    package var url: String { "http://127.0.0.1:\(listener.port)/" }

    /// The requests' lines, without bodies.
    package var requests: [String] { received.withLock { $0 } }

    /// How many connections there were.
    package var connections: Int { accepted.load(ordering: .relaxed) }

    package func stop() { shutdown(listener.descriptor, Int32(SHUT_RDWR)) }

    private func accept() {
        while true {
            let connection = Glibc.accept(listener.descriptor, nil, nil)
            guard connection >= 0 else { break }
            let number = accepted.add(1, ordering: .relaxed).newValue
            _ = try? Thread("raw receiver") {
                self.serve(connection, number)
                close(connection)
            }
        }
        close(listener.descriptor)
    }

    private func serve(_ connection: Int32, _ number: Int) {
        var on: Int32 = 1
        setsockopt(connection, Int32(IPPROTO_TCP), TCP_NODELAY, &on, socklen_t(MemoryLayout<Int32>.size))
        var buffer = [UInt8](repeating: 0, count: 65_536)
        var read: [UInt8] = []
        while true {
            let count = recv(connection, &buffer, buffer.count, 0)
            guard count > 0 else { return }
            read += buffer.prefix(count)
            // The requests of the tests have no body.
            while let end = read.firstRange(of: Array("\r\n\r\n".utf8)) {
                received.withLock { $0.append(String(decoding: read[..<end.upperBound], as: UTF8.self)) }
                read.removeSubrange(..<end.upperBound)
                let bytes = answer(number)
                guard bytes.withUnsafeBytes({ send(connection, $0.baseAddress, $0.count, 0) }) == bytes.count else {
                    return
                }
                if let endless {
                    while endless.withUnsafeBytes({ send(connection, $0.baseAddress, $0.count, 0) }) > 0 {}
                    return
                }
            }
        }
    }
}
