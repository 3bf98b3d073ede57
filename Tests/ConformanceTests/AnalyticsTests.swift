import Foundation
import Outbox
import Postgres
import Receiver
import StandardWebhooks
import Templates
import TestSupport
import Testing
import Transport

/// Citrix Analytics webhook profiles.
@Suite(.timeLimit(.minutes(15))) struct AnalyticsTests {
    private static let alert = #"SELECT outbox.publish('Alert', '{"text":"Test Citrix Analytics Alert."}')"#

    private func create(
        _ database: TestDatabase, _ name: String, _ change: (inout EndpointConfiguration) throws -> Void = { _ in }
    )
        async throws -> EndpointID
    {
        var wish = EndpointConfiguration(name: name, url: "https://example.com/")
        try change(&wish)
        return try await database.pool.run { [wish] in
            try $0.createEndpoint(wish, secret: .generate(), keyring: TestWorker.keyring)
        }
    }

    @Test func `CA-01 a profile has a name, unique per customer, and a description; both can be searched`() async throws
    {
        let database = try await TestCluster.database()
        _ = try await create(database, "alerts") {
            $0.description = "pages the night shift ☾"; $0.customerID = "acme"
        }
        _ = try await create(database, "alerts") { $0.customerID = "other" }
        await #expect(throws: Problem.self) {
            _ = try await create(database, "alerts") { $0.customerID = "acme" }
        }
        for (search, count) in [("NIGHT shift", 1), ("alert", 2), ("nothing", 0)] {
            let found = try await database.pool.run { try $0.listEndpoints(search: search) }
            #expect(found.rows.count == count, "\(search)")
        }
    }

    @Test(arguments: [HTTPRequest.Method.post, .put])
    func `CA-02 the receiver sees exactly the profile's method`(method: HTTPRequest.Method) async throws {
        let delivered = try await TestCluster.database().deliver(Self.alert) { $0.method = method }
        #expect(delivered.requests.map(\.method) == [method.rawValue])
        #expect(!delivered.requests[0].body.isEmpty)
    }

    @Test func `CA-02 POST is the default`() async throws {
        let delivered = try await TestCluster.database().deliver(Self.alert)
        #expect(delivered.requests.map(\.method) == ["POST"])
    }

    @Test func `CA-03 path and query are sent byte for byte, the token is masked, redirects are not followed`()
        async throws
    {
        let path = "/a%2Fb//c/./d;x=%7e?b=2&a=1&token=s3cr%C3%A9t+x&&flag"
        let database = try await TestCluster.database()
        let delivered = try await database.deliver(
            Self.alert, path: path,
            answer: { _, _ in Receiver.Response(302, headers: [("Location", "http://127.0.0.1:1/elsewhere")]) }
        ) { _ in }
        #expect(delivered.requests.map(\.target) == [path])
        #expect(delivered.attempts == ["failure 302 redirect"])
        let listing = try await database.pool.run { try $0.listEndpoints() }
        #expect(listing.json.allSatisfy { !$0.contains("s3cr") })
        #expect(listing.json.allSatisfy { $0.contains("token=***") })
        for table in ["outbox.audit", "outbox.attempts", "outbox.deliveries"] {
            let text = try await database.column("SELECT t::text FROM \(raw: table) t").compactMap(\.self).joined()
            #expect(!text.contains("s3cr"), "\(table)")
        }
    }

    @Test func `CA-04 a message is JSON or XML, as the target wants it`() async throws {
        let json = try await TestCluster.database().deliver(Self.alert) {
            $0.format = .template
            $0.template = try Template(#"{"m":"%after.text%"}"#, kind: .json)
        }
        #expect(json.body == #"{"m":"Test Citrix Analytics Alert."}"#)
        #expect(json.requests[0]["Content-Type"] == "application/json")
        let xml = try await TestCluster.database().deliver(Self.alert) {
            $0.format = .template
            $0.template = try Template(#"<alert kind="%type%">%after.text%</alert>"#, kind: .xml)
        }
        #expect(xml.body == #"<alert kind="Alert">Test Citrix Analytics Alert.</alert>"#)
        #expect(xml.requests[0]["Content-Type"] == "application/xml")
        let own = try await TestCluster.database().deliver(Self.alert) {
            $0.format = .template
            $0.template = try Template("<a/>", kind: .xml)
            $0.headers = [EndpointConfiguration.Header(name: "Content-Type", value: "text/xml")]
        }
        #expect(own.requests[0].headers.filter { $0.name.lowercased() == "content-type" }.map(\.value) == ["text/xml"])
    }

    @Test func `CA-04 a malformed template is refused when it is saved, and what does not render is never sent`()
        async throws
    {
        let json = #expect(throws: Template.ValidationError.self) { try Template("{\n \"a\": %type%,\n}", kind: .json) }
        #expect(json?.description.contains("line 3, column 1") == true, "\(String(describing: json))")
        let xml = #expect(throws: Template.ValidationError.self) { try Template("<a>\n<b>%type%</a>", kind: .xml) }
        #expect(xml?.line == 2, "\(String(describing: xml))")
        let delivered = try await TestCluster.database().deliver(
            #"SELECT outbox.publish('test', '{"c":"bell \u0007"}')"#
        ) {
            $0.format = .template
            $0.template = try Template("<a>%after.c%</a>", kind: .xml)
        }
        #expect(delivered.requests.isEmpty)
        #expect(delivered.dead.count == 1 && delivered.dead[0].hasPrefix("render_error template "), "\(delivered.dead)")
    }

    @Test func `CA-05 any headers are sent as given, and those that frame or route a request are refused`() async throws
    {
        let database = try await TestCluster.database()
        let delivered = try await database.deliver(Self.alert) {
            $0.headers = [
                EndpointConfiguration.Header(name: "X-Team", value: "one"),
                EndpointConfiguration.Header(name: "X-Team", value: "two"),
                EndpointConfiguration.Header(name: "X-Empty", value: ""),
                EndpointConfiguration.Header(name: "X-Token", value: "canary 5%% %type% %x% ", isSecret: true),
            ]
        }
        let sent = delivered.requests[0].headers
        #expect(sent.filter { $0.name == "X-Team" }.map(\.value) == ["one", "two"])
        #expect(sent.filter { $0.name == "X-Empty" }.map(\.value) == [""])
        #expect(sent.filter { $0.name == "X-Token" }.map(\.value) == ["canary 5%% %type% %x%"])
        let listing = try await database.pool.run { try $0.listEndpoints() }
        #expect(listing.json.allSatisfy { !$0.contains("canary") })
        #expect(try await database.number("SELECT count(*) FROM outbox.endpoint e WHERE e::text LIKE '%canary%'") == 0)
        for (name, value) in [
            ("Host", "x"), ("Content-Length", "0"), ("Transfer-Encoding", "chunked"), ("Connection", "close"),
            ("X", "a\r\nInjected: 1"), ("X\r\nInjected", "1"), ("X Y", "1"), ("", "1"), ("webhook-id", "x"),
            ("Proxy-Auth", "x"),
        ] {
            await #expect(throws: (any Error).self, "\(name)") {
                _ = try await create(database, "bad") {
                    $0.headers = [EndpointConfiguration.Header(name: name, value: value)]
                }
            }
        }
    }

    @Test func `CA-06 one event goes to every profile on its own, and one that fails holds no other back`() async throws
    {
        let database = try await TestCluster.database()
        let (good, bad) = (try Ledger(), try Ledger { _, _ in Receiver.Response(500) })
        defer { good.receiver.stop(); bad.receiver.stop() }
        try await database.endpoint("good", url: good.url)
        try await database.endpoint("bad", url: bad.url, retries: [])
        try await TestWorker.run(database) {
            try await database.publish(5)
            #expect(try await eventually { try await database.deliveries("delivered") == 5 })
            #expect(try await eventually { try await database.deliveries("dead") == 5 })
        }
        #expect(good.all.count == 5)
        #expect(bad.all.count == 5)
    }

    @Test func `CA-08 the Slack preset posts exactly that body, and only 200 with ok is a success`() async throws {
        let preset = try Preset.named("slack")
        let good = try await TestCluster.database().deliver(
            Self.alert, answer: { _, _ in Receiver.Response(200, body: Array("ok".utf8)) }
        ) { try $0.apply(preset) }
        #expect(good.body == #"{"text": "Test Citrix Analytics Alert."}"#)
        #expect(good.requests[0]["Content-Type"] == "application/json")
        #expect(good.attempts == ["success 200"])
        let other = try await TestCluster.database().deliver(
            Self.alert, answer: { _, _ in Receiver.Response(200, body: Array("<html>login</html>".utf8)) }
        ) { try $0.apply(preset) }
        #expect(other.attempts == ["failure 200 rule_failed"])
    }

    @Test func `CA-08 no more than one a second goes to Slack, after a burst of three`() async throws {
        let database = try await TestCluster.database()
        let delivered = try await database.deliver(
            "SELECT outbox.publish('Alert', '{\"text\":\"x\"}') FROM generate_series(1, 5)",
            answer: { _, _ in Receiver.Response(200, body: Array("ok".utf8)) }
        ) { try $0.apply(try Preset.named("slack")) }
        #expect(delivered.requests.count == 5)
        let seconds = try await database.column(
            "SELECT (extract(epoch FROM started_at - min(started_at) OVER ()) > 0.9)::int + (extract(epoch FROM started_at - min(started_at) OVER ()) > 1.9)::int FROM outbox.attempt ORDER BY started_at"
        ).compactMap(\.self)
        #expect(seconds == ["0", "0", "0", "1", "2"])
    }

    @Test func `CA-09 the Teams presets keep to the connector's windows`() throws {
        #expect(
            try Preset.named("teams-connector").rates.map(\.description) == [
                "4/1s", "60/30s", "100/3600s", "150/7200s", "1800/86400s",
            ])
    }

    @Test(arguments: [(400, "invalid_payload"), (403, "action_prohibited"), (404, "channel_not_found")])
    func `CA-08 what Slack refuses is not tried again`(status: Int, text: String) async throws {
        let delivered = try await TestCluster.database().deliver(
            Self.alert, retries: [.zero, .zero], answer: { _, _ in Receiver.Response(status, body: Array(text.utf8)) }
        ) { try $0.apply(try Preset.named("slack")) }
        #expect(delivered.requests.count == 1)
        #expect(delivered.dead.map { $0.prefix(9) } == ["permanent"])
        #expect(delivered.attempts == ["failure \(status) http_4xx"])
    }

    @Test func `CA-08 a channel that is archived disables the endpoint, and what waits stays`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { _, _ in Receiver.Response(410, body: Array("channel_is_archived".utf8)) }
        defer { ledger.receiver.stop() }
        try await database.endpoint("slack", url: ledger.url) { try? $0.apply(try Preset.named("slack")) }
        try await TestWorker.run(database) {
            try await database.publish()
            #expect(try await eventually { try await database.deliveries("paused") == 1 })
        }
        #expect(try await database.column("SELECT state FROM outbox.endpoint_health") == ["disabled"])
    }

    @Test func `CA-09 the Teams connector wants 200 and 1, and says in a 200 that it is throttled`() async throws {
        let preset = try Preset.named("teams-connector")
        #expect(preset.warning != nil)
        let good = try await TestCluster.database().deliver(
            Self.alert, answer: { _, _ in Receiver.Response(200, body: Array("1".utf8)) }
        ) { try $0.apply(preset) }
        #expect(good.attempts == ["success 200"])
        #expect(good.body == #"{"text": "Test Citrix Analytics Alert."}"#)
        let throttled = try await TestCluster.database().deliver(
            Self.alert, retries: [.milliseconds(10)],
            answer: { _, before in
                Receiver.Response(
                    200,
                    body: Array(
                        (before == 0
                            ? "Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error 429"
                            : "1").utf8))
            }
        ) { try $0.apply(preset) }
        #expect(throttled.attempts == ["failure 200 http_429", "success 200"])
    }

    @Test func `CA-09 the Teams workflow gets an Adaptive Card in its envelope, and no more than 28 KB`() async throws {
        let preset = try Preset.named("teams-workflow")
        #expect(preset.warning?.contains("cannot be verified") == true)
        let good = try await TestCluster.database().deliver(Self.alert, answer: { _, _ in Receiver.Response(202) }) {
            try $0.apply(preset)
        }
        #expect(good.attempts == ["success 202"])
        #expect(
            good.body
                == #"{"type":"message","attachments":[{"contentType":"application/vnd.microsoft.card.adaptive","contentUrl":null,"content":{"$schema":"http://adaptivecards.io/schemas/adaptive-card.json","type":"AdaptiveCard","version":"1.2","body":[{"type":"TextBlock","text":"Test Citrix Analytics Alert.","wrap":true}]}}]}"#
        )
        let large = try await TestCluster.database().deliver(
            "SELECT outbox.publish('Alert', json_build_object('text', repeat('x', 28000)))"
        ) { try $0.apply(preset) }
        #expect(large.requests.isEmpty)
        #expect(large.dead.map { $0.hasPrefix("render_error too_large") } == [true], "\(large.dead)")
    }
}
