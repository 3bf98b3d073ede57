import Foundation
import Postgres
import Receiver
import TestSupport
import Testing

/// Rows that are about the command line.
@Suite(.timeLimit(.minutes(15))) struct CommandRowsTests {
    private func environment(_ database: TestDatabase, networks: String = "127.0.0.0/8") throws -> [String: String] {
        [
            "DATABASE_URL": database.connectionString, "OUTBOX_SECRET_KEY_FILE": try Daemon.keyFile(),
            "OUTBOX_ALLOW_NETWORKS": networks,
        ]
    }

    private func file(_ text: String) throws -> String {
        let path = TestFolder.path("file")
        try text.write(toFile: path, atomically: true, encoding: .utf8)
        return path
    }

    @Test func `CA-07 a good profile ends with Test successful, and nothing is stored but a test attempt`() async throws
    {
        let database = try await TestCluster.database()
        let environment = try environment(database)
        let ledger = try Ledger { _, _ in Receiver.Response(200, body: Array("ok".utf8)) }
        defer { ledger.receiver.stop() }
        let secret = try file("canary")
        let created = try await ChildProcess.run(
            [
                "endpoint", "create", "alerts", "--url", ledger.url + "/hook?token=canary", "--preset", "slack",
                "--secret-header", "X-Api: @\(secret)", "--auth", "bearer", "--auth-file", secret,
            ], environment: environment)
        #expect(created.end == .exit(0), "\(created.errors)")
        let (end, output, errors) = try await ChildProcess.run(
            ["endpoint", "test", "alerts"], environment: environment)
        #expect(end == .exit(0), "\(errors)")
        #expect(output.hasSuffix("\nTest successful\n"))
        for step in ["1  ok  URL", "2  ok  headers", "3  ok  rendering", "4  ok  live request", "5  ok  rules"] {
            #expect(output.contains(step), "\(step)")
        }
        #expect(output.contains("POST \(ledger.url)/hook?token=***"))
        #expect(output.contains("total "))
        #expect(!output.contains("canary"))
        #expect(ledger.all.count == 1)
        #expect(ledger.all[0]["X-Api"] == "canary")
        #expect(ledger.all[0]["Authorization"] == "Bearer canary")
        #expect(try await database.column("SELECT trigger FROM outbox.attempt") == ["test"])
        #expect(try await database.number("SELECT count(*) FROM outbox.deliveries") == 0)
        #expect(try await database.number("SELECT count(*) FROM outbox.event") == 0)
    }

    @Test func `CA-07 the first step that fails is named, with its number and the reason`() async throws {
        let database = try await TestCluster.database()
        let environment = try environment(database)
        let ledger = try Ledger { _, _ in Receiver.Response(200, body: Array("no_text".utf8)) }
        defer { ledger.receiver.stop() }
        let data = try file(#"{"c":"\u0007"}"#)
        for arguments in [
            ["create", "rules", "--url", ledger.url, "--preset", "slack"],
            ["create", "rendering", "--url", ledger.url, "--template", "<a>%after.c%</a>", "--template-kind", "xml"],
            ["create", "request", "--url", "http://127.0.0.1:9/"],
        ] {
            let (end, _, errors) = try await ChildProcess.run(["endpoint"] + arguments, environment: environment)
            #expect(end == .exit(0), "\(errors)")
        }
        for (arguments, expected) in [
            (["rules"], "step 5 of 5, rules, failed: rule_failed: rule 1 (text ok) failed: the response is no_text"),
            (
                ["rendering", "--data", "@" + data],
                "step 3 of 5, rendering, failed: template: the template: %after.c% holds"
            ),
            (["request"], "step 4 of 5, live request, failed: connect"),
            (
                ["rules", "--url", "http://10.0.0.1/"],
                "step 1 of 5, URL and address policy, failed: the URL leads to 10.0.0.1"
            ),
        ] {
            let (end, output, errors) = try await ChildProcess.run(
                ["endpoint", "test"] + arguments, environment: environment)
            #expect(end == .exit(1))
            #expect(errors.contains(expected), "\(errors)")
            #expect(!output.contains("Test successful"))
        }
    }

    @Test func `CA-10 the curl line of a delivery runs unmodified in sh and sends the same body`() async throws {
        let database = try await TestCluster.database()
        let environment = try environment(database)
        let ledger = try Ledger()
        defer { ledger.receiver.stop() }
        for arguments in [
            ["endpoint", "create", "alerts", "--url", ledger.url + "/a'b?x=1&y=$HOME", "--preset", "slack"],
            ["event", "publish", "--type", "alert", "--after", #"{"text":"Test 'Citrix' $Analytics `Alert`."}"#],
        ] {
            let (end, _, errors) = try await ChildProcess.run(arguments, environment: environment)
            #expect(end == .exit(0), "\(errors)")
        }
        let (end, line, errors) = try await ChildProcess.run(
            ["attempt", "curl", "1", "alerts", "--reveal"], environment: environment)
        #expect(end == .exit(0), "\(errors)")
        let shell = try ChildProcess("/bin/sh", ["-c", line])
        #expect(await shell.wait() == .exit(0), "\(shell.errors)")
        shell.remove()
        #expect(ledger.all.count == 1)
        #expect(
            String(decoding: ledger.all[0].body, as: UTF8.self) == #"{"text": "Test 'Citrix' $Analytics `Alert`."}"#)
        #expect(ledger.all[0].target == "/a'b?x=1&y=$HOME")
        #expect(ledger.all[0]["webhook-signature"]?.hasPrefix("v1,") == true)
    }

    @Test func `SF-13 a rule that is not enabled is never called, and denies`() async throws {
        let database = try await TestCluster.database()
        let environment = try environment(database)
        let ledger = try Ledger()
        defer { ledger.receiver.stop() }
        for arguments in [["create", "policy", "--url", ledger.url], ["disable", "policy"]] {
            let (end, _, errors) = try await ChildProcess.run(["endpoint"] + arguments, environment: environment)
            #expect(end == .exit(0), "\(errors)")
        }
        for more in [[], ["--on-error", "allow"]] {
            let (end, output, _) = try await ChildProcess.run(
                ["endpoint", "evaluate", "policy"] + more, environment: environment)
            #expect(end == .exit(1))
            #expect(output.contains("deny  the endpoint is disabled"))
        }
        #expect(ledger.all.isEmpty)
    }

    @Test func `SF-14 access is allowed when the rules hold, and denied when they do not or no response comes`()
        async throws
    {
        let database = try await TestCluster.database()
        let environment = try environment(database)
        let ledger = try Ledger { request, _ in
            switch request["X-User"] {
            case "tom": Receiver.Response(200, body: Array(#"{"access":"granted"}"#.utf8))
            case "eve": Receiver.Response(200, body: Array(#"{"access":"refused"}"#.utf8))
            case "ill": Receiver.Response(503)
            default: Receiver.Response(manner: .hangUp)
            }
        }
        defer { ledger.receiver.stop() }
        let (made, _, problem) = try await ChildProcess.run(
            [
                "endpoint", "create", "policy", "--url", ledger.url, "--method", "GET", "--header",
                "X-User: %username%",
                "--response", "json", "--rule", "string access granted", "--timeout", "2s",
            ], environment: environment)
        #expect(made == .exit(0), "\(problem)")
        for (user, more, exit, decision, reason) in [
            ("tom", [], ChildProcess.End.exit(0), "allow", "all rules hold"),
            ("eve", [], .exit(1), "deny", "rule 1 (string access granted) failed"),
            ("eve", ["--on-error", "allow"], .exit(1), "deny", "rule 1 (string access granted) failed"),
            ("bob", [], .exit(1), "deny", "connection_lost"),
            ("bob", ["--on-error", "allow"], .exit(0), "allow", "connection_lost"),
            ("ill", [], .exit(1), "deny", "HTTP 503"), ("ill", ["--on-error", "allow"], .exit(0), "allow", "HTTP 503"),
            // Whoever asks must not be able to make the question fail.
            (#"\u0001"#, ["--on-error", "allow"], .exit(1), "deny", "control character"),
        ] {
            let context = try file(#"{"username":"\#(user)"}"#)
            let (end, output, errors) = try await ChildProcess.run(
                ["endpoint", "evaluate", "policy", "--context", context, "-o", "json"] + more, environment: environment)
            #expect(end == exit, "\(user) \(errors)")
            let answer = try #require(try JSONSerialization.jsonObject(with: Data(output.utf8)) as? [String: Any])
            #expect(answer["decision"] as? String == decision)
            #expect((answer["reason"] as? String)?.contains(reason) == true, "\(answer)")
            #expect((answer["attempt_id"] is String) == (reason != "control character"))
        }
        #expect(try await database.column("SELECT DISTINCT trigger FROM outbox.attempt") == ["evaluate"])
    }

    @Test func `SF-18 a rule is tried with a context: the request, the response, the rule's verdict`() async throws {
        let database = try await TestCluster.database()
        let environment = try environment(database)
        let ledger = try Ledger { _, _ in Receiver.Response(200, body: Array(#"{"access":"refused"}"#.utf8)) }
        defer { ledger.receiver.stop() }
        _ = try await ChildProcess.run(
            [
                "endpoint", "create", "rule-x", "--url", ledger.url, "--template", #"{"user":"%username%"}"#,
                "--response", "json", "--rule", "string access granted",
            ], environment: environment)
        let context = try file(#"{"username":"tom"}"#)
        let (end, output, errors) = try await ChildProcess.run(
            ["endpoint", "test", "rule-x", "--context", context], environment: environment)
        #expect(end == .exit(1))
        #expect(output.contains(#"{"user":"tom"}"#))
        #expect(output.contains(#"{"access":"refused"}"#))
        #expect(errors.contains(#"rule 1 (string access granted) failed: the response has "refused""#), "\(errors)")
    }
}
