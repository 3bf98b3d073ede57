import Receiver
import TestSupport
import Testing
import Transport

/// Real TLS against servers that are wrong in different ways.
@Suite(.timeLimit(.minutes(15))) struct TLSTests {
    private let local = AddressPolicy(allowing: ["127.0.0.0/8"].compactMap(Network.init))

    private func with<Value>(_ body: (TLSServers, Transport) async throws -> Value) async throws -> Value {
        let servers = try await TLSServers()
        let transport = try Transport(policy: local)
        do {
            let value = try await body(servers, transport)
            await transport.stop()
            await servers.stop()
            return value
        } catch {
            await transport.stop()
            await servers.stop()
            throw error
        }
    }

    private func request(_ url: String, _ tls: HTTPRequest.TLS, http2: Bool = false) -> HTTPRequest {
        var request = HTTPRequest(url: url, body: Array("{}".utf8), timeout: .seconds(5))
        request.tls = tls
        request.allowsHTTP2 = http2
        return request
    }

    /// Requests to such a receiver end by themselves long before their time, and others beside them
    /// go on.
    private func expectHarmless(
        _ flooding: HTTPRequest, _ transport: Transport, hasBegun: @escaping @Sendable () -> Bool
    ) async throws -> [HTTPExchange] {
        let ledger = try Ledger()
        var request = flooding
        request.timeout = .seconds(600)
        let flooded = (1...3).map { [request] _ in Task { await transport.send(request) } }
        #expect(await eventually { hasBegun() })
        for _ in 1...100 { #expect(await transport.send(HTTPRequest(url: ledger.url)).status == 200) }
        var exchanges: [HTTPExchange] = []
        for task in flooded { exchanges.append(await task.value) }
        ledger.receiver.stop()
        return exchanges
    }

    @Test(.timeLimit(.minutes(2)))
    func `a receiver of HTTP/2 that sends empty frames for ever is left, and delays nobody`()
        async throws
    {
        try await with { servers, transport in
            let trusting = HTTPRequest.TLS(authorities: try servers.pem("ca"))
            let exchanges = try await expectHarmless(
                request(servers.url("h2_empty"), trusting, http2: true), transport
            ) { servers.requests("h2_empty") == 3 }
            // Its status says that it has taken the event.
            #expect(exchanges.allSatisfy { $0.status == 200 && !$0.isBodyComplete })
        }
    }

    @Test(
        .timeLimit(.minutes(2)),
        arguments: [
            // An extension of a chunk that never ends.
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
            // Trailers, one after the other.
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
            // Responses that are none yet.
            "HTTP/1.1 100 Continue\r\n\r\n",
        ])
    func `a receiver that sends for ever what is no response is left, and delays nobody`(head: String) async throws {
        let endless = head.hasSuffix(";") ? "extension" : head.hasSuffix("0\r\n") ? "X-A: b\r\n" : head
        let receiver = try RawReceiver(
            endless: Array(repeating: Array(endless.utf8), count: 65_536 / endless.utf8.count).flatMap(\.self)
        ) { _ in Array(head.utf8) }
        let transport = try Transport(policy: local)
        var request = HTTPRequest(url: receiver.url)
        request.method = .get
        let exchanges = try await expectHarmless(request, transport) { receiver.requests.count == 3 }
        #expect(exchanges.allSatisfy { $0.status == (head.contains("200") ? 200 : nil) && !$0.isBodyComplete })
        await transport.stop()
        receiver.stop()
    }

    @Test func `each way of being wrong is a class of its own, and never leads to a request`() async throws {
        try await with { servers, transport in
            let trusting = HTTPRequest.TLS(authorities: try servers.pem("ca"))
            for (name, failure) in [
                ("expired", HTTPExchange.Failure.tlsExpired), ("self_signed", .tlsSelfSigned),
                ("wrong_host", .tlsWrongHost), ("missing_intermediate", .tlsUnknownIssuer),
                ("old_protocol", .tlsOldProtocol),
            ] {
                let exchange = await transport.send(request(servers.url(name), trusting))
                #expect(exchange.failure == failure, "\(name): \(exchange.message ?? "")")
                #expect(exchange.status == nil)
                #expect(!exchange.mayHaveBeenSent)
                #expect(servers.requests(name) == 0)
            }
            for name in ["good", "full_chain"] {
                let exchange = await transport.send(request(servers.url(name), trusting))
                #expect(exchange.status == 200, "\(name): \(exchange.message ?? "")")
            }
            // Without that authority the same server is not trusted, also not over a connection
            // that is open already.
            let exchange = await transport.send(request(servers.url("good"), HTTPRequest.TLS()))
            #expect(exchange.failure == .tlsUnknownIssuer, "\(exchange.message ?? "")")
        }
    }

    @Test func `a client certificate is shown where it is wanted, and never shared with another endpoint`() async throws
    {
        try await with { servers, transport in
            let authority = try servers.pem("ca")
            let url = servers.url("client_required")
            let client = HTTPRequest.TLS(
                authorities: authority, certificate: try servers.pem("client"),
                key: try servers.pem("client", key: true))
            let stranger = HTTPRequest.TLS(
                authorities: authority, certificate: try servers.pem("stranger"),
                key: try servers.pem("stranger", key: true))
            let known = await transport.send(request(url, client))
            #expect(known.status == 200, "\(known.message ?? "")")
            #expect(String(decoding: known.body, as: UTF8.self) == #"{"client": ["client"]}"#)
            // The connection of the first stays open; these must not use it.
            for tls in [HTTPRequest.TLS(authorities: authority), stranger] {
                let exchange = await transport.send(request(url, tls))
                // A server that refuses after the handshake (TLS 1.3) may reset the connection
                // before its reason can be read.
                let reasons: [HTTPExchange.Failure] = [.tlsClientCertificate, .connectionLost]
                #expect(exchange.failure.map(reasons.contains) == true, "\(exchange.message ?? "")")
            }
            #expect(servers.requests("client_required") == 1)
            let mismatched = HTTPRequest.TLS(
                authorities: authority, certificate: try servers.pem("client"), key: try servers.pem("good", key: true))
            let exchange = await transport.send(request(url, mismatched))
            #expect(exchange.failure == .tls, "\(exchange.message ?? "")")
        }
    }

    @Test func `HTTP/2 is used where it is allowed, and a refused stream is not sent again behind our back`()
        async throws
    {
        try await with { servers, transport in
            let trusting = HTTPRequest.TLS(authorities: try servers.pem("ca"))
            let good = await transport.send(request(servers.url("h2"), trusting, http2: true))
            #expect(good.status == 200, "\(good.message ?? "")")
            #expect(String(decoding: good.body, as: UTF8.self) == "two")
            for name in ["h2_refused", "h2_goaway"] {
                let exchange = await transport.send(request(servers.url(name), trusting, http2: true))
                #expect(exchange.status == nil)
                #expect(exchange.failure == .connectionLost, "\(name): \(exchange.message ?? "")")
                #expect(servers.requests(name) == 1, "\(name)")
            }
        }
    }
}
