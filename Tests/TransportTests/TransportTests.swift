import Glibc
import Receiver
import TestSupport
import Testing
import Transport

/// Real libcurl against a real socket.
@Suite(.timeLimit(.minutes(15))) struct TransportTests {
    private let local = AddressPolicy(allowing: ["127.0.0.0/8"].compactMap(Network.init))

    private func exchange(
        _ answer: Receiver.Response, method: HTTPRequest.Method = .post, headers: [HTTPHeader] = [],
        body: String = "{}",
        timeout: Duration = .seconds(5)
    ) async throws -> (HTTPExchange, [Receiver.Request]) {
        let ledger = try Ledger { _, _ in answer }
        let transport = try Transport(policy: local)
        let exchange = await transport.send(
            HTTPRequest(
                method: method, url: ledger.url + "/a%20b?q=1&q=%2F", headers: HTTPHeaders(headers),
                body: Array(body.utf8),
                timeout: timeout))
        await transport.stop()
        ledger.receiver.stop()
        return (exchange, ledger.all)
    }

    @Test(arguments: HTTPRequest.Method.allCases)
    func `a request arrives as it was given`(method: HTTPRequest.Method) async throws {
        let headers = [
            try HTTPHeader(name: "X-One", value: "1"), try HTTPHeader(name: "X-One", value: "2"),
            try HTTPHeader(name: "X-Empty", value: ""),
        ]
        let (exchange, requests) = try await exchange(
            Receiver.Response(201, headers: [("X-Request-Id", "r-1")]), method: method, headers: headers, body: "hello")
        #expect(exchange.status == 201)
        #expect(exchange.failure == nil)
        #expect(exchange.requestID == "r-1")
        #expect(exchange.body == Array("ok".utf8))
        #expect(exchange.timing.total > .zero)
        let request = try #require(requests.first)
        #expect(requests.count == 1)
        #expect(request.method == method.rawValue)
        #expect(request.target == "/a%20b?q=1&q=%2F")
        #expect(request.headers.filter { $0.name == "X-One" }.map(\.value) == ["1", "2"])
        #expect(request["X-Empty"]?.isEmpty == true)
        #expect(request["Expect"] == nil)
        #expect(request["Accept-Encoding"] == nil)
        #expect(request.body == (method == .get ? [] : Array("hello".utf8)))
    }

    @Test(arguments: [100, 199, 200, 202, 204, 299, 301, 302, 304, 307, 308, 400, 404, 410, 429, 500, 503, 599])
    func `the status is reported and no redirect is followed`(status: Int) async throws {
        let canary = try Ledger()
        let (exchange, requests) = try await exchange(
            Receiver.Response(status, headers: [("Location", canary.url)]), timeout: .seconds(1))
        // A final 1xx is no response: the client goes on waiting for one.
        #expect(exchange.status == (status < 200 ? nil : status))
        #expect(requests.count == 1)
        #expect(canary.all.isEmpty)
        canary.receiver.stop()
    }

    @Test func `a large body is read only so far, and its 2xx counts`() async throws {
        let (exchange, _) = try await exchange(Receiver.Response(200, manner: .endlessBody))
        #expect(exchange.status == 200)
        #expect(exchange.body.count == 16 * 1024)
    }

    @Test func `a body of moderate size is cut but the connection is kept`() async throws {
        let ledger = try Ledger { _, _ in Receiver.Response(200, body: [UInt8](repeating: 1, count: 100_000)) }
        let transport = try Transport(policy: local)
        for _ in 0..<2 {
            let exchange = await transport.send(HTTPRequest(url: ledger.url))
            #expect(exchange.status == 200)
            #expect(exchange.body.count == 16 * 1024)
        }
        #expect(Set(ledger.all.map(\.connection)) == [1])
        await transport.stop()
        ledger.receiver.stop()
    }

    @Test func `a 2xx whose body stalls counts when the time is up`() async throws {
        let (exchange, _) = try await exchange(Receiver.Response(200, manner: .stall), timeout: .milliseconds(300))
        #expect(exchange.status == 200)
        #expect(exchange.failure == nil)
    }

    @Test func `a dripping 503 is a 503`() async throws {
        let answer = Receiver.Response(503, body: Array(repeating: 65, count: 1000), manner: .drip(.milliseconds(50)))
        let (exchange, _) = try await exchange(answer, timeout: .milliseconds(300))
        #expect(exchange.status == 503)
    }

    @Test(arguments: [
        (Receiver.Response(manner: .silence), HTTPExchange.Failure.timeout),
        (Receiver.Response(manner: .hangUp), .connectionLost),
        (Receiver.Response(manner: .bytes(Array("SSH-2.0-x\r\n".utf8))), .protocolError),
    ])
    func `no response has a class of its own`(answer: Receiver.Response, failure: HTTPExchange.Failure) async throws {
        let (exchange, requests) = try await exchange(answer, timeout: .milliseconds(500))
        #expect(exchange.status == nil)
        #expect(exchange.failure == failure)
        #expect(exchange.mayHaveBeenSent)
        #expect(requests.count == 1)
    }

    @Test(arguments: [
        ("HTTP/1.1 200 OK\r\nContent-Ty", "the connection ended before the response's header did"),
        ("HTTP/1.1 200 OK\r\n\0bad\r\n\r\n", "or a line in it is no field"),
        (
            "HTTP/1.1 200 OK\r\nA" + String(repeating: "a", count: 200_000) + ": b\r\n\r\n",
            "a line of the response's header is too long"
        ),
        (
            "HTTP/1.1 200 OK\r\n" + String(repeating: "A: \(String(repeating: "a", count: 1000))\r\n", count: 400)
                + "\r\n", "Too large"
        ),
        (String(repeating: "HTTP/1.1 100 Continue\r\n\r\n", count: 20_000), "Too large"),
        ("HTTP/1.1 2OO\r\n\r\n", "Unsupported response code"),
    ])
    func `what is wrong with a response's header is said, and is the receiver's fault`(answer: String, text: String)
        async throws
    {
        let (exchange, _) = try await exchange(Receiver.Response(manner: .bytes(Array(answer.utf8))))
        #expect(exchange.status == nil)
        #expect(exchange.failure == .protocolError)
        #expect(exchange.message?.contains(text) == true, "\(exchange.message ?? "")")
    }

    @Test func `a flood of headers ends the exchange`() async throws {
        let (exchange, _) = try await exchange(Receiver.Response(200, manner: .endlessHeader))
        #expect(exchange.status == nil)
        #expect(exchange.failure != nil)
    }

    @Test func `a reused connection that dies is reported, and the request is not sent again in silence`() async throws
    {
        // Every second request on a connection is read and then hung up on: libcurl would send it
        // again by itself.
        let ledger = try Ledger { request, before in
            before % 2 == 0 ? Receiver.Response() : Receiver.Response(manner: .hangUp)
        }
        let transport = try Transport(policy: local)
        var outcomes: [String] = []
        for _ in 0..<6 {
            let exchange = await transport.send(HTTPRequest(url: ledger.url, body: Array("x".utf8)))
            outcomes.append(exchange.status.map(String.init) ?? exchange.failure?.rawValue ?? "-")
        }
        #expect(outcomes == ["200", "connection_lost", "200", "connection_lost", "200", "connection_lost"])
        #expect(ledger.all.count == 6)
        await transport.stop()
        ledger.receiver.stop()
    }

    @Test func `a forbidden address gets no connection`() async throws {
        let ledger = try Ledger()
        let transport = try Transport(policy: AddressPolicy())
        for host in ["127.0.0.1", "localhost", "127.1", "0x7f000001", "[::ffff:127.0.0.1]", "0.0.0.0"] {
            let exchange = await transport.send(HTTPRequest(url: "http://\(host):\(ledger.receiver.port)/"))
            #expect(exchange.failure == .blockedAddress, "\(host)")
            #expect(!exchange.mayHaveBeenSent)
        }
        #expect(ledger.all.isEmpty)
        await transport.stop()
        ledger.receiver.stop()
    }

    @Test func `nobody listening and no such name are told apart`() async throws {
        // Bound, so that nobody else gets the port, and not listening.
        let bound = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        defer { close(bound) }
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let isBound = withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { pointer in
                bind(bound, pointer, length) == 0 && getsockname(bound, pointer, &length) == 0
            }
        }
        try #require(isBound)
        let port = UInt16(bigEndian: address.sin_port)
        let transport = try Transport(policy: local)
        #expect(await transport.send(HTTPRequest(url: "http://127.0.0.1:\(port)/")).failure == .connect)
        #expect(await transport.send(HTTPRequest(url: "http://no-such-host.invalid/")).failure == .dns)
        #expect(await transport.send(HTTPRequest(url: "ftp://127.0.0.1/")).failure == .invalidRequest)
        await transport.stop()
    }

    @Test func `plain HTTP on a TLS port is a TLS failure`() async throws {
        let ledger = try Ledger { _, _ in Receiver.Response() }
        let transport = try Transport(policy: local)
        let url = ledger.url.replacing("http://", with: "https://")
        let exchange = await transport.send(HTTPRequest(url: url, timeout: .seconds(2)))
        #expect(exchange.status == nil)
        #expect(!exchange.mayHaveBeenSent)
        await transport.stop()
        ledger.receiver.stop()
    }

    @Test func `a cancelled request ends at once and says so`() async throws {
        let arrived = Flag(false)
        let ledger = try Ledger { _, _ in
            arrived.isSet = true
            return Receiver.Response(manner: .silence)
        }
        let transport = try Transport(policy: local)
        let request = HTTPRequest(url: ledger.url, timeout: .seconds(60))
        let task = Task { await transport.send(request) }
        #expect(await eventually { arrived.isSet })
        task.cancel()
        let exchange = await task.value
        #expect(exchange.failure == .cancelled)
        #expect(exchange.mayHaveBeenSent)
        await transport.stop()
        ledger.receiver.stop()
    }

    @Test func `a task that is cancelled already sends nothing`() async throws {
        let ledger = try Ledger()
        let transport = try Transport(policy: local)
        let url = ledger.url
        let exchange = await Task {
            withUnsafeCurrentTask { $0?.cancel() }
            return await transport.send(HTTPRequest(url: url))
        }.value
        #expect(exchange.failure == .cancelled)
        #expect(!exchange.mayHaveBeenSent)
        // A later request on the same transport proves that the first was not merely late.
        _ = await transport.send(HTTPRequest(url: url, body: Array("second".utf8)))
        #expect(ledger.all.count == 1)
        await transport.stop()
        ledger.receiver.stop()
    }

    @Test func `stopping ends what is in flight and refuses what comes later`() async throws {
        let ledger = try Ledger { _, _ in Receiver.Response(manner: .silence) }
        let transport = try Transport(policy: local)
        let url = ledger.url
        async let first = transport.send(HTTPRequest(url: url, timeout: .seconds(60)))
        #expect(await eventually { ledger.all.count == 1 })
        let last = transport.submit(HTTPRequest(url: url, timeout: .seconds(60))) { _ in }
        await transport.stop()
        #expect(await first.failure == .cancelled)
        #expect(await transport.send(HTTPRequest(url: url)).failure == .cancelled)
        // What comes after the end finds nothing to touch.
        transport.cancel(last)
        await transport.stop()
        ledger.receiver.stop()
    }

    @Test func `requests are spread over threads by affinity, and those of one share a connection`() async throws {
        let receiver = try RawReceiver { _ in Array("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".utf8) }
        let transport = try Transport(policy: local, threads: 3)
        for affinity in [0, 1, 2, -1, .min, .max] {
            var request = HTTPRequest(method: .get, url: receiver.url)
            request.affinity = affinity
            for _ in 1...5 { #expect(await transport.send(request).status == 200) }
        }
        #expect(receiver.requests.count == 30 && receiver.connections == 3)
        // One that is on its way is stopped, whichever thread has it.
        let silent = try Ledger { _, _ in Receiver.Response(manner: .silence) }
        let tasks = (0..<3).map { affinity in
            Task {
                var request = HTTPRequest(url: silent.url, timeout: .seconds(60))
                request.affinity = affinity
                return await transport.send(request)
            }
        }
        #expect(await eventually { silent.all.count == 3 })
        for task in tasks { task.cancel() }
        for task in tasks { #expect(await task.value.failure == .cancelled) }
        await transport.stop()
        silent.receiver.stop()
        receiver.stop()
    }

    @Test func `many requests run at a time`() async throws {
        let ledger = try Ledger { _, _ in Receiver.Response(delay: .milliseconds(50)) }
        let transport = try Transport(policy: local)
        let url = ledger.url
        let outcomes = await withTaskGroup(of: String.self) { group in
            for _ in 0..<200 {
                group.addTask {
                    let exchange = await transport.send(HTTPRequest(url: url))
                    return exchange.status.map(String.init)
                        ?? "\(exchange.failure?.rawValue ?? "-") \(exchange.message ?? "-")"
                }
            }
            return await group.reduce(into: []) { $0.append($1) }
        }
        #expect(outcomes.count == 200)
        #expect(Set(outcomes) == ["200"])
        await transport.stop()
        ledger.receiver.stop()
    }
}
