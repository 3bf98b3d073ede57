import Bytewise
import Foundation
import Outbox
import Postgres
import Receiver
import StandardWebhooks
import Synchronization
import TestSupport
import Testing
import Transport

/// OAuth2 client credentials, with a token server and a receiver that knows which tokens are good.
@Suite(.timeLimit(.minutes(15))) struct OAuthTests {
    /// Gives out tokens and counts them; all but those it has given out are refused.
    private final class TokenServer: Sendable {
        let ledger: Ledger
        private let log: Log

        private final class Log: Sendable {
            let given = Mutex(0)
        }

        init(_ answer: @escaping @Sendable (Int) -> Receiver.Response) throws {
            let log = Log()
            self.log = log
            ledger = try Ledger { _, _ in
                answer(
                    log.given.withLock { given in
                        given += 1
                        return given
                    })
            }
        }

        static func token(_ value: String, lifetime: Int = 3600) -> Receiver.Response {
            Receiver.Response(
                200, body: Array(#"{"access_token":"\#(value)","token_type":"Bearer","expires_in":\#(lifetime)}"#.utf8))
        }
    }

    private func deliver(
        _ database: TestDatabase, events: Int = 1, tokens: TokenServer, retries: [Duration] = [.zero],
        answer: @escaping @Sendable (Receiver.Request, Int) -> Receiver.Response = { _, _ in Receiver.Response() }
    ) async throws -> Delivered {
        let url = tokens.ledger.url + "/token?tenant=canary"
        return try await database.deliver(
            "SELECT outbox.publish('test') FROM generate_series(1, \(events))", retries: retries, answer: answer
        ) {
            var authentication = Authentication()
            authentication.kind = .oauth2
            authentication.tokenURL = url
            authentication.clientID = "client:1"
            authentication.scope = "a b&c"
            $0.authentication = authentication
            $0.authentication.secret = "canary secret"
            $0.maxInFlight = 8
        }
    }

    @Test func `SF-09 one token is fetched with client id and secret, and used for all requests`() async throws {
        let tokens = try TokenServer { TokenServer.token("t\($0)") }
        defer { tokens.ledger.receiver.stop() }
        let database = try await TestCluster.database()
        let delivered = try await deliver(database, events: 40, tokens: tokens)
        #expect(delivered.requests.count == 40)
        #expect(Set(delivered.requests.map { $0["Authorization"] }) == ["Bearer t1"])
        #expect(tokens.ledger.all.count == 1)
        let request = tokens.ledger.all[0]
        #expect(request.method == "POST")
        #expect(request["Content-Type"] == "application/x-www-form-urlencoded")
        #expect(request["Authorization"] == "Basic " + Data("client%3A1:canary%20secret".utf8).base64EncodedString())
        #expect(String(decoding: request.body, as: UTF8.self) == "grant_type=client_credentials&scope=a%20b%26c")
        for table in ["outbox.endpoint", "outbox.audit", "outbox.attempt"] {
            let text = try await database.column("SELECT t::text FROM \(raw: table) t").compactMap(\.self).joined()
            #expect(!text.contains("canary secret"), "\(table)")
        }
    }

    @Test func `SF-09 after a 401 a new token is fetched and the request repeated once, on the record`() async throws {
        let tokens = try TokenServer { TokenServer.token("t\($0)") }
        defer { tokens.ledger.receiver.stop() }
        let delivered = try await deliver(
            try await TestCluster.database(), tokens: tokens, retries: [],
            answer: { request, _ in Receiver.Response(request["Authorization"] == "Bearer t1" ? 401 : 200) })
        #expect(delivered.requests.map { $0["Authorization"] } == ["Bearer t1", "Bearer t2"])
        #expect(delivered.attempts == ["failure 401 auth", "success 200"])
        #expect(tokens.ledger.all.count == 2)
    }

    @Test func `SF-09 a receiver that refuses every token is tried again by the schedule only`() async throws {
        let tokens = try TokenServer { TokenServer.token("t\($0)") }
        defer { tokens.ledger.receiver.stop() }
        let delivered = try await deliver(
            try await TestCluster.database(), tokens: tokens, retries: [.zero, .zero],
            answer: { _, _ in Receiver.Response(401) })
        // One more than the schedule has would be a loop.
        #expect(delivered.requests.count == 3)
        #expect(delivered.dead.count == 1)
    }

    @Test func `SF-09 many requests that are refused at the same time are repeated once each, not for ever`()
        async throws
    {
        let tokens = try TokenServer { TokenServer.token("t\($0)") }
        defer { tokens.ledger.receiver.stop() }
        let delivered = try await deliver(
            try await TestCluster.database(), events: 4, tokens: tokens, retries: [],
            answer: { _, _ in Receiver.Response(401, delay: .milliseconds(20)) })
        // Fewer failures than open the breaker, which would end it, too.
        #expect(delivered.requests.count == 8)
        #expect(delivered.dead.count == 4)
    }

    @Test func `a request that cannot be built lets the next one through, also when its token comes late`() async throws
    {
        // Every token is good for one request only, so each comes on the transport's thread.
        let tokens = try TokenServer { TokenServer.token("t\($0)", lifetime: 30) }
        defer { tokens.ledger.receiver.stop() }
        let url = tokens.ledger.url + "/token"
        let delivered = try await TestCluster.database().deliver(
            "SELECT outbox.publish('test', json_build_object('x', repeat('y', n))) FROM unnest(ARRAY[500, 1, 500, 1]) n"
        ) {
            var authentication = Authentication()
            authentication.kind = .oauth2
            authentication.tokenURL = url
            authentication.clientID = "c"
            $0.authentication = authentication
            $0.authentication.secret = "s"
            $0.maxInFlight = 1
            $0.format = .raw
            $0.maxBodyBytes = 100
        }
        #expect(delivered.requests.count == 2)
        #expect(delivered.dead.count == 2)
    }

    @Test(arguments: [
        (Receiver.Response(500), "HTTP 500"),
        (
            Receiver.Response(400, body: Array(#"{"error":"invalid_client","error_description":"canary"}"#.utf8)),
            "HTTP 400, invalid_client"
        ),
        (Receiver.Response(200, body: Array("not json".utf8)), "the response is not JSON"),
        (Receiver.Response(200, body: Array(#"{"access_token":"x","token_type":"mac"}"#.utf8)), "type is not bearer"),
        (
            Receiver.Response(200, body: Array(#"{"access_token":"a\r\nX: canary","token_type":"bearer"}"#.utf8)),
            "none that a header can hold"
        ),
        (Receiver.Response(302, headers: [("Location", "http://127.0.0.1:1/")]), "HTTP 302"),
        (Receiver.Response(manner: .hangUp), "connection_lost"),
    ])
    func `SF-09 without a token nothing is sent, the reason names the token URL and no secret, and it is tried again`(
        answer: Receiver.Response, reason: String
    ) async throws {
        let tokens = try TokenServer { $0 == 1 ? answer : TokenServer.token("good") }
        defer { tokens.ledger.receiver.stop() }
        let database = try await TestCluster.database()
        let delivered = try await deliver(database, tokens: tokens)
        #expect(delivered.attempts == ["failure auth", "success 200"])
        #expect(delivered.requests.map { $0["Authorization"] } == ["Bearer good"])
        let error = try #require(
            try await database.column("SELECT error FROM outbox.attempt WHERE outcome = 'failure'").first ?? nil)
        #expect(error.contains(tokens.ledger.url + "/token: "), "\(error)")
        #expect(error.contains(reason), "\(error)")
        #expect(!error.contains("canary"), "\(error)")
    }

    @Test(arguments: [
        (201, #"{"access_token":"t","token_type":"bearer"}"#), (200, #"{"access_token":"t"}"#),
        (200, "\u{FEFF}{\"access_token\":\"t\"}"),
        (200, "{\"access_token\":\"\(String(repeating: "t", count: 8192))\",\"token_type\":\"Bearer\"}"),
    ]) func `SF-09 a token is taken as token servers give it`(status: Int, body: String) async throws {
        let tokens = try TokenServer { _ in Receiver.Response(status, body: Array(body.utf8)) }
        defer { tokens.ledger.receiver.stop() }
        let delivered = try await deliver(try await TestCluster.database(), tokens: tokens)
        #expect(delivered.attempts == ["success 200"], "\(delivered.error ?? "")")
        #expect(delivered.requests.first?["authorization"]?.hasPrefix("Bearer t") == true)
    }

    @Test(arguments: [
        (#"{"error":"invalid_client"}"#, "HTTP 200, invalid_client"),
        (#"{"token_type":"bearer"}"#, "has no access_token"),
        (#"{"access_token":"t","token_type":"mac"}"#, "type is not bearer"),
        (#"{"access_token":"a b"}"#, "none that a header can hold"),
        ("{\"access_token\":\"\(String(repeating: "t", count: 20_000))\"}", "has 20000 bytes, and at most 16384"),
    ]) func `SF-09 what is no token is reported as what it is`(body: String, reason: String) async throws {
        let tokens = try TokenServer { _ in Receiver.Response(200, body: Array(body.utf8)) }
        defer { tokens.ledger.receiver.stop() }
        let delivered = try await deliver(try await TestCluster.database(), tokens: tokens, retries: [])
        #expect(delivered.requests.isEmpty)
        #expect(delivered.error?.contains(reason) == true, "\(delivered.error ?? "")")
    }

    @Test func `SF-09 a client may show who it is in the body`() async throws {
        let client = OAuthClient(
            tokenURL: "https://example.com/token", clientID: "a&b", clientSecret: "c=d", scope: nil, proof: .post)
        let request = try client.request(timeout: .seconds(1))
        #expect(!request.headers.all.contains { $0.name == "Authorization" })
        #expect(
            String(decoding: request.body, as: UTF8.self)
                == "grant_type=client_credentials&client_id=a%26b&client_secret=c%3Dd")
    }

    @Test func `a token is fetched anew before it expires`() async throws {
        // Less than the margin of a minute: each is good for the requests that waited for it, and
        // no others.
        let tokens = try TokenServer { TokenServer.token("t\($0)", lifetime: 30) }
        defer { tokens.ledger.receiver.stop() }
        let delivered = try await deliver(
            try await TestCluster.database(), tokens: tokens, retries: [.zero],
            answer: { _, before in Receiver.Response(before == 0 ? 500 : 200) })
        #expect(delivered.requests.map { $0["Authorization"] } == ["Bearer t1", "Bearer t2"])
    }

    @Test func `the token URL is under the address policy, when it is saved and when it is called`() async throws {
        let database = try await TestCluster.database()
        var change = EndpointConfiguration(name: "endpoint", url: "https://example.com/")
        var authentication = Authentication()
        authentication.kind = .oauth2
        authentication.tokenURL = "http://169.254.169.254/token"
        authentication.clientID = "c"
        authentication.secret = "s"
        change.authentication = authentication
        let refusal = await #expect(throws: Problem.self) {
            try await database.pool.run { [change] in
                _ = try $0.createEndpoint(
                    change, secret: .generate(), keyring: TestWorker.keyring, policy: AddressPolicy())
            }
        }
        #expect(refusal?.message.contains("the token URL leads to 169.254.169.254") == true)
        // Called it is on this machine, whatever becomes of the token.
        let ledger = try Ledger()
        defer { ledger.receiver.stop() }
        change.url = ledger.url
        _ = try await database.pool.run { [change] in
            try $0.createEndpoint(change, secret: .generate(), keyring: TestWorker.keyring)
        }
        try await database.script("UPDATE outbox.endpoint SET retry_schedule = '{}'")
        try await database.publish()
        try await TestWorker.run(database) {
            let isDead = try await eventually { try await database.deliveries("dead") == 1 }
            #expect(isDead)
        }
        let error = try await database.column("SELECT error FROM outbox.attempt").first ?? nil
        #expect(error?.contains("blocked_address") == true, "\(error ?? "")")
        #expect(ledger.all.isEmpty)
    }

    @Test func `a receiver that refuses every token is tried again at once only after the first attempt`() async throws
    {
        for (retries, expected) in [
            ([Duration](), 2), ([.milliseconds(10)], 2), ([.milliseconds(10), .milliseconds(10)], 3),
        ] {
            let tokens = try TokenServer { TokenServer.token("t\($0)", lifetime: 1) }
            defer { tokens.ledger.receiver.stop() }
            let database = try await TestCluster.database()
            let delivered = try await deliver(database, tokens: tokens, retries: retries) { _, _ in
                Receiver.Response(401)
            }
            #expect(delivered.requests.count == expected, "\(retries)")
            #expect(delivered.attempts.count == expected)
            #expect(delivered.dead.first?.hasPrefix("exhausted") == true)
        }
    }
}
