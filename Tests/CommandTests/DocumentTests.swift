import Foundation
import Outbox
import Postgres
import Receiver
import TestSupport
import Testing

/// Endpoints as documents, with the real binary.
@Suite(.timeLimit(.minutes(15))) struct DocumentTests {
    @Test
    func `what is exported is imported, here and in another installation, and secrets go only when they are revealed`()
        async throws
    {
        let (setting, other) = (try await Setting(), try await Setting())
        let ledger = try Ledger()
        defer { ledger.receiver.stop() }
        let token = try temporaryFile("canary-token\n")
        for arguments in [
            [
                "a", "--auth", "bearer", "--auth-file", token, "--event-type", "order.*", "--event-type", "=x*",
                "--filter", "$.after.n > 1", "--header", "X-Api-Key: sounds secret", "--max-body", "1000",
            ],
            ["b", "--customer", "acme", "--ordered", "--retry-schedule", "50ms,1d"],
        ] {
            let made = try await ChildProcess.run(
                ["endpoint", "create", "--url", ledger.url + "/?k=canary-query"] + arguments,
                environment: setting.environment)
            #expect(made.end == .exit(0), "\(made.errors)")
        }
        let masked = try await setting.run("endpoint", "export")
        #expect(masked.end == .exit(0) && !masked.output.contains("canary") && !masked.output.contains("sounds secret"))
        let file = try temporaryFile(masked.output)
        // Here it changes nothing, and elsewhere it is not enough.
        let again = try await setting.run("endpoint", "import", file)
        #expect(again.end == .exit(0) && again.output == "replaced a\nreplaced b\n", "\(again.output) \(again.errors)")
        #expect(try await setting.database.column("SELECT DISTINCT revision::text FROM outbox.endpoint") == ["1"])
        let refused = try await other.run("endpoint", "import", file)
        #expect(refused.end == .exit(64) && refused.errors.contains("***"), "\(refused.errors)")
        #expect(try await other.database.number("SELECT count(*) FROM outbox.endpoint") == 0)

        let revealed = try await setting.run("endpoint", "export", "a", "b", "--reveal", "--reason", "INC-2")
        #expect(revealed.output.contains("canary-token"))
        #expect(
            try await setting.database.column(
                "SELECT DISTINCT reason FROM outbox.audit WHERE action = 'endpoint.reveal'")
                == ["INC-2"])
        let imported = try await other.run("endpoint", "import", try temporaryFile(revealed.output))
        #expect(
            imported.end == .exit(0) && imported.output.contains("created a, secret (shown once) whsec_"),
            "\(imported.errors)")
        let there = try await other.run("endpoint", "export", "--reveal")
        #expect(there.output == revealed.output)
    }

    @Test func `a list is imported whole or not at all`() async throws {
        let setting = try await Setting()
        _ = try await setting.run("endpoint", "create", "old", "--url", "https://example.com/", "--timeout", "5s")
        func document(_ last: String) throws -> String {
            try temporaryFile(
                """
                [{"name": "old", "url": "https://example.com/", "timeout_seconds": 9},
                 {"name": "new", "url": "https://example.com/"}, {"name": "last", \(last)}]
                """)
        }
        for (member, reason) in [
            (#""url": "https://example.com/", "filter": "(""#, "filter"), (#""url": "https://10.0.0.1/""#, "10.0.0.1"),
            (#""url": "https://example.com/", "headers": [{"name": "X", "value": "***"}]"#, "***"),
        ] {
            let refused = try await setting.run("endpoint", "import", try document(member))
            #expect(refused.end == .exit(64) && refused.errors.contains(reason), "\(refused.errors)")
            #expect(refused.output == "")
            #expect(
                try await setting.database.column("SELECT name || ' ' || timeout FROM outbox.endpoint")
                    == ["old 00:00:05"])
        }
        let whole = try document(#""url": "https://example.com/", "ordered": true"#)
        let done = try await setting.run("endpoint", "import", whole)
        #expect(done.end == .exit(0), "\(done.errors)")
        #expect(
            try await setting.database.column("SELECT name || ' ' || timeout FROM outbox.endpoint ORDER BY name")
                == ["last 00:00:15", "new 00:00:15", "old 00:00:09"])
    }

    @Test(arguments: [
        ("customer_id", #""a\u0000b""#), ("description", #""\u0000""#), ("filter", #""$.a\u0000""#),
        ("event_types", #"["a", "b\u0000"]"#), ("change_types", #"["\u0000"]"#),
        ("url", #""https://x.example/\u0000""#),
        ("headers", #"[{"name": "X", "value": "a\u0000"}]"#),
        ("authentication", #"{"kind": "basic", "user": "a\u0000", "secret": "b"}"#),
        (
            "authentication",
            #"{"kind": "oauth2", "token_url": "https://x.example/", "client_id": "a\u0000", "secret": "b"}"#
        ),
        ("response_rules", #"{"throttled_texts": ["a\u0000"]}"#), ("response_rules", #"{"rules": ["text \u0000"]}"#),
        ("template", #""%after.n%\u0000""#),
    ])
    func `a text with U+0000 is refused by its name, wherever it stands`(member: String, value: String) async throws {
        let setting = try await Setting()
        let kind = member == "template" ? #""template_kind": "text", "format": "template","# : ""
        let name = member == "url" ? "" : #""url": "https://x.example/","#
        let file = try temporaryFile(#"{"name": "e", \#(name) \#(kind) "\#(member)": \#(value)}"#)
        let refused = try await setting.run("endpoint", "import", file)
        #expect(refused.end == .exit(64), "\(refused.errors)")
        let isNamed = ["U+0000", "header", "URL", "rule"].contains { refused.errors.contains($0) }
        #expect(isNamed && !refused.errors.contains("SQLSTATE"), "\(refused.errors)")
    }

    @Test func `a patch changes what it names, and says what is wrong with it`() async throws {
        let setting = try await Setting()
        _ = try await setting.run(
            "endpoint", "create", "e", "--url", "https://example.com/", "--timeout", "5s", "--description", "x",
            "--max-concurrency", "3")
        let patched = try await setting.object(
            "endpoint", "patch", "e", #"{"timeout_seconds": 7.5, "description": null, "max_concurrency": null}"#)
        #expect(patched["timeout_seconds"] as? Double == 7.5 && patched["description"] is NSNull)
        #expect(patched["max_concurrency"] is NSNull)
        for (patch, name) in [
            ("{", "JSON"), ("[]", "object"), (#"{"timeout": 5}"#, "timeout_seconds"), (#"{"url": null}"#, "url"),
            (#"{"timeout_seconds": 1e9}"#, "5 min"), (#"{"filter": "("}"#, "filter"),
            (#"{"event_types": []}"#, "event types"),
        ] {
            let refused = try await setting.run("endpoint", "patch", "e", patch)
            #expect(refused.end == .exit(64) && refused.errors.contains(name), "\(patch): \(refused.errors)")
        }
    }

    @Test(arguments: [
        ["endpoint", "create", "e", "--url", "https://a.example/", "--url", "https://b.example/"],
        ["endpoint", "update", "e", "--customer", "a", "--timeout", "5s", "--customer=b"],
        ["event", "list", "--event-type", "a", "--event-type", "b"], ["endpoint", "list", "-o", "json", "-o", "table"],
        ["endpoint", "secret", "rotate", "e", "--overlap", "1h", "--overlap", "2h"],
    ])
    func `an option that takes one value refuses a second one`(arguments: [String]) async throws {
        let refused = try await ChildProcess.run(arguments, environment: [:])
        #expect(refused.end == .exit(64) && refused.errors.contains("is given twice"), "\(refused.errors)")
    }

    @Test func `an option that takes several takes several`() async throws {
        let setting = try await Setting()
        let made = try await setting.object(
            "endpoint", "create", "e", "--url", "https://a.example/", "--event-type", "a", "--event-type", "b.*",
            "--change-type", "Create", "--change-type", "Update", "--header", "A: 1", "--header", "B: 2", "--rate",
            "1/s",
            "--rate", "10/60s")
        #expect(
            made["event_types"] as? [String] == ["a", "b.*"]
                && made["change_types"] as? [String] == ["Create", "Update"])
        #expect((made["rates"] as? [String])?.count == 2 && (made["headers"] as? [Any])?.count == 2)
    }
}
