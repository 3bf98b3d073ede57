import Receiver
import TestSupport
import Testing
import Transport

/// What a receiver says when nobody asks it is no response to what it is asked next.
@Suite(.timeLimit(.minutes(15))) struct StaleConnectionTests {
    private let local = AddressPolicy(allowing: ["127.0.0.0/8"].compactMap(Network.init))

    private func bytes(_ status: Int) -> [UInt8] {
        Array("HTTP/1.1 \(status) Unasked\r\nContent-Length: 2\r\n\r\nno".utf8)
    }

    @Test(arguments: [200, 408, 410, 429, 100]) func `a response that nobody asked for is not taken for the next one`(
        unasked: Int
    ) async throws {
        let isWritten = Flag(false)
        let stale = bytes(unasked)
        let ledger = try Ledger { request, before in
            // The second request is of another endpoint of the same host.
            var answer = Receiver.Response(before == 0 ? 200 : 500)
            if before == 0 { answer.unasked = (.milliseconds(20), stale, { isWritten.isSet = true }) }
            return answer
        }
        let transport = try Transport(policy: local)
        let first = await transport.send(HTTPRequest(url: ledger.url + "/one"))
        #expect(first.status == 200)
        #expect(await eventually { isWritten.isSet })
        let second = await transport.send(HTTPRequest(url: ledger.url + "/two"))
        #expect(second.status == 500)
        #expect(ledger.all.map(\.target) == ["/one", "/two"])
        #expect(ledger.all.map(\.connection) == [1, 2])
        // The new connection is as good as any.
        let third = await transport.send(HTTPRequest(url: ledger.url + "/three"))
        #expect(third.status == 500)
        #expect(ledger.all.map(\.connection) == [1, 2, 2])
        await transport.stop()
        ledger.receiver.stop()
    }

    /// The receiver's system holds what nobody asked for back until our system acknowledges the
    /// response before it, and ours does so with the next request, after some in quick succession.
    @Test(arguments: [200, 410]) func `nor one that the next request itself would let go`(unasked: Int) async throws {
        let isWritten = Flag(false)
        let stale = bytes(unasked)
        let ledger = try Ledger(holdsBack: true) { request, _ in
            var answer = Receiver.Response(request.target == "/two" ? 200 : 500)
            if request.target == "/two" { answer.unasked = (.zero, stale, { isWritten.isSet = true }) }
            return answer
        }
        let transport = try Transport(policy: local)
        for _ in 0..<8 { #expect(await transport.send(HTTPRequest(url: ledger.url + "/no")).status == 500) }
        #expect(await transport.send(HTTPRequest(url: ledger.url + "/two")).status == 200)
        #expect(await eventually { isWritten.isSet })
        #expect(await transport.send(HTTPRequest(url: ledger.url + "/no")).status == 500)
        #expect(ledger.all.map(\.connection) == Array(repeating: 1, count: 9) + [2])
        await transport.stop()
        ledger.receiver.stop()
    }

    /// It would come later, and be the response to what is asked then.
    @Test(arguments: [
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", 2),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", 2),
        ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", 2), ("HTTP/1.1 204 No Content\r\n\r\n", 1),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 1),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", 1),
    ])
    func `a connection with a body that must not be is not used again`(header: String, connections: Int) async throws {
        let receiver = try RawReceiver { _ in Array(header.utf8) }
        let transport = try Transport(policy: local)
        for _ in 0..<2 { #expect(await transport.send(HTTPRequest(url: receiver.url)).status != nil) }
        #expect(receiver.connections == connections)
        await transport.stop()
        receiver.stop()
    }

    @Test func `what an interim response and a trailer say is not the response's`() async throws {
        let answer = """
            HTTP/1.1 103 Early Hints\r
            Retry-After: 77\r
            X-Request-Id: early\r
            \r
            HTTP/1.1 503 Unavailable\r
            Transfer-Encoding: chunked\r
            \r
            2\r
            no\r
            0\r
            Retry-After: 88\r
            X-Request-Id: trailer\r
            \r

            """
        let receiver = try RawReceiver { _ in Array(answer.utf8) }
        let transport = try Transport(policy: local)
        for _ in 0..<2 {
            let exchange = await transport.send(HTTPRequest(url: receiver.url))
            #expect(exchange.status == 503)
            #expect(exchange.retryAfter == nil)
            #expect(exchange.requestID == nil)
            #expect(exchange.isBodyComplete)
        }
        #expect(receiver.connections == 1)
        await transport.stop()
        receiver.stop()
    }

    /// libcurl would decompress it unasked, without a limit to what it takes in for nothing that
    /// comes out.
    @Test(arguments: [
        ("gzip, chunked", 500), ("GZIP", 200), ("gzip, gzip, gzip, chunked", 500), ("chunked, deflate", 410),
        ("x-gzip", 200),
    ])
    func `a response that is compressed for the transfer counts, and its body is not read`(coding: String, status: Int)
        async throws
    {
        // "hello", as gzip has it.
        let hello: [UInt8] = [
            0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 3, 0xCB, 0x48, 0xCD, 0xC9, 0xC9, 7, 0, 0x86, 0xA6, 0x10, 0x36, 5, 0, 0, 0,
        ]
        let isChunked = coding.contains("chunked")
        let body = isChunked ? Array("19\r\n".utf8) + hello + Array("\r\n0\r\n\r\n".utf8) : hello
        let receiver = try RawReceiver { _ in
            Array("HTTP/1.1 \(status) X\r\nTransfer-Encoding: \(coding)\r\n\r\n".utf8) + body
        }
        let transport = try Transport(policy: local)
        for _ in 0..<2 {
            let exchange = await transport.send(HTTPRequest(url: receiver.url))
            #expect(exchange.status == status, "\(exchange.message ?? "")")
            #expect(exchange.body.isEmpty)
            #expect(!exchange.isBodyComplete)
        }
        #expect(receiver.connections == 2)
        await transport.stop()
        receiver.stop()
    }

    @Test func `a connection that the receiver has ended is not used, and nothing is lost by it`() async throws {
        let ledger = try Ledger { _, before in
            before == 0
                ? Receiver.Response(manner: .bytes(Array("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".utf8)))
                : Receiver.Response()
        }
        let transport = try Transport(policy: local)
        #expect(await transport.send(HTTPRequest(url: ledger.url)).status == 200)
        for _ in 0..<3 {
            let exchange = await transport.send(HTTPRequest(url: ledger.url))
            #expect(exchange.status == 200, "\(exchange.message ?? "")")
        }
        #expect(ledger.all.count == 4)
        await transport.stop()
        ledger.receiver.stop()
    }

    @Test(arguments: ["unasked", "unasked12", "pending", "garbage"]) func `the same holds over TLS`(name: String)
        async throws
    {
        let servers = try await TLSServers()
        let transport = try Transport(policy: local)
        let request = try request(to: name, of: servers)
        let first = await transport.send(request)
        #expect(first.status == 200, "\(first.message ?? "")")
        #expect(await eventually { servers.unaskedResponses(name) == 1 })
        let second = await transport.send(request)
        #expect(second.status == 500, "\(second.message ?? "")")
        #expect(servers.requests(name) == 2)
        #expect(servers.connections(name) == 2)
        await transport.stop()
        await servers.stop()
    }

    private func request(to name: String, of servers: TLSServers) throws -> HTTPRequest {
        var request = HTTPRequest(url: servers.url(name), body: Array("{}".utf8), timeout: .seconds(5))
        request.tls = HTTPRequest.TLS(authorities: try servers.pem("ca"))
        return request
    }

    /// Session tickets and the control frames of HTTP/2 wait in a connection, too, and are no
    /// answers.
    @Test(arguments: ["good", "good12", "h2"]) func `a quiet connection is used again and again`(name: String)
        async throws
    {
        let servers = try await TLSServers()
        let transport = try Transport(policy: local)
        var request = try request(to: name, of: servers)
        request.allowsHTTP2 = name == "h2"
        for _ in 0..<40 {
            let exchange = await transport.send(request)
            #expect(exchange.status == 200, "\(exchange.message ?? "")")
        }
        #expect(servers.requests(name) == 40)
        #expect(servers.connections(name) == 1)
        await transport.stop()
        await servers.stop()
    }

    @Test func `many at a time open no more connections than they need`() async throws {
        let ledger = try Ledger()
        let transport = try Transport(policy: local)
        for _ in 0..<5 {
            await withTaskGroup(of: Int?.self) { group in
                for _ in 0..<20 { group.addTask { await transport.send(HTTPRequest(url: ledger.url)).status } }
                for await status in group { #expect(status == 200) }
            }
        }
        #expect(Set(ledger.all.map(\.connection)).count <= 20)
        await transport.stop()
        ledger.receiver.stop()
    }
}
