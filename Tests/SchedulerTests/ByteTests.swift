import Bytewise
import Outbox
import Postgres
import Receiver
import StandardWebhooks
import TestSupport
import Testing
import Transport

@testable import Scheduler

/// Texts that Swift finds equal and that are not the same bytes: é in one scalar and in two, the
/// sign of the kelvin and the letter K.
@Suite(.timeLimit(.minutes(15))) struct ByteTests {
    private static let pairs = [("caf\u{E9}", "cafe\u{301}"), ("\u{212A}", "K"), ("a\u{37E}", "a;")]

    @Test(arguments: pairs) func `the premise: to Swift they are the same`(one: String, two: String) {
        #expect(one == two)
        #expect(Array(one.utf8) != Array(two.utf8))
        #expect(ExactText(one) != ExactText(two))
        #expect(Set([ExactText(one), ExactText(two), ExactText(one)]).count == 2)
    }

    @Test func `each endpoint gets the events of its own customer, type and change type`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        let (one, two) = Self.pairs[0]
        for (number, text) in [one, two].enumerated() {
            try await database.endpoint("customer\(number)", url: ledger.url + "/customer\(number)") {
                $0.customerID = text
            }
            try await database.endpoint("type\(number)", url: ledger.url + "/type\(number)") {
                $0.eventTypes = [try EventPattern(text)]
            }
            try await database.endpoint("change\(number)", url: ledger.url + "/change\(number)") {
                $0.changeTypes = [.exact(ExactText(text))]
            }
        }
        try await TestWorker.run(database) {
            for (number, text) in [one, two].enumerated() {
                for (column, kind) in [("customer_id", "customer"), ("type", "type"), ("change_type", "change")] {
                    let columns: [String] = ["customer_id", "type", "change_type"].map { $0 == column ? text : "x" }
                    try await database.pool.execute(
                        """
                        SELECT outbox.publish(customer_id => \(columns[0]), type => \(columns[1]), change_type => \(columns[2]),
                                              after => \(JSONText(#""\#(kind)\#(number)""#)))
                        """)
                }
            }
            #expect(try await eventually { try await database.isDrained() })
        }
        let got = Set(ledger.all.map { "\($0.target) \(String(decoding: $0.body, as: UTF8.self).suffix(12))" })
        #expect(ledger.all.count == 6)
        for target in ["customer0", "customer1", "type0", "type1", "change0", "change1"] {
            #expect(got.contains { $0.hasPrefix("/\(target) ") && $0.contains("\"\(target)\"") }, "\(target) in \(got)")
        }
        ledger.receiver.stop()
    }

    @Test(arguments: pairs) func `rules read members, texts and throttling by their bytes`(one: String, two: String)
        throws
    {
        func finding(_ rule: String, _ body: String, throttled: [String] = []) throws -> ResponseRules.Finding {
            var rules = ResponseRules()
            rules.checks = rule.isEmpty ? [] : [try Check(rule)]
            rules.throttled = throttled
            return rules.judge(Array(body.utf8), isComplete: true)
        }
        func holds(_ rule: String, _ body: String) throws -> Bool { try finding(rule, body) == .success }
        for (a, b, expected) in [(one, one, true), (one, two, false), (two, one, false)] {
            #expect(try holds("string k \(a)", #"{"k":"\#(b)"}"#) == expected)
            #expect(try holds("exists \(a)", #"{"\#(b)":1}"#) == expected)
            #expect(try holds("text \(a)", b) == expected)
            #expect(try holds("contains \(a)", "x\(b)y") == expected)
            #expect(try holds("glob k *\(a)", #"{"k":"x\#(b)"}"#) == expected)
            #expect((try finding("", b, throttled: [a]) == .throttled) == expected)
        }
    }

    @Test func `a rule's text is the body's bytes, but for white space of ASCII around them`() throws {
        func holds(_ rule: String, _ body: [UInt8]) throws -> Bool {
            var rules = ResponseRules()
            rules.checks = [try Check(rule)]
            return rules.judge(body, isComplete: true) == .success
        }
        for body in ["ok", " ok", "ok\r\n", "\t ok \n"] { #expect(try holds("text ok", Array(body.utf8)), "\(body)") }
        for body in ["ok \u{338}", " \u{301}ok", "\u{2028}ok\u{85}", "\u{A0}ok", "o k", "okk", ""] {
            #expect(try !holds("text ok", Array(body.utf8)), "\(body)")
        }
        // What is no UTF-8 is not what it would be replaced with.
        #expect(try !holds("text o\u{FFFD}k", [0x6F, 0xFF, 0x6B]))
        #expect(try holds("text o\u{FFFD}k", Array("o\u{FFFD}k".utf8)))
    }

    @Test(arguments: ["text", "contains"]) func `a mark behind the space does not hide a rule's kind`(kind: String)
        throws
    {
        #expect(try Check("\(kind) \u{301}x").value == "\u{301}x")
        #expect(try Check("deny \(kind) \u{301}x").isDenial)
        let check = try Check("string a \u{301}b c")
        #expect(check.key == "a")
        #expect(ExactText(check.value) == "\u{301}b c")
    }

    @Test(arguments: [
        ("9007199254740993", "9007199254740993", true), ("9007199254740993", "9007199254740992", false),
        ("1", "1.0", true), ("1", "10e-1", true), ("0.1", "0.10000000000000001", false), ("100", "1E2", true),
        ("-0", "0", true),
        ("1e400", "1e401", false), ("1e400", "10e399", true), ("-5", "5", false), ("1200", "12e2", true),
        ("0.00120", "12e-4", true),
        ("1e99999999999999999999", "1e99999999999999999999", true),
        ("1e99999999999999999999", "1e99999999999999999998", false),
    ])
    func `numbers are compared by all their digits`(rule: String, answer: String, isEqual: Bool) throws {
        var rules = ResponseRules()
        rules.checks = [try Check("number n \(rule)")]
        #expect((rules.judge(Array(#"{"n":\#(answer)}"#.utf8), isComplete: true) == .success) == isEqual)
    }

    @Test(arguments: ["nan", "inf", "0x10", "1.", ".5", "01", "+1", "1e"]) func `what is no JSON number is no rule`(
        value: String
    ) {
        #expect(throws: Problem.self) { try Check("number n \(value)") }
    }

    @Test(arguments: pairs) func `clients of a token endpoint, keys and credentials are told apart`(
        one: String, two: String
    ) {
        func client(_ secret: String) -> OAuthClient {
            OAuthClient(tokenURL: "https://a/", clientID: "c", clientSecret: ExactText(secret), scope: nil)
        }
        #expect(client(one) != client(two))
        #expect(Set([client(one), client(two)]).count == 2)
        #expect(HTTPRequest.TLS(certificate: "c", key: one) != HTTPRequest.TLS(certificate: "c", key: two))
    }

    @Test func `a secret that is changed to its other form is changed`() async throws {
        let database = try await TestCluster.database()
        let (one, two) = Self.pairs[0]
        let ledger = try Ledger()
        var authentication = Authentication()
        authentication.kind = .bearer
        let id = try await database.endpoint("e", url: ledger.url) {
            $0.authentication = authentication
            $0.authentication.secret = .text(one)
        }.id
        try await database.pool.run { [authentication] in
            try $0.updateEndpoint(id, keyring: TestWorker.keyring) {
                $0.authentication = authentication
                $0.authentication.secret = .text(two)
            }
        }
        let endpoint = try await database.pool.run { try $0.endpoint(id, keyring: TestWorker.keyring) }
        #expect(endpoint.configuration.authentication.secret.map { Array($0.text.utf8) } == Array(two.utf8))
        ledger.receiver.stop()
    }

    @Test func `a mark that follows a delimiter does not hide it`() throws {
        // A colon ends a user's name (RFC 7617), a dot is no part of a webhook-id, and a mark
        // behind them changes neither.
        let verifier = WebhookVerifier(keys: [SigningSecret.generate().verificationKey])
        #expect(throws: WebhookVerifier.VerificationError.malformed("webhook-id contains a dot")) {
            try verifier.verify([], id: "evt_1.\u{301}2", timestamp: "0", signatures: "v1,", now: 0)
        }
        #expect(throws: Problem.self) {
            try EndpointConfiguration(name: "a:\u{301}b", url: "https://x/").validate()
        }
        var configuration = EndpointConfiguration(name: "a", url: "https://x/")
        var authentication = Authentication()
        authentication.kind = .basic
        authentication.user = "a:\u{301}"
        authentication.secret = "s"
        configuration.authentication = authentication
        #expect(throws: Problem.self) { try configuration.validate() }
    }
}
