import Bytewise
import Foundation
import Outbox
import Postgres
import Receiver
import Scheduler
import StandardWebhooks
import TestSupport
import Testing
import Transport

/// Citrix Cloud event subscriptions.
@Suite(.timeLimit(.minutes(15))) struct CloudTests {
    private func object(_ text: String) throws -> [String: Any] {
        try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
    }

    @Test
    func `CC-08 the callback is a POST, and addresses that are not on the Internet are refused when it is created`()
        async throws
    {
        let database = try await TestCluster.database()
        let policy = AddressPolicy()
        for url in [
            "http://127.0.0.1/", "http://10.1.2.3/", "http://169.254.169.254/latest", "http://localhost/",
            "http://[::1]/",
            "http://192.168.1.1/", "http://2130706433/",
        ] {
            let wish = EndpointConfiguration(name: "callback", url: url)
            let refusal = await #expect(throws: Problem.self, "\(url)") {
                try await database.pool.run { [wish] in
                    _ = try $0.createEndpoint(wish, secret: .generate(), keyring: TestWorker.keyring, policy: policy)
                }
            }
            #expect(refusal?.message.contains("special address") == true, "\(url)")
        }
        let delivered = try await database.deliver { $0.format = .citrix }
        #expect(delivered.requests.map(\.method) == ["POST"])
    }

    @Test func `CC-08 an address is refused at the delivery, too`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        defer { ledger.receiver.stop() }
        try await database.endpoint("callback", url: ledger.url, retries: [])
        try await TestWorker.run(database, configure: { $0.policy = AddressPolicy() }) {
            try await database.publish()
            #expect(try await eventually { try await database.deliveries("dead") == 1 })
        }
        #expect(ledger.all.isEmpty)
        #expect(try await database.column("SELECT error_class FROM outbox.dead_letter") == ["blocked_address"])
    }

    @Test func `CC-09 authHeaders is the value of Authorization, verbatim`() async throws {
        let database = try await TestCluster.database()
        let delivered = try await database.deliver {
            var authentication = Authentication()
            authentication.kind = .verbatim
            $0.authentication = authentication
            $0.authentication.secret = "CwsAuth Bearer=canary,  x=\"y\""
        }
        #expect(
            delivered.requests[0].headers.filter { $0.name.lowercased() == "authorization" }.map(\.value)
                == ["CwsAuth Bearer=canary,  x=\"y\""])
        let listing = try await database.pool.run { try $0.listEndpoints() }
        #expect(listing.json.allSatisfy { !$0.contains("canary") })
    }

    @Test func `CC-09 without authHeaders there is no Authorization at all`() async throws {
        let delivered = try await TestCluster.database().deliver()
        #expect(delivered.requests[0]["Authorization"] == nil)
    }

    private static let changeTypes = ["Create", "Update", "Delete", "Login", "*"]

    @Test func `CC-10 a change type matches exactly, and only the lone * matches all`() async throws {
        let got = try await matrix(Self.changeTypes, column: "change_type") { $0.changeTypes = [Self.pattern($1)] }
        for wanted in Self.changeTypes {
            #expect(got[wanted] == (wanted == "*" ? Self.changeTypes : [wanted]), "\(wanted)")
        }
    }

    private static let eventTypes = [
        "Administrator", "ClientAdministrator", "ResourceLocation", "EdgeServers", "Notifications", "Forests",
        "Domains",
        "Entitlement", "Subscriptions", "Webhooks", "*",
    ]

    @Test func `CC-11 an event type matches exactly, and only the lone * matches all`() async throws {
        let got = try await matrix(Self.eventTypes, column: "type") { $0.eventTypes = [Self.pattern($1)] }
        for wanted in Self.eventTypes {
            #expect(got[wanted] == (wanted == "*" ? Self.eventTypes : [wanted]), "\(wanted)")
        }
    }

    @Test func `CC-12 unknown values pass unchanged, and a * inside a value is a letter`() async throws {
        let values = ["Admin*", "Administrator", "Ünknown.Type/7", "*"]
        let got = try await matrix(values, column: "type") { $0.eventTypes = [Self.pattern($1)] }
        #expect(got["Admin*"] == ["Admin*"])
        #expect(got["Ünknown.Type/7"] == ["Ünknown.Type/7"])
        #expect(got["*"] == values)
    }

    /// As the facade takes a value: the lone * is every one, and any other is itself.
    private static func pattern(_ value: String) -> EventPattern { value == "*" ? .any : .exact(ExactText(value)) }

    /// Endpoints that want each of the values, events that have each: which endpoint got which.
    private func matrix(
        _ values: [String], column: String, _ want: (inout EndpointConfiguration, String) -> Void
    ) async throws -> [String: [String]] {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        defer { ledger.receiver.stop() }
        for (index, value) in values.enumerated() {
            try await database.endpoint("e\(index)", url: ledger.url + "/\(index)") {
                $0.format = .citrix
                want(&$0, value)
            }
        }
        for value in values {
            let type = column == "type" ? value : "Any"
            let change = column == "type" ? "Create" : value
            try await database.pool.execute("INSERT INTO outbox.event (type, change_type) VALUES (\(type), \(change))")
        }
        let expected = (values.count - 1) * 2 + 1
        try await TestWorker.run(database) {
            let isDelivered = try await eventually { try await database.deliveries("delivered") >= expected }
            let isDrained = try await eventually { try await database.isDrained() }
            #expect(isDelivered && isDrained)
        }
        var got: [String: [String]] = [:]
        for request in ledger.all {
            let index = try #require(Int(request.target.dropFirst()))
            let body = try object(String(decoding: request.body, as: UTF8.self))
            got[values[index], default: []].append(
                try #require(body[column == "type" ? "Type" : "ChangeType"] as? String))
        }
        return got.mapValues { found in values.filter { found.contains($0) } }
    }

    @Test func `CC-30 the callback has eight members with these names, in this order`() async throws {
        let delivered = try await TestCluster.database().deliver { $0.format = .citrix }
        let names = delivered.body.matches(of: /"([A-Za-z]+)":/).map { String($0.1) }.filter { $0 != "n" }
        #expect(
            names == [
                "CustomerId", "Type", "ChangeType", "TransactionId", "Identity", "BeforeChange", "AfterChange",
                "TimeStamp",
            ])
    }

    @Test func `CC-31 everything of one operation has one TransactionId, also in retries`() async throws {
        let database = try await TestCluster.database()
        let delivered = try await database.deliver(
            """
            BEGIN; SELECT outbox.publish('a'); SELECT outbox.publish('b'); SELECT outbox.publish('c'); COMMIT;
            BEGIN; SELECT outbox.publish('d'); COMMIT;
            SELECT outbox.publish('e', transaction_id => '9cc8c8d0-3d24-46f4-b63c-8c5d092b7205');
            """, retries: [.zero], answer: { _, before in Receiver.Response(before < 5 ? 500 : 200) }
        ) { $0.format = .citrix }
        var ids: [String: Set<String>] = [:]
        for request in delivered.requests {
            let body = try object(String(decoding: request.body, as: UTF8.self))
            let id = try #require(body["TransactionId"] as? String)
            #expect(request["Outbox-Transaction-Id"] == id)
            ids[try #require(body["Type"] as? String), default: []].insert(id)
        }
        #expect(delivered.requests.count == 10)
        #expect(ids.values.allSatisfy { $0.count == 1 })
        #expect(ids["a"] == ids["b"] && ids["b"] == ids["c"])
        #expect(ids["a"] != ids["d"])
        #expect(ids["e"] == ["9cc8c8d0-3d24-46f4-b63c-8c5d092b7205"])
        #expect(
            try await database.number("SELECT count(DISTINCT transaction_id) FROM outbox.deliveries") == 3)
    }

    @Test func `CC-32 Identity is who did it: the caller's word, the operation's, or the session's user`() async throws
    {
        let delivered = try await TestCluster.database().deliver(
            """
            SELECT outbox.publish('said', identity => 'tom.kludy@citrix.com');
            BEGIN; SELECT outbox.begin_operation(identity => 'joe'); SELECT outbox.publish('operation'); COMMIT;
            SELECT outbox.publish('nobody');
            """
        ) { $0.format = .citrix }
        var identities: [String: String] = [:]
        for request in delivered.requests {
            let body = try object(String(decoding: request.body, as: UTF8.self))
            identities[try #require(body["Type"] as? String)] = try #require(body["Identity"] as? String)
        }
        #expect(identities["said"] == "tom.kludy@citrix.com")
        #expect(identities["operation"] == "joe")
        #expect(identities["nobody"]?.contains("test/") == false && identities["nobody"]?.isEmpty == false)
    }

    @Test func `CC-33 Before and After are strings that hold the producer's JSON byte for byte, or null`() async throws
    {
        let inner = #"{"t":"2018-04-24T15:15:17.0668796Z","z":1,"a":12345678901234567890,"e":1.50,"s":"é \"q\""}"#
        let delivered = try await TestCluster.database().deliver(
            "SELECT outbox.publish('test', '\(inner)', before => NULL)"
        ) { $0.format = .citrix }
        let body = try object(delivered.body)
        #expect(body["AfterChange"] as? String == inner)
        #expect(delivered.body.contains(#""BeforeChange":null"#))
    }

    @Test func `CC-34 TimeStamp is the event's time in RFC 3339 with milliseconds`() async throws {
        let delivered = try await TestCluster.database().deliver(
            "SELECT outbox.publish('test', occurred_at => '2018-04-24T17:15:49.493999+02:00')", retries: [.zero],
            answer: { _, before in Receiver.Response(before == 0 ? 500 : 200) }
        ) { $0.format = .citrix }
        #expect(delivered.requests.count == 2)
        for request in delivered.requests {
            let body = try object(String(decoding: request.body, as: UTF8.self))
            #expect(body["TimeStamp"] as? String == "2018-04-24T15:15:49.493Z")
        }
    }

    @Test func `CC-35 a notification passes as it was published; equal EventIds are two events`() async throws {
        let after =
            #"{"PublishNotificationId":"1","Destination":"acme;*","Component":"c","CreatedDate":"not a date","Severity":2,"EventId":"7df85e7a","Priority":3,"Content":[{"LanguageTag":"en-US","Title":"t"},{"LanguageTag":"de-DE","Title":"T"}]}"#
        let delivered = try await TestCluster.database().deliver(
            "SELECT outbox.publish('Notifications', '\(after)'); SELECT outbox.publish('Notifications', '\(after)')"
        ) { $0.format = .citrix }
        #expect(delivered.requests.count == 2)
        for request in delivered.requests {
            let body = try object(String(decoding: request.body, as: UTF8.self))
            #expect(body["AfterChange"] as? String == after)
        }
    }

    @Test func `CC-36 an administrator's login carries any principal, and one who wants Create does not get it`()
        async throws
    {
        let script =
            #"SELECT outbox.publish('Administrator', '{"CustomerId":"acme","LogonTime":"2018-04-24T21:21:42.521Z","OrgId":"1487a6","Principal":"DOMAIN\\joe, no e-mail"}', change_type => 'Login')"#
        let wants = try await TestCluster.database().deliver(script) {
            $0.format = .citrix; $0.changeTypes = ["Login"]
        }
        #expect(try object(wants.body)["ChangeType"] as? String == "Login")
        #expect(wants.body.contains("no e-mail"))
        let other = try await TestCluster.database().deliver(script) {
            $0.format = .citrix; $0.changeTypes = ["Create"]
        }
        #expect(other.requests.isEmpty)
    }

    @Test func `CC-37 numbers stay numbers and words stay words`() async throws {
        let after = #"{"Severity":0,"severity":"Information","Priority":2.0}"#
        let delivered = try await TestCluster.database().deliver("SELECT outbox.publish('n', '\(after)')") {
            $0.format = .raw
        }
        #expect(delivered.body == after)
    }
}
