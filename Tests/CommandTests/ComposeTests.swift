import Foundation
import Outbox
import OutboxPublishing
import Postgres
import Receiver
import TestSupport
import Testing

/// What docker-compose.yml does, without Docker: its roles on a server of their own, and each part
/// under the one that it has there.
@Suite(.timeLimit(.minutes(15))) struct ComposeTests {
    private var file: String {
        get throws {
            let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("../..")
                .standardized
            return try String(contentsOf: root.appendingPathComponent("docker-compose.yml"), encoding: .utf8)
        }
    }

    /// The script in the configuration `roles`.
    private var script: String {
        get throws {
            let lines = try file.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
            let start = try #require(lines.firstIndex { $0.trimmingCharacters(in: .whitespaces) == "content: |" })
            return lines[(start + 1)...].prefix { $0.isEmpty || $0.hasPrefix("      ") }
                .map { String($0.dropFirst(6)) }.joined(separator: "\n").replacing("$$", with: "$")
        }
    }

    /// Which role each service logs in as.
    private var users: [String] {
        get throws {
            try file.split(separator: "\n").compactMap { line in
                let parts = line.components(separatedBy: "PGUSER: ")
                return parts.count == 2 ? String(parts[1].prefix { $0.isLetter || $0 == "_" }) : nil
            }
        }
    }

    @Test func `every part works with the role that it has, and none is a superuser`() async throws {
        #expect(try users == ["outbox_owner", "app_outbox_worker", "app_outbox_operator"])
        let server = try await TestServer.make()
        let secrets = TestFolder.path("secrets")
        try FileManager.default.createDirectory(atPath: secrets, withIntermediateDirectories: true)
        for role in ["owner", "app", "worker", "operator"] {
            try "\(role)-password\n".write(toFile: "\(secrets)/\(role)_password", atomically: true, encoding: .utf8)
        }
        let roles = try temporaryFile(try script.replacing("/run/secrets", with: secrets))
        let made = try ChildProcess("/bin/bash", [roles], environment: ["PGHOST": server.host, "PGUSER": "outbox"])
        #expect(await made.wait() == .exit(0), "\(made.errors)")

        let key = try Daemon.keyFile()
        func environment(_ user: String) -> [String: String] {
            [
                "PGHOST": server.host, "PGDATABASE": "outbox", "PGUSER": user, "OUTBOX_SECRET_KEY_FILE": key,
                "OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8",
            ]
        }
        func run(_ user: String, _ arguments: String...) async throws -> String {
            let (end, output, errors) = try await ChildProcess.run(arguments, environment: environment(user))
            #expect(end == .exit(0), "\(user) \(arguments): \(output) \(errors)")
            return output
        }
        _ = try await run("outbox_owner", "db", "migrate")
        let ledger = try Ledger()
        let worker = try ChildProcess(ChildProcess.outboxctl, ["run"], environment: environment("app_outbox_worker"))
        #expect(await worker.waitUntilReady(), "\(worker.errors)")
        _ = try await run("app_outbox_worker", "db", "validate")
        _ = try await run("app_outbox_operator", "endpoint", "create", "try", "--url", ledger.url)
        _ = try await run("app_outbox_operator", "trigger", "order.created")
        let app = try ConnectionPool(try ConnectionTarget("host='\(server.host)' user=app dbname=outbox"), size: 1)
        _ = try await app.run { try $0.publish(NewEvent(type: "order.paid")) }
        await app.close()
        #expect(await eventually { ledger.all.count == 2 })
        _ = try await run("app_outbox_operator", "status")
        worker.signal(SIGTERM)
        #expect(await worker.wait() == .exit(0))
        let database = try TestDatabase(connectionString: server.connectionString)
        #expect(
            try await database.column(
                "SELECT rolname FROM pg_roles WHERE rolsuper AND rolname LIKE '%outbox\\_%' OR rolsuper AND rolname = 'app'"
            ) == [])
        #expect(
            try await database.column("SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'outbox'") == [
                "outbox_owner"
            ])
        await database.pool.close()
        ledger.receiver.stop()
        try await server.kill()
    }
}
