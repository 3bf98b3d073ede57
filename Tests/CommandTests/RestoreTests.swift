import EmbeddedPostgres
import Foundation
import Outbox
import Postgres
import Receiver
import TestSupport
import Testing

/// A dump of one cluster, restored with PostgreSQL's own tools into another.
@Suite struct RestoreTests {
    /// Moves the cluster's transaction ids ahead.
    private func spendTransactionIDs(_ count: Int, in database: TestDatabase) async throws {
        try await database.script(
            "DO $$ BEGIN FOR i IN 1..\(count) LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$")
    }

    private func tool(_ name: String, _ arguments: [String]) async throws {
        let program = try ServerBinaries.find(environment: ProcessInfo.processInfo.environment).folder + "/" + name
        let child = try ChildProcess(program, arguments)
        #expect(await child.wait() == .exit(0), "\(child.errors)")
        child.remove()
    }

    /// The numbers of the events that are in some batch.
    private func batched(_ database: TestDatabase) async throws -> [String?] {
        try await database.column(
            """
            SELECT e.after ->> 'n' FROM outbox.event e JOIN outbox.batch b ON b.ids @> e.id ORDER BY (e.after ->> 'n')::int
            """)
    }

    private func publish(_ numbers: ClosedRange<Int>, in database: TestDatabase) async throws {
        for number in numbers { try await database.script("SELECT outbox.publish('test', '{\"n\":\(number)}')") }
    }

    private func cut(_ database: TestDatabase, budget: Int = 5000) async throws -> Cut {
        try await database.pool.run { try $0.cut(batchSize: 500, budget: budget) }
    }

    /// - Parameter spent: transaction ids that the old cluster is ahead of the new one, or the new one of the old one.
    @Test(arguments: [(old: 5000, new: 0), (old: 0, new: 5000)])
    func `a restored database is noticed and repaired: nothing is lost and nothing repeated`(
        spent: (old: Int, new: Int)
    )
        async throws
    {
        let source = try await TestCluster.database()
        try await spendTransactionIDs(spent.old, in: source)
        // 1 to 4 were delivered, 5 and 6 are in a batch, 7 and 8 belong to a sweep under way that took 7, 9 is new.
        try await publish(1...4, in: source)
        #expect(try await cut(source) == .events(4))
        try await source.script("DELETE FROM outbox.batch")
        try await publish(5...6, in: source)
        #expect(try await cut(source) == .events(2))
        try await publish(7...8, in: source)
        #expect(try await cut(source, budget: 1) == .events(1))
        try await publish(9...9, in: source)

        let folder = TestFolder.path("restore")
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        let cluster = try await EmbeddedCluster(folder: folder + "/cluster", settings: ["fsync = off"])
        defer {
            do { try cluster.leave() } catch { Issue.record(error) }
            try? FileManager.default.removeItem(atPath: folder)
        }
        let server = TestDatabase(connectionString: cluster.connectionString)
        for role in ["producer", "worker", "reader", "operator"] {
            try await server.script("CREATE ROLE outbox_\(role)")
        }
        try await server.script("CREATE DATABASE restored")
        try await spendTransactionIDs(spent.new, in: server)
        try await tool("pg_dump", ["-Fc", "-f", folder + "/dump", source.connectionString])
        let restored = TestDatabase(connectionString: cluster.connectionString + " dbname=restored")
        try await tool("pg_restore", ["-d", restored.connectionString, folder + "/dump"])

        // Producers came back before anybody noticed; 11 and 12 in subtransactions, which have ids of their own.
        try await publish(10...10, in: restored)
        try await restored.script(
            "BEGIN; SAVEPOINT a; SELECT outbox.publish('test', '{\"n\":11}'); RELEASE a; SAVEPOINT b; SELECT outbox.publish('test', '{\"n\":12}'); COMMIT"
        )
        let error = await #expect(throws: PostgresError.self) { try await cut(restored) }
        #expect(error?.sqlState == "OB010")
        #expect(error?.hint?.contains("outboxctl db rebase") == true)
        let environment = ["DATABASE_URL": restored.connectionString]
        let doctor = try await ChildProcess.run(["doctor"], environment: environment)
        #expect(doctor.output.contains("restored_database"))

        let repaired = try await ChildProcess.run(["db", "rebase", "-o", "json"], environment: environment)
        #expect(repaired.end == .exit(0), "\(repaired.errors)")
        #expect(repaired.output.contains("\"events_requeued\":5"), "\(repaired.output)")
        #expect(try await batched(restored) == (5...12).map { "\($0)" })
        let again = try await ChildProcess.run(["db", "rebase"], environment: environment)
        #expect(again.output.contains("nothing to do"))

        // Nothing comes back when this cluster reaches the old one's transaction ids, and the stream goes on.
        #expect(try await cut(restored) == .events(0))
        try await spendTransactionIDs(6000, in: restored)
        #expect(try await cut(restored) == .events(0))
        try await publish(13...13, in: restored)
        #expect(try await cut(restored) == .events(1))
        #expect(try await batched(restored) == (5...13).map { "\($0)" })
        await restored.pool.close()
        await server.pool.close()
    }
}
