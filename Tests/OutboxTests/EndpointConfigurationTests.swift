import Bytewise
import Foundation
import Postgres
import StandardWebhooks
import Templates
import TestSupport
import Testing
import Transport

@testable import Outbox

/// One value: created, replaced, changed, stored, shown and audited in the same shape.
@Suite(.timeLimit(.minutes(15))) struct EndpointConfigurationTests {
    /// Another value than the default everywhere.
    private func full(_ name: String = "full") throws -> EndpointConfiguration {
        var full = EndpointConfiguration(name: name, url: "https://example.com/%type%?token=abc&x")
        full.customerID = "acme"
        full.description = "one\n\"two\""
        full.eventTypes = ["order.*", "=order.*", .exact("é")]
        full.changeTypes = ["Create", "Update"]
        full.filter = "$.after.n > 1"
        full.urlHasParameters = true
        full.method = .put
        full.format = .template
        full.template = try Template("<a>%type%</a>", kind: .xml)
        full.headers = [
            EndpointConfiguration.Header(name: "X-A", value: "%type%"),
            EndpointConfiguration.Header(name: "X-Api-Key", value: "sounds secret"),
            EndpointConfiguration.Header(name: "X-S", value: "canary one", isSecret: true),
            EndpointConfiguration.Header(name: "x-s", value: "canary two", isSecret: true),
        ]
        full.authentication.kind = .basic
        full.authentication.user = "u"
        full.authentication.secret = "canary three"
        full.allowsHTTP2 = true
        full.maxBodyBytes = 1000
        full.rules.success = try StatusSet("200,202-204")
        full.rules.permanent = try StatusSet("none")
        full.rules.form = .jsonp
        full.rules.checks = [try Check("deny string a.b c d")]
        full.rules.throttled = ["slow"]
        full.rules.isFailureFinal = true
        full.timeout = .milliseconds(1500)
        full.connectTimeout = .milliseconds(2250)
        full.retrySchedule = [.milliseconds(50), .seconds(86_400)]
        full.maxInFlight = 7
        full.maxConcurrency = 3
        full.rates = [try RateLimit("1/s burst 3"), try RateLimit("60/30s")]
        full.isOrdered = true
        full.onDead = .skip
        return full
    }

    /// The members of a document.
    private func object(_ json: some Sequence<UInt8>) throws -> NSDictionary {
        try #require(try JSONSerialization.jsonObject(with: Data(json)) as? NSDictionary)
    }

    /// As it is read back: secrets are kept.
    private func keeping(_ configuration: EndpointConfiguration) -> EndpointConfiguration {
        var kept = configuration
        if kept.authentication.secret != nil { kept.authentication.secret = .kept }
        if kept.tls.clientKey != nil { kept.tls.clientKey = .kept }
        for place in kept.headers.indices where kept.headers[place].isSecret { kept.headers[place].value = .kept }
        return kept
    }

    @Test func `every setting comes back as it was stored, and the database writes the document that we write`()
        async throws
    {
        let database = try await TestCluster.database()
        for configuration in [try full(), EndpointConfiguration(name: "defaults", url: "https://example.com/")] {
            let id = try await database.pool.run {
                try $0.createEndpoint(configuration, secret: .generate(), keyring: TestWorker.keyring)
            }
            let (stored, endpoint) = try await database.pool.run {
                (try $0.configuration(of: id), try $0.endpoint(id, keyring: TestWorker.keyring))
            }
            #expect(stored == keeping(configuration))
            #expect(endpoint.configuration == configuration)
            let texts = try await database.column(
                """
                SELECT d::text FROM outbox.endpoint_document c, unnest(ARRAY[c.document, c.masked]) d WHERE c.id = \(id)
                """
            ).compactMap(\.self)
            let (written, masked) = (try object(texts[0].utf8), try object(texts[1].utf8))
            let (plain, hidden) = (
                try object(try configuration.json(.stored)), try object(try configuration.json(.masked))
            )
            #expect(written == plain)
            #expect(masked == hidden)
            #expect(!texts[0].contains("canary"))
            let shown = String(decoding: try configuration.json(.masked), as: UTF8.self)
            #expect(!shown.contains("canary") && !shown.contains("abc") && !shown.contains("sounds secret"))
            let revealed = try EndpointConfiguration(json: try configuration.json(.revealed))
            #expect(revealed == configuration)
            // The listing is the document and what the service has made of it.
            let listing = try await database.pool.run { try $0.listEndpoints(id) }
            let members = try object((listing.json.first ?? "").utf8)
            for (name, value) in try object(try configuration.json(.masked)) {
                #expect(members[name] as? NSObject == value as? NSObject, "\(name)")
            }
        }
    }

    @Test func `a document that is written back as it was shown changes nothing`() async throws {
        let database = try await TestCluster.database()
        let configuration = try full()
        let id = try await database.pool.run {
            try $0.createEndpoint(configuration, secret: .generate(), keyring: TestWorker.keyring)
        }
        func row() async throws -> [String?] {
            try await database.column(
                "SELECT concat_ws(' ', n, md5(s.sealed)) FROM outbox.endpoint n, outbox.secret s WHERE s.kind = 'credentials'"
            )
        }
        let before = try await row()
        try await database.pool.run {
            // Whoever changes no secret needs no key.
            try $0.updateEndpoint(id, keyring: Keyring(text: Keyring.newKeyLine())) {
                $0 = try EndpointConfiguration(json: try configuration.json(.masked))
            }
        }
        #expect(try await row() == before)
        // Headers in another order keep their secrets.
        try await database.pool.run {
            try $0.updateEndpoint(id, keyring: TestWorker.keyring) { endpoint in
                endpoint.headers.reverse()
                endpoint.headers.remove(at: 0)
            }
        }
        let endpoint = try await database.pool.run { try $0.endpoint(id, keyring: TestWorker.keyring) }
        #expect(endpoint.configuration.headers.map(\.value.text) == ["canary one", "sounds secret", "%type%"])
        #expect(endpoint.configuration.authentication.secret == "canary three")
        #expect(try await database.number("SELECT revision FROM outbox.endpoint") == 2)
        // Only what differs is written down.
        #expect(try await database.number("SELECT count(*) FROM outbox.audit WHERE action = 'endpoint.update'") == 1)
    }

    @Test
    func `a secret header and a shown one of the same name keep their values, in whatever order they are written`()
        async throws
    {
        let database = try await TestCluster.database()
        var configuration = EndpointConfiguration(name: "e", url: "https://example.com/")
        configuration.headers = [
            EndpointConfiguration.Header(name: "X-Key", value: "shown"),
            EndpointConfiguration.Header(name: "X-Key", value: "canary", isSecret: true),
        ]
        let id = try await database.pool.run { [configuration] in
            try $0.createEndpoint(configuration, secret: .generate(), keyring: TestWorker.keyring)
        }
        func change(_ body: @escaping @Sendable (inout EndpointConfiguration) throws -> Void) async throws {
            try await database.pool.run { try $0.updateEndpoint(id, keyring: TestWorker.keyring, body) }
        }
        let masked = try EndpointConfiguration(json: try configuration.json(.masked))
        try await change {
            $0 = masked
            $0.headers.swapAt(0, 1)
        }
        let endpoint = try await database.pool.run { try $0.endpoint(id, keyring: TestWorker.keyring) }
        #expect(endpoint.configuration.headers.map(\.value.text) == ["canary", "shown"])
        // Who was not shown it does not send it somewhere else, though it is no secret.
        let refusal = await #expect(throws: Problem.self) {
            try await change {
                $0 = masked
                $0.headers = [masked.headers[0]]
                $0.url = "https://example.org/"
            }
        }
        #expect(refusal?.code == .credentialsBoundToOrigin)
    }

    @Test func `credentials that cannot be opened are given anew, all of them, or taken away`() async throws {
        let database = try await TestCluster.database()
        let configuration = try full()
        for isGivenAnew in [true, false] {
            var named = configuration
            named.name = "e-\(isGivenAnew)"
            let id = try await database.pool.run { [named] in
                try $0.createEndpoint(named, secret: .generate(), keyring: TestWorker.keyring)
            }
            try await database.script(
                "UPDATE outbox.secret SET sealed = '\\x00' WHERE kind = 'credentials' AND endpoint_id = '\(id)'")
            await #expect(throws: (any Error).self) {
                try await database.pool.run {
                    try $0.updateEndpoint(id, keyring: TestWorker.keyring) { $0.headers.removeLast() }
                }
            }
            try await database.pool.run { [named] in
                try $0.updateEndpoint(id, keyring: TestWorker.keyring) {
                    $0 = named
                    if !isGivenAnew {
                        $0.authentication = Authentication()
                        $0.tls = EndpointConfiguration.TLS()
                        $0.headers.removeAll(where: \.isSecret)
                    }
                }
            }
            let endpoint = try await database.pool.run { try $0.endpoint(id, keyring: TestWorker.keyring) }
            #expect(endpoint.defect == nil)
            #expect(endpoint.configuration.authentication.secret == (isGivenAnew ? "canary three" : nil))
        }
    }

    @Test func `a mask stands for what is stored, and for nothing else`() async throws {
        let database = try await TestCluster.database()
        let configuration = try full()
        let id = try await database.pool.run {
            try $0.createEndpoint(configuration, secret: .generate(), keyring: TestWorker.keyring)
        }
        let changes: [@Sendable (inout EndpointConfiguration) throws -> Void] = [
            { $0.headers.append(EndpointConfiguration.Header(name: "X-New", value: .kept)) },
            { $0.headers.append(EndpointConfiguration.Header(name: "X-S", value: .kept, isSecret: true)) },
            { $0.headers[2].isSecret = false },
            { $0.url = "https://example.com/?other=***" },
            { $0.url = "https://example.com/new?***" },
            { $0.headers[0].value = "***" }, { $0.authentication.secret = "***" },
            // What is shown does not become what is secret, nor the other way round.
            { $0.headers = [EndpointConfiguration.Header(name: "X-A", value: .kept, isSecret: true)] },
            { $0.tls = EndpointConfiguration.TLS(clientCertificate: "x", clientKey: .kept) },
            // Kept, and of another kind.
            { $0.authentication.kind = .bearer },
            { $0.description = "\0" }, { $0.filter = "\0" },
            // Kept, and for another receiver.
            { $0.url = "https://example.org/" },
        ]
        for (number, change) in changes.enumerated() {
            let refusal = await #expect(throws: Problem.self, "\(number)") {
                try await database.pool.run { try $0.updateEndpoint(id, keyring: TestWorker.keyring, change) }
            }
            #expect(refusal?.message.contains("canary") == false)
        }
        // A new one has nothing stored.
        await #expect(throws: Problem.self) {
            try await database.pool.run {
                let masked = try EndpointConfiguration(json: try configuration.json(.masked))
                _ = try $0.createEndpoint(masked, secret: .generate(), keyring: TestWorker.keyring)
            }
        }
    }

    @Test func `a merge patch changes what it names, and null gives a default back`() throws {
        let before = keeping(try full())
        func patched(_ text: String) throws -> EndpointConfiguration { try before.patched(text.utf8) }
        #expect(try patched("{}") == before)
        var wanted = before
        wanted.timeout = .seconds(15)
        wanted.description = nil
        wanted.maxConcurrency = nil
        wanted.rules.success = StatusSet([200...299])
        wanted.rules.isFailureFinal = false
        wanted.eventTypes = [.any]
        wanted.authentication.user = "v"
        let patch = #"""
            {"timeout_seconds": null, "description": null, "max_concurrency": null, "event_types": ["*"],
             "response_rules": {"success": null, "rule_failure_final": false}, "authentication": {"user": "v"}}
            """#
        #expect(try patched(patch) == wanted)
    }

    @Test(arguments: [
        (#"{"name":"e"}"#, "url"), (#"{"name":"e","url":"https://x/","timeout_seconds":null}"#, "timeout_seconds"),
        (#"{"name":"e","url":"https://x/","event_type":"x"}"#, "event_types"),
        (#"{"name":"e","url":"https://x/","response_rules":{"succes":"200"}}"#, "response_rules"),
        (#"{"name":"e","url":"https://x/","method":"DELETE"}"#, "POST"),
        (#"{"name":"e","url":"https://x/","template_kind":"yaml"}"#, "xml"),
        (#"{"name":"e","url":"https://x/","headers":{"name":"x"}}"#, "headers must be a list"),
        (#"{"name":"e","url":"https://x/","tls":[]}"#, "tls must be an object"),
        (#"{"name":"e","url":"https://x/","event_types":["a\u0000"]}"#, "U+0000"),
        (#"{"name":"e","url":"https://x/","max_in_flight":"7"}"#, "max_in_flight"),
        (#"{"name":"e","url":"https://x/","max_in_flight":1.5}"#, "max_in_flight"),
        (#"{"name":"e","url":"https://x/","event_types":["Admin*"]}"#, "Admin*"),
        (#"{"name":"e","url":"https://x/","rates":["fast"]}"#, "fast"),
        (#"{"name":"e","url":"https://x/","format":"template","template":"{","template_kind":"json"}"#, "template"),
        (#"{"name":"e","url":"https://x/","headers":[{"value":"x"}]}"#, "headers.1.name"), (#"[]"#, "JSON object"),
        ("{", "JSON"),
    ])
    func `a document that is wrong is refused, by the name of what is wrong`(json: String, name: String) throws {
        let refusal = #expect(throws: Problem.self) { try EndpointConfiguration(json: json.utf8) }
        #expect(refusal?.description.contains(name) == true, "\(refusal?.description ?? "")")
    }

    @Test func `the audit log has the members that differ, without what is secret`() async throws {
        let database = try await TestCluster.database()
        let configuration = try full()
        let id = try await database.pool.run {
            try $0.createEndpoint(configuration, secret: .generate(), keyring: TestWorker.keyring)
        }
        try await database.pool.run {
            try $0.updateEndpoint(id, keyring: TestWorker.keyring) {
                $0.eventTypes = ["*"]
                $0.authentication.secret = "canary four"
            }
        }
        let detail = try #require(
            try await database.column("SELECT detail::text FROM outbox.audit WHERE action = 'endpoint.update'").first
                ?? nil)
        let members = try object(detail.utf8)
        #expect(Set(members.allKeys.compactMap { $0 as? String }) == ["event_types", "credentials"])
        #expect(members["event_types"] as? [[String]] == [["order.*", "=order.*", "é"], ["*"]])
        #expect(!detail.contains("canary"))
    }
}
