import API
import Foundation
import Glibc
import Logging
import Operator
import Outbox
import Postgres
import ServiceLifecycle
import Synchronization
import TestSupport
import Transport

/// The API on a database of a test, in this process, on a socket.
struct TestAPI: Sendable {
    let database: TestDatabase
    let port: Int
    let desk: Operator

    /// Serves the database for the length of the closure.
    static func serve(
        _ database: TestDatabase, limits: ConnectionLimits = ConnectionLimits(), _ body: (TestAPI) async throws -> Void
    ) async throws {
        let pool = try database.newPool(size: 4, session: OperatorSession.planning)
        let keyring = TestWorker.keyring
        let desk = Operator(
            pool: pool, actor: .session, patience: .seconds(30), keyring: { keyring }, policy: { AddressPolicy() })
        let (ports, said) = AsyncStream<Int>.makeStream()
        let server = APIServer(desk, host: "127.0.0.1", port: 0, limits: limits, logger: Logger(label: "api")) {
            said.yield($0)
        }
        let group = ServiceGroup(
            configuration: ServiceGroupConfiguration(services: [.init(service: server)], logger: Logger(label: "test")))
        let running = Task { try await group.run() }
        var port = 0
        for await found in ports { port = found; break }
        let result: Result<Void, any Error>
        do { result = .success(try await body(TestAPI(database: database, port: port, desk: desk))) } catch {
            result = .failure(error)
        }
        await group.triggerGracefulShutdown()
        try await running.value
        await pool.close()
        try result.get()
    }

    /// A new token.
    func token(_ scopes: Token.Scope..., rate: String? = nil) async throws -> String {
        var wish = TokenWish(name: "test", scopes: Set(scopes))
        wish.rate = try rate.map { try RateLimit($0) }
        return try await desk.tokens.create(wish).token.text
    }

    /// One request on a connection of its own.
    func call(
        _ method: String, _ path: String, token: String? = nil, headers: [String] = [], body: String? = nil
    ) async throws -> HTTPAnswer {
        var head = ["\(method) \(path) HTTP/1.1", "Host: localhost", "Connection: close"]
        if let token { head.append("Authorization: Bearer \(token)") }
        if let body { head.append("Content-Length: \(body.utf8.count)") }
        if body != nil, !headers.contains(where: { $0.lowercased().hasPrefix("content-type") }) {
            head.append("Content-Type: application/json")
        }
        let connection = try RawConnection(port: port)
        try await connection.send((head + headers).joined(separator: "\r\n") + "\r\n\r\n" + (body ?? ""))
        return try await connection.answer()
    }
}

/// A response as it came.
struct HTTPAnswer: Sendable {
    let status: Int
    let headers: [(name: String, value: String)]
    let body: String

    /// The value of a field; nil when it is missing.
    subscript(_ name: String) -> String? { headers.first { $0.name.lowercased() == name.lowercased() }?.value }

    /// A member of the body, as plain text.
    func member(_ path: String...) throws -> String? { try Member.value(in: body, at: path) }
}

/// Members of JSON texts, as plain text.
enum Member {
    static func value(in text: String, at path: [String]) throws -> String? {
        var value = try JSONSerialization.jsonObject(with: Data(text.utf8), options: .fragmentsAllowed) as Any?
        for step in path {
            if let object = value as? [String: Any] {
                value = object[step]
            } else if let array = value as? [Any], let place = Int(step), array.indices.contains(place) {
                value = array[place]
            } else {
                return nil
            }
        }
        if value is NSNull { return nil }
        return value.map { "\($0)" }
    }
}

/// A socket on which bytes are written and read as they are.
final class RawConnection: Sendable {
    struct Failure: Error, CustomStringConvertible { let description: String }

    private let descriptor: Int32
    private let buffer = Mutex<[UInt8]>([])

    init(port: Int) throws {
        descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = in_port_t(port).bigEndian
        address.sin_addr.s_addr = inet_addr("127.0.0.1")
        let size = socklen_t(MemoryLayout<sockaddr_in>.size)
        let isConnected = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { connect(descriptor, $0, size) == 0 }
        }
        guard isConnected else { throw Failure(description: "not connected: \(errno)") }
        // Longer than any limit that a test waits for.
        var patience = timeval(tv_sec: 180, tv_usec: 0)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &patience, socklen_t(MemoryLayout<timeval>.size))
    }

    deinit { close(descriptor) }

    /// On a thread of its own: the server under test shares this process's task threads.
    private func blocking<Value: Sendable>(_ body: @escaping @Sendable () -> Value) async -> Value {
        await withCheckedContinuation { done in Thread.detachNewThread { done.resume(returning: body()) } }
    }

    func send(_ text: String) async throws {
        let bytes = Array(text.utf8)
        let descriptor = descriptor
        let sent = await blocking { Glibc.send(descriptor, bytes, bytes.count, Int32(MSG_NOSIGNAL)) }
        guard sent == bytes.count else { throw Failure(description: "sent \(sent) of \(bytes.count) bytes") }
    }

    /// Says that nothing more is sent.
    func endSending() { shutdown(descriptor, Int32(SHUT_WR)) }

    /// More bytes; false at the end.
    private func more() async -> Bool {
        let descriptor = descriptor
        let bytes = await blocking {
            var part = [UInt8](repeating: 0, count: 65_536)
            let count = recv(descriptor, &part, part.count, 0)
            return count > 0 ? Array(part.prefix(count)) : []
        }
        buffer.withLock { $0 += bytes }
        return !bytes.isEmpty
    }

    /// The next response.
    func answer(hasBody: Bool = true) async throws -> HTTPAnswer {
        let end = Array("\r\n\r\n".utf8)
        while true {
            let bytes = buffer.withLock { $0 }
            if let range = bytes.firstRange(of: end) {
                let lines = String(decoding: bytes[..<range.lowerBound], as: UTF8.self).components(separatedBy: "\r\n")
                let headers = lines.dropFirst().map { line in
                    let parts = line.split(separator: ":", maxSplits: 1).map(String.init)
                    return (name: parts[0], value: parts.count > 1 ? parts[1].trimmingCharacters(in: .whitespaces) : "")
                }
                let length = headers.first { $0.name.lowercased() == "content-length" }.flatMap { Int($0.value) } ?? 0
                let whole = range.upperBound + (hasBody ? length : 0)
                if bytes.count >= whole {
                    buffer.withLock { $0.removeFirst(whole) }
                    let status = Int(lines[0].split(separator: " ")[1]) ?? 0
                    return HTTPAnswer(
                        status: status, headers: headers,
                        body: String(decoding: bytes[range.upperBound..<whole], as: UTF8.self))
                }
            }
            guard await more() else {
                throw Failure(description: "the connection ended after \"\(String(decoding: bytes, as: UTF8.self))\"")
            }
        }
    }

    /// True when the server has closed, and nothing more has come.
    func hasEnded() async -> Bool { buffer.withLock { $0.isEmpty } ? !(await more()) : false }
}
