import API
import NIOCore
import Outbox
import Postgres
import TestSupport
import Testing

/// What is not HTTP, too large or too slow costs only the connection that it came on, and is told
/// why.
@Suite(.timeLimit(.minutes(15))) struct ConnectionGuardTests {
    @Test(arguments: [
        ("nonsense\r\n\r\n", 400, "malformed_request"), ("GET / HTTP/1.1\r\n\r\n", 400, "malformed_request"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "malformed_request"),
        ("GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "malformed_request"),
        ("GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400, "malformed_request"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400,
            "malformed_request"
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400, "malformed_request"),
        ("GET /\(String(repeating: "a", count: 8192)) HTTP/1.1\r\nHost: a\r\n\r\n", 414, "uri_too_long"),
        ("GET / HTTP/1.1\r\nHost: a\r\n\(String(repeating: "A: b\r\n", count: 100))\r\n", 431, "headers_too_large"),
        ("GET / HTTP/1.1\r\nHost: a\r\nA: \(String(repeating: "b", count: 40_000))\r\n\r\n", 431, "headers_too_large"),
        ("GET / HTTP/1.1\r\nHost: a\r\nA: \(String(repeating: "b", count: 400_000))\r\n\r\n", 431, "headers_too_large"),
    ])
    func `a request that breaks the rules is answered, and the connection closed`(
        bytes: String, status: Int, code: String
    ) async throws {
        try await TestAPI.serve(try await TestCluster.database()) { api in
            let connection = try RawConnection(port: api.port)
            try await connection.send(bytes)
            let answer = try await connection.answer()
            #expect(answer.status == status && answer["Content-Type"] == "application/problem+json")
            #expect(try answer.member("code") == code)
            #expect(answer["Connection"] == "close")
            #expect(await connection.hasEnded())
            #expect(try await api.call("GET", "/livez").status == 200)
        }
    }

    @Test func `a header, a body and a pause that take too long end the connection`() async throws {
        var limits = ConnectionLimits()
        (limits.head, limits.body, limits.idle) = (.milliseconds(300), .milliseconds(300), .milliseconds(300))
        try await TestAPI.serve(try await TestCluster.database(), limits: limits) { api in
            let slowHead = try RawConnection(port: api.port)
            try await slowHead.send("GET / HTTP/1.1\r\n")
            let late = try await slowHead.answer()
            #expect(late.status == 408)
            #expect(try late.member("code") == "request_timeout")
            #expect(await slowHead.hasEnded())
            let slowBody = try RawConnection(port: api.port)
            let token = try await api.token(.publish)
            try await slowBody.send(
                "POST /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \(token)\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
            )
            let incomplete = try await slowBody.answer()
            #expect(incomplete.status == 408)
            #expect(await slowBody.hasEnded())
            let idle = try RawConnection(port: api.port)
            try await idle.send("GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            #expect(try await idle.answer().status == 200)
            #expect(await idle.hasEnded())
        }
    }

    @Test(arguments: [
        "Content-Length: 100\r\n\r\n{\"type\":\"a\"}\n",
        "Transfer-Encoding: chunked\r\n\r\nc\r\n{\"type\":\"a\"}\r\nZZ\r\n",
        "Transfer-Encoding: chunked\r\n\r\nc\r\n{\"type\":\"a\"}\r\n",
    ])
    func `half of a body is nothing that was asked for`(rest: String) async throws {
        try await TestAPI.serve(try await TestCluster.database()) { api in
            let token = try await api.token(.publish)
            let connection = try RawConnection(port: api.port)
            try await connection.send(
                "POST /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \(token)\r\nContent-Type: application/jsonl\r\n"
                    + rest)
            connection.endSending()
            // Whoever still listens is told; a connection that is gone is no reason to carry it
            // out.
            if let answer = try? await connection.answer() { #expect(answer.status == 400) }
            #expect(try await api.call("GET", "/livez").status == 200)
            #expect(try await api.database.number("SELECT count(*) FROM outbox.event") == 0)
        }
    }

    @Test func `nothing behind a request that ends the connection is carried out`() async throws {
        try await TestAPI.serve(try await TestCluster.database()) { api in
            let token = try await api.token(.publish)
            for ending in ["HTTP/1.0\r\n", "HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n"] {
                let connection = try RawConnection(port: api.port)
                let publish =
                    "POST /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \(token)\r\nContent-Length: 12\r\n\r\n{\"type\":\"a\"}"
                try await connection.send("GET /livez \(ending)\r\n" + publish)
                #expect(try await connection.answer().status == 200)
                #expect(await connection.hasEnded())
            }
            #expect(try await api.database.number("SELECT count(*) FROM outbox.event") == 0)
        }
    }

    @Test func `requests behind each other are answered in their order`() async throws {
        try await TestAPI.serve(try await TestCluster.database()) { api in
            let connection = try RawConnection(port: api.port)
            try await connection.send(
                "GET /livez HTTP/1.1\r\nHost: a\r\n\r\nGET /v1/events HTTP/1.1\r\nHost: a\r\n\r\nnonsense\r\n\r\n")
            #expect(try await connection.answer().status == 200)
            #expect(try await connection.answer().status == 401)
            #expect(try await connection.answer().status == 400)
            #expect(await connection.hasEnded())
        }
    }

    @Test func `a body is asked for when it is wanted, and refused before it is sent`() async throws {
        try await TestAPI.serve(try await TestCluster.database()) { api in
            let token = try await api.token(.publish)
            func send(_ length: Int, _ token: String) async throws -> RawConnection {
                let connection = try RawConnection(port: api.port)
                try await connection.send(
                    "POST /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \(token)\r\nContent-Type: application/json\r\n"
                        + "Content-Length: \(length)\r\nExpect: 100-continue\r\n\r\n")
                return connection
            }
            let large = try await send(99_999_999, token).answer()
            #expect(large.status == 413)
            #expect(try large.member("limit_bytes") == "16777216")
            #expect(try await send(10, "x").answer().status == 401)
            let wanted = try await send(12, token)
            #expect(try await wanted.answer().status == 100)
            try await wanted.send(#"{"type":"a"}"#)
            #expect(try await wanted.answer().status == 201)
        }
    }
}
