import Foundation
import Outbox
import Postgres
import TestSupport
import Testing

/// What an error advises: each of these makes the cause, and where that can be, does what is
/// advised.
@Suite(.timeLimit(.minutes(15))) struct HintTests {
    private func error(
        _ target: String, _ arguments: [String], options: String? = nil
    ) async throws -> (end: ChildProcess.End, errors: String) {
        var environment = ["DATABASE_URL": target, "OUTBOX_SECRET_KEY_FILE": try Daemon.keyFile()]
        environment["PGOPTIONS"] = options
        let (end, _, errors) = try await ChildProcess.run(arguments, environment: environment)
        return (end, errors)
    }

    @Test func `limits that a role has for its statements are not ours`() async throws {
        let database = try await TestCluster.database()
        let name = "hurried_\(UInt32.random(in: 0...UInt32.max))"
        try await database.script(
            """
            CREATE ROLE \(name) LOGIN; GRANT outbox_operator TO \(name);
            ALTER ROLE \(name) SET statement_timeout = '300ms'; ALTER ROLE \(name) SET lock_timeout = '300ms'
            """)
        let target = database.connectionString.replacing("user=outbox", with: "user=\(name)")
        let holder = try database.newPool()
        try await holder.run { try $0.script("BEGIN; LOCK TABLE outbox.endpoint IN ACCESS EXCLUSIVE MODE") }
        let waiting = Task { try await error(target, ["endpoint", "list"]) }
        let isOver = try await eventually {
            try await database.number(
                """
                SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
                 WHERE NOT l.granted AND a.usename = \(name) AND l.waitstart < clock_timestamp() - interval '600 ms'
                """) == 1
        }
        #expect(isOver)
        try await holder.run { try $0.script("ROLLBACK") }
        let (end, errors) = try await waiting.value
        #expect(end == .exit(0), "\(errors)")
        await holder.close()
    }

    @Test func `a statement that somebody ends was ended by somebody, and not by a server that is down`() async throws {
        let database = try await TestCluster.database()
        let holder = try database.newPool()
        try await holder.run {
            try $0.script(
                "SET idle_in_transaction_session_timeout = 0; BEGIN; LOCK TABLE outbox.endpoint IN ACCESS EXCLUSIVE MODE"
            )
        }
        let waiting = Task { try await error(database.connectionString, ["endpoint", "list"]) }
        let isEnded = try await eventually {
            try await database.number(
                """
                SELECT count(*) FROM (SELECT pg_cancel_backend(pid) FROM pg_stat_activity
                 WHERE application_name = 'outboxctl' AND wait_event_type = 'Lock' AND datname = current_database()) c
                """) == 1
        }
        #expect(isEnded)
        let (end, errors) = try await waiting.value
        #expect(end == .exit(69))
        #expect(errors.contains("pg_cancel_backend") && !errors.contains("Is the server running"), "\(errors)")
        try await holder.run { try $0.script("ROLLBACK") }
        await holder.close()
    }

    @Test func `a statement that waits for somebody's lock sends to doctor, which names who has it`() async throws {
        let database = try await TestCluster.database()
        let holder = try database.newPool()
        try await holder.run {
            try $0.script(
                "SET idle_in_transaction_session_timeout = 0; BEGIN; LOCK TABLE outbox.endpoint IN ACCESS EXCLUSIVE MODE"
            )
        }
        let pid = try #require(
            try await holder.query("SELECT pg_backend_pid()", of: Int.self).first)
        // Also when nobody waits yet but doctor itself.
        let (_, output, _) = try await ChildProcess.run(
            ["doctor"], environment: ["DATABASE_URL": database.connectionString])
        #expect(output.contains("process \(pid) of role outbox holds a lock on outbox.endpoint"), "\(output)")
        #expect(output.contains("pg_terminate_backend(\(pid))"))
        let (end, errors) = try await error(database.connectionString, ["endpoint", "list"])
        #expect(end == .exit(69))
        #expect(errors.contains("outboxctl doctor") && !errors.contains("Is the server running"), "\(errors)")
        try await holder.run { try $0.script("ROLLBACK") }
        await holder.close()
    }

    @Test(arguments: [
        (["endpoint", "list"], "outbox_operator"), (["status"], "outbox_operator"),
        (["event", "publish", "--type", "t"], "outbox_operator"), (["run"], "outbox_worker"),
    ]) func `who lacks a right is told the role that has it, and with that it works`(
        arguments: [String], role: String
    ) async throws {
        let database = try await TestCluster.database()
        let name = "newcomer_\(UInt32.random(in: 0...UInt32.max))"
        try await database.script("CREATE ROLE \(name) LOGIN")
        let target = database.connectionString.replacing("user=outbox", with: "user=\(name)")
        let (end, errors) = try await error(target, arguments)
        #expect(end == .exit(77))
        #expect(errors.contains("GRANT \(role) TO"), "\(errors)")
        try await database.script("GRANT \(role) TO \(name)")
        if arguments == ["run"] {
            let worker = try ChildProcess(
                ChildProcess.outboxctl, arguments,
                environment: ["DATABASE_URL": target, "OUTBOX_SECRET_KEY_FILE": try Daemon.keyFile()])
            #expect(await worker.waitUntilReady(), "\(worker.errors)")
            worker.signal(SIGTERM)
            #expect(await worker.wait() == .exit(0))
        } else {
            let again = try await error(target, arguments)
            #expect(again.end == .exit(0), "\(again.errors)")
        }
    }

    @Test func `a server that is not there, a database that is not, and a schema that is not are told apart`()
        async throws
    {
        let down = try await error("host=127.0.0.1 port=1 connect_timeout=2", ["status"])
        #expect(down.end == .exit(69) && down.errors.contains("Is the server running"), "\(down.errors)")
        let missing = try await error(try await TestCluster.server() + " dbname=no_such_database", ["status"])
        #expect(missing.end == .exit(69) && missing.errors.contains("Create the database"), "\(missing.errors)")
        let empty = try await TestCluster.database(migrated: false)
        let bare = try await error(empty.connectionString, ["status"])
        #expect(bare.end == .exit(78) && bare.errors.contains("outboxctl db migrate"), "\(bare.errors)")
        #expect(try await error(empty.connectionString, ["db", "migrate"]).end == .exit(0))
        #expect(try await error(empty.connectionString, ["status"]).end == .exit(0))
    }
}
