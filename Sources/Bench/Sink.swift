import Glibc
import Synchronization
import Threads

/// A fast local HTTP/1.1 sink for measuring: one thread, keep-alive, a constant delay, failures on
/// request.
///
/// It remembers which delivery each request was for, so that requests, duplicates and losses are
/// counted independently of the measured workers. Loopback only.
final class Sink: Sendable {
    let port: UInt16
    private let listening: Int32
    private let delay: Duration
    private let failRate: Double
    private let poller = Poller()
    private let count = Atomic<Int>(0)
    private let isStopping = Atomic<Bool>(false)
    private let keys = Mutex<[UInt64]>([])
    /// How it treats the endpoints that do not get the usual response.
    private let manners = Mutex<[Int: Manner]>([:])

    /// How it responds to requests of one endpoint.
    enum Manner {
        /// Status 500.
        case fail
        /// Status 429, retry after one second.
        case refuse
        /// No response.
        case silence
        /// The usual response, so much later.
        case slow(Duration)
        /// A JSON text of so many bytes; and so much later.
        case large(Int)
        case slowLarge(Int, Duration)
        /// Status 500 for a share of the requests.
        case failSometimes(Double)
    }

    /// From now on; nil for the usual response.
    func treat(_ endpoint: Int, _ manner: Manner?) { manners.withLock { $0[endpoint] = manner } }

    /// Listens on a free port of 127.0.0.1.
    ///
    /// - Parameters:
    ///   - delay: how long every response takes.
    ///   - failRate: the share of requests, 0 to 1, that gets status 500.
    init(delay: Duration, failRate: Double) throws {
        let listener = try LoopbackListener(isNonBlocking: true)
        listening = listener.descriptor
        port = listener.port
        self.delay = delay
        self.failRate = failRate
        do { try Thread("sink") { self.loop() } } catch {
            listener.close()
            throw error
        }
    }

    var url: String { "http://127.0.0.1:\(port)" }

    /// How many requests got a response since the last count.
    var served: Int { count.load(ordering: .relaxed) }

    /// The total number of requests, and of different deliveries. Resets the counts.
    func takeStock() -> (requests: Int, deliveries: Int) {
        var taken = keys.withLock { keys in
            defer { keys = [] }
            return keys
        }
        count.store(0, ordering: .relaxed)
        taken.sort()
        var distinct = 0
        for index in taken.indices where index == 0 || taken[index] != taken[index - 1] { distinct += 1 }
        return (taken.count, distinct)
    }

    /// Ends the thread, which closes everything.
    func stop() {
        isStopping.store(true, ordering: .sequentiallyConsistent)
        poller.wakeUp()
    }

    // MARK: The sink's thread

    private struct Due {
        let at: ContinuousClock.Instant
        let connection: SinkConnection
        let answer: [UInt8]
    }

    private func loop() {
        poller.watch(listening)
        var connections: [Int32: SinkConnection] = [:]
        var due: [Due] = []
        var nextDue = 0
        // Of endpoints that have a delay of their own.
        var slow: [Due] = []
        while !isStopping.load(ordering: .relaxed) {
            var timeout: Int32 = -1
            if nextDue < due.count {
                let left = due[nextDue].at - .now
                timeout =
                    left <= .zero
                    ? 0
                    : Int32(left.components.seconds * 1000 + left.components.attoseconds / 1_000_000_000_000_000 + 1)
            }
            if !slow.isEmpty { timeout = timeout < 0 ? 20 : min(timeout, 20) }
            poller.wait(upTo: timeout) { descriptor in
                if descriptor == listening {
                    accept(into: &connections)
                    return
                }
                guard let connection = connections[descriptor] else { return }
                let isOpen = connection.read { key in
                    keys.withLock { $0.append(key) }
                    guard let (bytes, later) = answer(to: Int(key % 4096)) else { return }
                    if let later {
                        slow.append(Due(at: .now + later, connection: connection, answer: bytes))
                    } else if delay == .zero {
                        answer(connection, bytes)
                    } else {
                        due.append(Due(at: .now + delay, connection: connection, answer: bytes))
                    }
                }
                if !isOpen {
                    connections[descriptor] = nil
                    connection.close()
                }
            }
            // The delay is the same for all, so the responses fall due in the order of the
            // requests.
            let now = ContinuousClock.now
            if !slow.isEmpty {
                for due in slow where due.at <= now { answer(due.connection, due.answer) }
                slow.removeAll { $0.at <= now }
            }
            while nextDue < due.count, due[nextDue].at <= now {
                answer(due[nextDue].connection, due[nextDue].answer)
                nextDue += 1
            }
            if nextDue > 10_000, nextDue * 2 > due.count {
                due.removeFirst(nextDue)
                nextDue = 0
            }
        }
        for connection in connections.values { connection.close() }
        close(listening)
    }

    private func accept(into connections: inout [Int32: SinkConnection]) {
        while true {
            let descriptor = Glibc.accept(listening, nil, nil)
            guard descriptor >= 0 else { return }
            _ = fcntl(descriptor, F_SETFL, O_NONBLOCK)
            _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
            var on: Int32 = 1
            setsockopt(descriptor, Int32(IPPROTO_TCP), TCP_NODELAY, &on, socklen_t(MemoryLayout<Int32>.size))
            connections[descriptor] = SinkConnection(descriptor)
            poller.watch(descriptor)
        }
    }

    /// The response and, where the endpoint has one, its own delay; nil for none.
    private func answer(to endpoint: Int) -> ([UInt8], Duration?)? {
        switch manners.withLock({ $0[endpoint] }) {
        case .fail: (Self.failure, nil)
        case .refuse: (Self.refusal, nil)
        case .silence: nil
        case .slow(let delay): (Self.success, delay)
        case .large(let size): (Self.large(size), nil)
        case .slowLarge(let size, let delay): (Self.large(size), delay)
        case .failSometimes(let rate): (Double.random(in: 0..<1) < rate ? Self.failure : Self.success, nil)
        case nil: (failRate > 0 && Double.random(in: 0..<1) < failRate ? Self.failure : Self.success, nil)
        }
    }

    private func answer(_ connection: SinkConnection, _ bytes: [UInt8]) {
        connection.write(bytes)
        count.wrappingAdd(1, ordering: .relaxed)
    }

    /// JSON of about so many bytes.
    private static func large(_ size: Int) -> [UInt8] {
        let body = #"{"filler":""# + String(repeating: "abcdefgh", count: size / 8) + #""}"#
        return Array(
            "HTTP/1.1 200 OK\r\nContent-Length: \(body.utf8.count)\r\nContent-Type: application/json\r\n\r\n\(body)"
                .utf8)
    }

    private static let success = Array(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok".utf8)
    private static let refusal = Array(
        "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n".utf8)
    private static let failure = Array(
        "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nContent-Type: text/plain\r\n\r\nfail".utf8)
}

/// One connection of the sink: finds requests in the bytes and tells them apart by path and
/// `webhook-id`.
private final class SinkConnection {
    private let descriptor: Int32
    private var isClosed = false
    private let buffer: UnsafeMutableRawBufferPointer
    private var filled = 0
    /// Bodies larger than the product's default limit do not fit, and end the connection.
    private static let room = 64 * 1024
    private var skip = 0

    init(_ descriptor: Int32) {
        self.descriptor = descriptor
        buffer = .allocate(byteCount: Self.room, alignment: 1)
    }

    deinit { buffer.deallocate() }

    func close() {
        isClosed = true
        Glibc.close(descriptor)
    }

    func write(_ bytes: [UInt8]) {
        // A closed peer is noticed at the next read; few responses are too large for the socket's
        // buffer.
        var sent = 0
        while !isClosed, sent < bytes.count {
            let count = bytes.withUnsafeBytes {
                send(descriptor, $0.baseAddress.map { $0 + sent }, $0.count - sent, Int32(MSG_NOSIGNAL))
            }
            if count > 0 { sent += count; continue }
            guard count < 0, errno == EAGAIN else { return }
            var wanted = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
            if poll(&wanted, 1, 100) <= 0 { return }
        }
    }

    /// Reads the available bytes and passes on each complete request's key; false at the
    /// connection's end.
    func read(_ request: (UInt64) -> Void) -> Bool {
        let count = Glibc.read(descriptor, buffer.baseAddress.map { $0 + filled }, Self.room - filled)
        if count <= 0 { return count < 0 && (errno == EAGAIN || errno == EINTR) }
        filled += count
        var start = 0
        while true {
            // The rest of a body that is larger than the buffer is not kept.
            let skipped = min(skip, filled - start)
            skip -= skipped
            start += skipped
            guard skip == 0, let head = head(from: start) else { break }
            request(head.key)
            let missing = head.end + head.bodyLength - filled
            skip = max(0, missing)
            start = min(filled, head.end + head.bodyLength)
        }
        if start > 0 {
            if start < filled, let base = buffer.baseAddress { memmove(base, base + start, filled - start) }
            filled -= start
        }
        return filled < Self.room
    }

    /// A header block that has come in completely.
    private func head(from start: Int) -> (end: Int, bodyLength: Int, key: UInt64)? {
        guard let base = buffer.baseAddress, let newline = memchr(base + start, 10, filled - start) else { return nil }
        var lineStart = newline - UnsafeMutableRawPointer(base) + 1
        // "POST /e/12 HTTP/1.1": the number in the path is the endpoint's.
        var endpoint: UInt64 = 0
        var position = start
        while position < lineStart, buffer[position] != 0x20 { position += 1 }
        position += 1
        while position < lineStart, buffer[position] != 0x20 {
            if let digit = digit(buffer[position]) { endpoint = endpoint &* 10 &+ digit }
            position += 1
        }
        var bodyLength = 0
        var event: UInt64 = 0
        while lineStart < filled, let newline = memchr(base + lineStart, 10, filled - lineStart) {
            let lineEnd = newline - UnsafeMutableRawPointer(base)
            let length = lineEnd - lineStart
            if length <= 1 { return (lineEnd + 1, bodyLength, event &* 4096 &+ endpoint) }
            if length > 15, isHeader("content-length:", at: lineStart) {
                bodyLength = Int(number(in: (lineStart + 15)..<lineEnd))
            } else if length > 11, isHeader("webhook-id:", at: lineStart) {
                // "evt_<instance>_<id>"
                var first = lineEnd
                while first > lineStart, buffer[first - 1] != UInt8(ascii: "_") { first -= 1 }
                event = number(in: first..<lineEnd)
            }
            lineStart = lineEnd + 1
        }
        return nil
    }

    private func isHeader(_ name: StaticString, at start: Int) -> Bool {
        guard let base = buffer.baseAddress else { return false }
        return strncasecmp(
            UnsafeRawPointer(base + start).assumingMemoryBound(to: CChar.self),
            UnsafeRawPointer(name.utf8Start).assumingMemoryBound(to: CChar.self), name.utf8CodeUnitCount) == 0
    }

    private func number(in range: Range<Int>) -> UInt64 {
        var value: UInt64 = 0
        for position in range { if let digit = digit(buffer[position]) { value = value &* 10 &+ digit } }
        return value
    }

    private func digit(_ byte: UInt8) -> UInt64? { byte >= 48 && byte <= 57 ? UInt64(byte - 48) : nil }
}
