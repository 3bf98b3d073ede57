import Outbox
import Postgres
import Receiver
import TestSupport
import Testing

@testable import Scheduler

/// A worker behind PgBouncer in transaction mode, which gives each transaction another server
/// connection, and those of the worker to the application.
@Suite(.timeLimit(.minutes(15))) struct PoolerTests {
    @Test func `a worker behind a pooler delivers everything, and leaves nothing behind in the application's sessions`()
        async throws
    {
        let database = try await TestCluster.database()
        let ledger = try Ledger { request, before in
            let isFirst = request["outbox-attempt"]?.hasPrefix("1/") == true
            return Receiver.Response(isFirst && request.target == "/bad" && before.isMultiple(of: 5) ? 500 : 200)
        }
        try await database.endpoint("free", url: ledger.url + "/free")
        try await database.endpoint("limited", url: ledger.url + "/limited") { $0.maxConcurrency = 2 }
        try await database.endpoint("ordered", url: ledger.url + "/ordered") { $0.isOrdered = true }
        try await database.endpoint("bad", url: ledger.url + "/bad")
        let pooler = try await Pooler(before: database, users: [], connections: 3)
        var configuration = try TestWorker.configuration(database)
        configuration.database = try ConnectionTarget(pooler.connectionString())
        let worker = try await TestWorker(configuration)
        for _ in 0..<20 {
            try await database.script(
                "INSERT INTO outbox.event (type, ordering_key, after) SELECT 't', 'k' || n % 3, to_json(n) FROM generate_series(1, 10) n"
            )
        }
        let isDrained = try await eventually { try await database.deliveries("delivered") == 800 }
        #expect(isDrained)
        #expect(ledger.all.count > 800)
        // The application's transactions on the server connections that the worker has used, one
        // after the other.
        for _ in 0..<6 { #expect(try await asApplication(pooler, Self.settings) == "\"$user\", public on on auto") }
        #expect(try await asApplication(pooler, "SELECT count(*) FROM pg_prepared_statements") == "0")
        #expect(try await asApplication(pooler, "SELECT count(*) FROM pg_listening_channels()") == "0")
        try await worker.stop()
        await pooler.stop()
        ledger.receiver.stop()
    }

    private static let settings =
        "SELECT concat_ws(' ', current_setting('search_path'), current_setting('enable_seqscan'), current_setting('jit'), current_setting('plan_cache_mode'))"

    /// Runs a statement as an application would, and returns what it says.
    private func asApplication(_ pooler: Pooler, _ statement: String) async throws -> String {
        let psql = try ChildProcess("/usr/bin/psql", ["-XAtc", statement, pooler.connectionString()])
        defer { psql.remove() }
        #expect(await psql.wait() == .exit(0), "\(psql.errors)")
        return String(psql.output.dropLast())
    }

    @Test func `what is set for a transaction is gone after it, and the connection is known as a pooler's`()
        async throws
    {
        let database = try await TestCluster.database()
        let pooler = try await Pooler(before: database, users: [], connections: 1)
        let ours = try ConnectionPool(
            try ConnectionTarget(pooler.connectionString()), size: 1, session: WorkerSession.planning)
        let plain = try database.newPool()
        #expect(try await ours.run { $0.isPooled })
        #expect(try await plain.run { !$0.isPooled })
        @Sendable func settings(_ connection: inout Connection) throws -> [String?] {
            try connection.query(
                "SELECT concat_ws(' ', current_setting('search_path'), current_setting('enable_seqscan'), current_setting('transaction_isolation'))"
            )
            .all(String?.self)
        }
        let inside = "pg_catalog, pg_temp off read committed"
        #expect(try await ours.run { try settings(&$0) } == [inside])
        #expect(try await ours.run { try $0.transaction { try settings(&$0) } } == [inside])
        // The one server connection that there is, as the next client finds it.
        #expect(try await asApplication(pooler, Self.settings) == "\"$user\", public on on auto")
        // An error in a statement of its own leaves no transaction open, and the connection goes
        // on.
        let error = await #expect(throws: PostgresError.self) {
            try await ours.run { _ = try $0.query("SELECT 1 / \(0)") }
        }
        #expect(error?.sqlState == "22012")
        #expect(try await ours.run { try settings(&$0) } == [inside])
        for pool in [ours, plain] { await pool.close() }
        await pooler.stop()
    }
}
