import EmbeddedPostgres
import Foundation
import Outbox
import Postgres
import Receiver
import StandardWebhooks
import TestSupport
import Testing

/// The real binary: what it prints, and what it exits with.
@Suite(.timeLimit(.minutes(15))) struct CommandTests {
    private func environment(_ database: TestDatabase) throws -> [String: String] {
        [
            "DATABASE_URL": database.connectionString, "OUTBOX_SECRET_KEY_FILE": try Daemon.keyFile(),
            "OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8",
        ]
    }

    private func object(_ text: String) throws -> [String: Any] {
        try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
    }

    private func array(_ text: String) throws -> [[String: Any]] {
        try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [[String: Any]])
    }

    @Test func `an operator's day: create, publish, list, pause, dead letters, replay, trace, delete`() async throws {
        let database = try await TestCluster.database()
        let environment = try environment(database)
        func outboxctl(_ arguments: String...) async throws -> String {
            let (end, output, errors) = try await ChildProcess.run(arguments, environment: environment)
            #expect(end == .exit(0), "\(arguments) \(errors)")
            return output
        }
        let isHealthy = Flag(false)
        let ledger = try Ledger { _, _ in Receiver.Response(isHealthy.isSet ? 200 : 500) }
        let created = try object(
            await outboxctl(
                "endpoint", "create", "billing", "--url", ledger.url + "/hook?token=canary", "--header",
                "X-Api-Key: canary",
                "--event-type", "order.created", "--customer", "acme", "--retry-schedule", "50ms", "-o", "json"))
        #expect((created["secret"] as? String)?.hasPrefix("whsec_") == true)
        #expect(created["url"] as? String == ledger.url + "/hook?token=***")

        let daemon = try ChildProcess(ChildProcess.outboxctl, ["run"], environment: environment)
        #expect(await daemon.waitUntilReady())
        let id = try await outboxctl(
            "event", "publish", "--type", "order.created", "--customer", "acme", "--after", #"{"id":42}"#,
            "--transaction-id", "9cc8c8d0-3d24-46f4-b63c-8c5d092b7205", "--identity", "tom"
        ).trimmingCharacters(in: .newlines)
        #expect(try await eventually { try await database.deliveries("dead") == 1 })
        let dead = try array(await outboxctl("dead", "list", "-o", "json"))
        #expect(dead.map { $0["endpoint"] as? String } == ["billing"])
        #expect(dead.map { $0["reason"] as? String } == ["exhausted"])
        #expect(try object(await outboxctl("dead", "get", id, "billing", "-o", "json"))["status"] as? Int == 500)
        let status = try object(await outboxctl("status", "-o", "json"))
        #expect(status["schema_version"] as? Int == Migrator.expectedVersion)
        #expect(status["workers"] as? Int == 1)
        #expect(status["dead_letters"] as? Int == 1)
        for name in ["events_waiting", "deliveries_waiting", "oldest_waiting_seconds"] {
            #expect(status[name] as? Int == 0, "\(name)")
        }

        isHealthy.isSet = true
        #expect(try await outboxctl("dead", "replay", "\(id):billing") == "replayed 1\n")
        #expect(try await eventually { try await database.deliveries("delivered") == 1 })
        #expect(
            try object(await outboxctl("delivery", "get", id, "billing", "-o", "json"))["state"] as? String
                == "delivered")
        #expect(try array(await outboxctl("attempt", "list", "--event-id", id, "-o", "json")).count == 3)
        let trace = try object(await outboxctl("event", "trace", "9cc8c8d0-3d24-46f4-b63c-8c5d092b7205", "-o", "json"))
        let deliveries = try #require((trace["events"] as? [[String: Any]])?.first?["deliveries"] as? [[String: Any]])
        #expect((deliveries.first?["attempts_made"] as? [Any])?.count == 3)
        #expect(
            try await outboxctl("event", "trace", "9cc8c8d0-3d24-46f4-b63c-8c5d092b7205").contains("billing  delivered")
        )
        #expect(try object(await outboxctl("event", "get", id, "-o", "json"))["identity"] as? String == "tom")

        #expect(
            try object(await outboxctl("endpoint", "pause", "billing", "--reason", "CHG-1", "-o", "json"))["state"]
                as? String == "paused")
        let second = try await outboxctl(
            "event", "publish", "--type", "order.created", "--customer", "acme", "--after", "{}"
        ).trimmingCharacters(in: .newlines)
        #expect(try await eventually { try await database.deliveries("paused") == 1 })
        #expect(
            try object(await outboxctl("delivery", "cancel", second, "billing", "-o", "json"))["state"] as? String
                == "cancelled")
        #expect(
            try object(await outboxctl("endpoint", "resume", "billing", "-o", "json"))["state"] as? String == "active")
        #expect(
            try object(await outboxctl("endpoint", "disable", "billing", "-o", "json"))["state"] as? String
                == "disabled")
        #expect(
            try object(await outboxctl("endpoint", "enable", "billing", "-o", "json"))["state"] as? String == "active")
        #expect(
            try object(await outboxctl("endpoint", "update", "billing", "--format", "citrix", "-o", "json"))["format"]
                as? String == "citrix")
        for line in try await outboxctl("event", "list", "-o", "jsonl").split(separator: "\n") {
            _ = try object(String(line))
        }
        _ = try await outboxctl("endpoint", "delete", "billing")
        #expect(try array(await outboxctl("endpoint", "list", "-o", "json")).isEmpty)

        daemon.signal(SIGTERM)
        #expect(await daemon.wait() == .exit(0))
        #expect(daemon.output.split(separator: "\n").count == 1)
        // I12: no credential in any listing or log; one line of audit per change.
        let shown = try await outboxctl("endpoint", "list", "-o", "json") + daemon.errors + daemon.output
        #expect(!shown.contains("canary"))
        let audited = try await database.column("SELECT action FROM outbox.audit ORDER BY id")
        #expect(
            audited == [
                "endpoint.create", "dead.replay", "endpoint.pause", "delivery.cancel", "endpoint.resume",
                "endpoint.disable", "endpoint.enable",
                "endpoint.update", "endpoint.delete",
            ])
        ledger.receiver.stop()
    }

    /// (arguments, exit code, what the error must name)
    @Test(
        arguments: [
            (["event", "publish", "--type", "a", "--after", "{"], 64, "json"),
            (["event", "publish", "--type", "a", "--after", "@/no/such/file"], 64, "/no/such/file"),
            (["event", "publish", "--type", "a", "--transaction-id", "x"], 64, "transaction-id"),
            (["event", "publish", "--type", ""], 64, "type"),
            (
                ["event", "publish", "--type", "a", "--after", "\"\\u0000\"", "--deliver-at", "2026-13-01"], 64,
                "deliver-at"
            ),
            (["event", "get", "999999"], 4, "999999"), (["event", "get", "x\ny"], 64, "event id"),
            (["event", "trace", "x"], 64, "transaction"),
            (["event", "trace", "9cc8c8d0-3d24-46f4-b63c-8c5d092b7205"], 4, "TransactionId"),
            (["event", "get", "evt_other_1j169jbd5ov_1"], 4, "another installation"),
            (["endpoint", "get", "nobody"], 4, "nobody"),
            (["endpoint", "pause", "nobody", "--reason", "x"], 4, "nobody"),
            (["endpoint", "create", "e", "--url", "ftp://x/"], 64, "https://"),
            (["endpoint", "create", "e", "--url", "http://u:p@x/"], 64, "user name"),
            (["endpoint", "create", "a b", "--url", "https://x.example/"], 64, "name"),
            (["endpoint", "create", "e", "--url", "https://x.example/", "--header", "Host: x"], 64, "Host"),
            (["endpoint", "create", "e", "--url", "https://x.example/", "--header", "no colon"], 64, "header"),
            (["endpoint", "create", "e", "--url", "https://x.example/", "--format", "xml"], 64, "format"),
            (["endpoint", "create", "e", "--url", "https://x.example/", "--timeout", "1e9999d"], 64, "timeout"),
            (
                ["endpoint", "create", "e", "--url", "https://x.example/", "--secret-file", "/no/such/secret"], 64,
                "/no/such/secret"
            ),
            (["delivery", "get", "1", "nobody"], 4, "nobody"),
            (["delivery", "list", "--state", "lost"], 64, "delivered, waiting"),
            (["delivery", "list", "--limit", "0"], 64, "limit"), (["delivery", "list", "--since", "-5x"], 64, "since"),
            (["dead", "replay", "--all"], 64, "reason"), (["dead", "replay"], 64, "dead letter"),
            (["evnt", "list"], 64, "Did you mean \"event\""), (["endpoint", "creat"], 64, "Did you mean \"create\""),
            (["status", "--config", "/no/such/file"], 78, "/no/such/file"),
            (["db", "sql", "--version", "99"], 64, "99"),
        ] as [([String], Int32, String)])
    func `bad input gets an error that names it, and the documented exit code`(
        arguments: [String], code: Int32, named: String
    ) async throws {
        let database = try await TestCluster.database()
        let (end, output, errors) = try await ChildProcess.run(arguments, environment: try environment(database))
        #expect(end == .exit(code), "\(errors)")
        #expect(errors.contains(named), "\(errors)")
        #expect(output.isEmpty)
        #expect(!errors.contains("Fatal error"))
    }

    @Test func `an oversized body is refused by the database's own rule`() async throws {
        let database = try await TestCluster.database()
        let body = "\"" + String(repeating: "x", count: 1_048_576) + "\""
        let (end, _, errors) = try await ChildProcess.run(
            ["event", "publish", "--type", "a", "--after", "-"], environment: try environment(database), input: body)
        #expect(end == .exit(64))
        #expect(errors.contains("payload_too_large"))
    }

    @Test func `databases that cannot be used are told apart`() async throws {
        let server = try await TestCluster.server()
        let database = try await TestCluster.database()
        let empty = try await TestCluster.database(migrated: false)
        func status(_ url: String, _ more: [String: String] = [:]) async throws -> (ChildProcess.End, String) {
            let (end, _, errors) = try await ChildProcess.run(
                ["status"], environment: ["DATABASE_URL": url].merging(more) { $1 })
            return (end, errors)
        }
        let missing = try await status(server + " dbname=no_such_database")
        #expect(missing.0 == .exit(69))
        #expect(missing.1.contains("no_such_database"))
        let down = try await status("host=127.0.0.1 port=1 connect_timeout=2")
        #expect(down.0 == .exit(69))
        let unreadable = try await status("postgres://user:canary@[::1/x")
        #expect(unreadable.0 == .exit(78))
        #expect(!unreadable.1.contains("canary"))
        // A slash in a password makes the rest of it look like a port, which libpq would repeat.
        let unescaped = try await status("postgres://u:canary/x@127.0.0.1/db")
        #expect(unescaped.0 == .exit(78))
        #expect(!unescaped.1.contains("canary"))
        let unmigrated = try await status(empty.connectionString)
        #expect(unmigrated.0 == .exit(78))
        #expect(unmigrated.1.contains("db migrate"))
        try await database.script("CREATE ROLE \"r_\(UInt32.random(in: 0...UInt32.max))\" LOGIN")
        try await database.script("DELETE FROM outbox.migration WHERE version > 3")
        let older = try await status(database.connectionString)
        #expect(older.0 == .exit(78))
        #expect(older.1.contains("version 3"))
        try await database.script("INSERT INTO outbox.migration (version, name, checksum) VALUES (999, 'future', 'x')")
        let newer = try await status(database.connectionString)
        #expect(newer.0 == .exit(78))
        #expect(newer.1.contains("999"))
        let run = try await ChildProcess.run(["run"], environment: ["DATABASE_URL": database.connectionString])
        #expect(run.end == .exit(78))
    }

    @Test func `a wrong password is not permitted, and is not repeated`() async throws {
        // A server of its own that asks for passwords.
        let folder = TestFolder.path("auth")
        let cluster = try await EmbeddedCluster(
            folder: folder,
            settings: ["listen_addresses = '127.0.0.1'", "port = 54391", "fsync = off"].filter { !$0.hasPrefix("port") }
        )
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let database = try TestDatabase(connectionString: cluster.connectionString)
        try await database.script("CREATE ROLE asked LOGIN PASSWORD 'right'")
        let file = try await database.column("SHOW hba_file")[0] ?? ""
        let rules = try String(contentsOfFile: file, encoding: .utf8)
        try "local all asked scram-sha-256\n\(rules)".write(toFile: file, atomically: false, encoding: .utf8)
        try await database.script("SELECT pg_reload_conf()")
        let target = cluster.connectionString.replacing("user=outbox", with: "user=asked password=canary")
        let isRefused = try await eventually {
            let (end, _, errors) = try await ChildProcess.run(["status"], environment: ["DATABASE_URL": target])
            #expect(!errors.contains("canary"))
            return end == .exit(77)
        }
        #expect(isRefused)
        await database.pool.close()
        try cluster.leave()
    }

    @Test func `a password on the command line is refused`() async throws {
        let (end, _, errors) = try await ChildProcess.run([
            "status", "--database-url", "postgres://u:canary@localhost/x",
        ])
        let spaced = try await ChildProcess.run(["status", "--database-url", "host=h password = canary"])
        #expect(spaced.end == .exit(78))
        #expect(end == .exit(78))
        #expect(errors.contains("DATABASE_URL"))
        #expect(!errors.contains("canary"))
    }

    @Test func `errors are JSON when the output is`() async throws {
        let database = try await TestCluster.database()
        let (end, _, errors) = try await ChildProcess.run(
            ["endpoint", "get", "nobody", "-o", "json"], environment: try environment(database))
        #expect(end == .exit(4))
        let error = try #require(try object(errors)["error"] as? [String: Any])
        #expect(error["code"] as? String == "not_found")
    }

    @Test func `the schema commands say where it stands and move it`() async throws {
        let database = try await TestCluster.database(migrated: false)
        let environment = try environment(database)
        func outboxctl(_ arguments: String...) async throws -> (ChildProcess.End, String) {
            let result = try await ChildProcess.run(arguments, environment: environment)
            return (result.end, result.output)
        }
        #expect(try await outboxctl("db", "validate").0 == .exit(1))
        #expect(try object(await outboxctl("db", "status", "-o", "json").1)["schema_version"] as? Int == 0)
        #expect(
            (try object(await outboxctl("db", "plan", "-o", "json").1)["pending"] as? [Any])?.count
                == Migrator.expectedVersion)
        #expect(try await outboxctl("db", "plan", "--show-sql").1.contains("CREATE TABLE outbox.event"))
        #expect(try await database.number("SELECT count(*) FROM pg_namespace WHERE nspname = 'outbox'") == 0)
        #expect(try await outboxctl("db", "migrate").0 == .exit(0))
        #expect(try await outboxctl("db", "migrate").1.contains("nothing to do"))
        #expect(try await outboxctl("db", "validate").0 == .exit(0))
        #expect(try await outboxctl("db", "sql", "--version", "1").1.contains("CREATE TABLE outbox.event"))
        #expect(try await outboxctl("doctor").0 == .exit(0))
    }

    @Test func `settings show where they come from, and no secret`() async throws {
        let folder = TestFolder.path("config")
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        try #"{"log_level": "debug", "lease": "30s"}"#.write(
            toFile: folder + "/outbox.json", atomically: true, encoding: .utf8)
        let (end, output, _) = try await ChildProcess.run(
            ["config", "-o", "json"], in: folder,
            environment: ["DATABASE_URL": "postgres://u:canary@h/d", "OUTBOX_LEASE": "90s"])
        #expect(end == .exit(0))
        #expect(!output.contains("canary"))
        let settings = Dictionary(
            try array(output).map { ($0["key"] as? String ?? "", $0) }, uniquingKeysWith: { first, _ in first })
        #expect(settings["lease"]?["value"] as? String == "90s")
        #expect(settings["lease"]?["origin"] as? String == "environment")
        #expect(settings["log_level"]?["origin"] as? String == "file")
        #expect(settings["grace"]?["origin"] as? String == "default")
        try #"{"leese": "30s"}"#.write(toFile: folder + "/outbox.json", atomically: true, encoding: .utf8)
        let unknown = try await ChildProcess.run(["config"], in: folder)
        #expect(unknown.end == .exit(78))
        #expect(unknown.errors.contains("lease"))
        for (name, value) in [
            ("OUTBOX_LEASE", "soon"), ("OUTBOX_ALLOW_NETWORKS", "10.0.0.0/99"), ("OUTBOX_LOG_LEVEL", "loud"),
        ] {
            let bad = try await ChildProcess.run(["config"], environment: [name: value])
            #expect(bad.end == .exit(78), "\(name)")
            #expect(bad.errors.lowercased().contains(name.dropFirst(7).lowercased()), "\(bad.errors)")
        }
    }

    @Test func `a key file that others can read is refused`() async throws {
        let database = try await TestCluster.database()
        var environment = try environment(database)
        let path = try #require(environment["OUTBOX_SECRET_KEY_FILE"])
        try FileManager.default.setAttributes([.posixPermissions: 0o644], ofItemAtPath: path)
        let open = try await ChildProcess.run(
            ["endpoint", "create", "e", "--url", "https://x.example/"], environment: environment)
        #expect(open.end == .exit(78))
        #expect(open.errors.contains("chmod 600"))
        environment["OUTBOX_SECRET_KEY_FILE"] = "/no/such/key"
        let missing = try await ChildProcess.run(["run"], environment: environment)
        #expect(missing.end == .exit(78))
    }

    @Test func `listen prints, verifies and fails as it is told`() async throws {
        let secret = SigningSecret.generate()
        let file = TestFolder.path("secret")
        try secret.revealed.write(toFile: file, atomically: true, encoding: .utf8)
        let listener = try ChildProcess(
            ChildProcess.outboxctl, ["listen", "--port", "0", "--verify", file, "-o", "jsonl"])
        #expect(await eventually { listener.errors.contains("listening on") })
        let url = try #require(
            listener.errors.split(separator: " ").last?.trimmingCharacters(in: .whitespacesAndNewlines))
        let database = try await TestCluster.database()
        try await database.endpoint("good", url: url)
        try await database.pool.run {
            let configuration = EndpointConfiguration(name: "given", url: url + "given")
            _ = try $0.createEndpoint(configuration, secret: secret, keyring: TestWorker.keyring)
        }
        try await TestWorker.run(database) {
            try await database.publish()
            #expect(try await eventually { try await database.deliveries("delivered") == 1 })
        }
        let lines = try listener.output.split(separator: "\n").map { try object(String($0)) }
        #expect(
            lines.contains {
                $0["target"] as? String == "/given" && $0["verified"] as? Bool == true && $0["status"] as? Int == 200
            })
        #expect(
            lines.contains {
                $0["target"] as? String == "/" && $0["verified"] as? Bool == false && $0["status"] as? Int == 401
            })

        let port = try #require(url.split(separator: ":").last.map { $0.filter(\.isNumber) })
        let taken = try await ChildProcess.run(["listen", "--port", port])
        #expect(taken.end == .exit(69))
        #expect(taken.errors.contains(port))
        listener.signal(SIGTERM)
        #expect(await listener.wait() == .exit(0))
    }

    @Test func `a reader that goes away ends the command quietly`() async throws {
        let database = try await TestCluster.database()
        try await database.publish(500)
        let command = "'\(ChildProcess.outboxctl)' event list --limit 500 -o jsonl | head -1"
        let child = try ChildProcess("/bin/sh", ["-c", command], environment: try environment(database))
        #expect(await child.wait() == .exit(0))
        #expect(child.output.split(separator: "\n").count == 1)
        #expect(child.errors.isEmpty)
    }

    @Test func `a list that ends before its end says so, and no other`() async throws {
        let database = try await TestCluster.database()
        try await database.publish(3)
        for (limit, isCut) in [(2, true), (3, false), (4, false)] {
            let (end, output, errors) = try await ChildProcess.run(
                ["event", "list", "--limit", "\(limit)", "-o", "json"], environment: try environment(database))
            let rows = try array(output)
            #expect(end == .exit(0) && rows.count == min(limit, 3))
            #expect(errors.contains("only the first \(limit) are shown") == isCut, "\(errors)")
        }
    }

    @Test func `every command explains itself`() async throws {
        for noun in [
            "", "run", "status", "doctor", "db", "endpoint", "event", "delivery", "attempt", "dead", "listen",
            "trigger", "config",
        ] {
            let (end, output, _) = try await ChildProcess.run(noun.isEmpty ? ["--help"] : [noun, "--help"])
            #expect(end == .exit(0))
            #expect(output.contains("USAGE"))
        }
    }
}
