import EmbeddedPostgres
import Foundation
import Outbox
import Postgres
import Receiver
import TestSupport
import Testing

/// A dump of one cluster, restored with PostgreSQL's own tools into another.
@Suite(.timeLimit(.minutes(15))) struct RestoreTests {
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

    /// - Parameter spent: transaction ids that the old cluster is ahead of the new one, or the new
    ///   one of the old one.
    @Test(arguments: [(old: 5000, new: 0), (old: 0, new: 5000)])
    func `a restored database is noticed and repaired: nothing is lost and nothing repeated`(
        spent: (old: Int, new: Int)
    )
        async throws
    {
        let source = try await TestCluster.database()
        try await spendTransactionIDs(spent.old, in: source)
        // 1 to 4 were delivered, 5 and 6 are in a batch, 7 and 8 belong to a sweep under way that
        // took 7, 9 is new.
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
        let server = try TestDatabase(connectionString: cluster.connectionString)
        for role in ["producer", "worker", "reader", "operator"] {
            try await server.script("CREATE ROLE outbox_\(role)")
        }
        try await server.script("CREATE DATABASE restored")
        try await spendTransactionIDs(spent.new, in: server)
        try await tool("pg_dump", ["-Fc", "-f", folder + "/dump", source.connectionString])
        let restored = try TestDatabase(connectionString: cluster.connectionString + " dbname=restored")
        try await tool("pg_restore", ["-d", restored.connectionString, folder + "/dump"])

        // Producers came back before anybody noticed; 11 and 12 in subtransactions, which have ids
        // of their own.
        try await publish(10...10, in: restored)
        try await restored.script(
            "BEGIN; SAVEPOINT a; SELECT outbox.publish('test', '{\"n\":11}'); RELEASE a; SAVEPOINT b; SELECT outbox.publish('test', '{\"n\":12}'); COMMIT"
        )
        let error = await #expect(throws: PostgresError.self) { try await cut(restored) }
        #expect(error?.sqlState == "OB010")
        #expect(error?.hint?.contains("{db.rebase}") == true)
        let environment = ["DATABASE_URL": restored.connectionString]
        let doctor = try await ChildProcess.run(["doctor"], environment: environment)
        #expect(doctor.output.contains("restored_database"))

        let repaired = try await ChildProcess.run(["db", "rebase", "-o", "json"], environment: environment)
        #expect(repaired.end == .exit(0), "\(repaired.errors)")
        #expect(repaired.output.contains("\"events_requeued\":5"), "\(repaired.output)")
        #expect(try await batched(restored) == (5...12).map { "\($0)" })
        let again = try await ChildProcess.run(["db", "rebase"], environment: environment)
        #expect(again.output.contains("nothing to do"))

        // Nothing comes back when this cluster reaches the old one's transaction ids, and the
        // stream goes on.
        #expect(try await cut(restored) == .events(0))
        try await spendTransactionIDs(6000, in: restored)
        #expect(try await cut(restored) == .events(0))
        try await publish(13...13, in: restored)
        #expect(try await cut(restored) == .events(1))
        #expect(try await batched(restored) == (5...13).map { "\($0)" })
        await restored.pool.close()
        await server.pool.close()
    }

    private func copy(_ source: TestDatabase) async throws -> TestDatabase {
        let name = "copy_\(UInt32.random(in: 0 ... .max))"
        let original = try #require(try await source.column("SELECT current_database()")[0])
        await source.pool.close()
        let server = try TestDatabase(connectionString: try await TestCluster.server())
        try await server.script("CREATE DATABASE \(name) TEMPLATE \(original)")
        await server.pool.close()
        return try TestDatabase(
            connectionString: source.connectionString.replacing("dbname=\(original)", with: "dbname=\(name)"))
    }

    @Test func `a copy within the cluster sends nothing, lanes included, until it is told to`() async throws {
        let source = try await TestCluster.database()
        let ledger = try Ledger()
        defer { ledger.receiver.stop() }
        try await source.endpoint("free", url: ledger.url)
        try await source.endpoint("limited", url: ledger.url) { $0.maxConcurrency = 1 }
        try await publish(1...2, in: source)
        #expect(try await cut(source) == .events(2))
        // One batch that a worker of the original holds, and what waits in a lane.
        _ = try await source.pool.run { try $0.claimBatch(lease: .random(), worker: "w", for: .seconds(3600)) }
        try await source.script(
            """
            INSERT INTO outbox.delivery (event_id, event_at, endpoint_id, due_at, trigger)
            SELECT e.id, e.created_at, n.id, '-infinity', 'retry' FROM outbox.event e, outbox.endpoint n WHERE n.name = 'limited';
            UPDATE outbox.lane SET due_at = '-infinity'
            """)
        try await publish(3...3, in: source)
        let copy = try await copy(source)
        let key = try Daemon.keyFile()
        let environment = [
            "DATABASE_URL": copy.connectionString, "OUTBOX_SECRET_KEY_FILE": key,
            "OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8",
        ]
        for arguments in [["run"], ["endpoint", "test", "free"], ["endpoint", "evaluate", "free"]] {
            let (end, _, errors) = try await ChildProcess.run(arguments, environment: environment)
            #expect(end == .exit(78) && errors.contains("outboxctl db rebase"), "\(arguments): \(errors)")
        }
        // Not by a worker either that was connected before the name led here.
        let lease = LeaseID.random()
        #expect(
            try await copy.pool.run { try $0.claimBatch(lease: lease, worker: "w", for: .seconds(60)).batch == nil })
        #expect(
            try await copy.pool.run {
                try $0.claimLanes(lease: lease, worker: "w", for: .seconds(60), excluding: []).lanes.isEmpty
            })
        let limited = try await copy.pool.run { try $0.endpointID("limited") }
        #expect(
            try await copy.pool.run {
                try $0.lanePage(of: limited, after: .start(.none), recoveredAt: nil).deliveries.isEmpty
            })
        #expect(await cutRefusal(copy) == "OB010")
        let doctor = try await ChildProcess.run(["doctor"], environment: environment)
        #expect(doctor.output.contains("restored_database"))
        #expect(ledger.all.isEmpty)

        // In the original's place: everything that is outstanding, once; under the original's ids.
        try await publish(4...4, in: copy)
        let rebased = try await ChildProcess.run(["db", "rebase", "-o", "json"], environment: environment)
        #expect(rebased.output.contains("\"events_requeued\":2"), "\(rebased.output) \(rebased.errors)")
        try await TestWorker.run(copy) {
            let isDone = try await eventually { try await copy.deliveries("delivered") == 8 }
            #expect(isDone)
        }
        #expect(ledger.all.count == 8)
        #expect(Set(ledger.all.map { $0["webhook-id"] }).count == 4)
        await copy.pool.close()
    }

    private func cutRefusal(_ database: TestDatabase) async -> String? {
        do {
            _ = try await cut(database)
            return nil
        } catch { return (error as? PostgresError)?.sqlState }
    }

    @Test func `a staging copy gets a name of its own and sends nothing until an endpoint is enabled`() async throws {
        let source = try await TestCluster.database()
        let ledger = try Ledger()
        defer { ledger.receiver.stop() }
        try await source.endpoint("e", url: ledger.url)
        try await publish(1...1, in: source)
        let instance = try await source.pool.run { try $0.instance() }
        let copy = try await copy(source)
        let environment = ["DATABASE_URL": copy.connectionString]
        let rebased = try await ChildProcess.run(
            ["db", "rebase", "--new-instance", "--disable-endpoints", "-o", "json"], environment: environment)
        #expect(rebased.end == .exit(0), "\(rebased.errors)")
        let other = try await copy.pool.run { try $0.instance() }
        #expect(other != instance)
        try await TestWorker.run(copy) {
            let isDrained = try await eventually { try await copy.isDrained() }
            #expect(isDrained)
            try await copy.pool.run { try $0.enableEndpoint(try $0.endpointID("e")) }
            try await publish(2...2, in: copy)
            #expect(await eventually { ledger.all.count == 1 })
        }
        #expect(ledger.all[0]["webhook-id"]?.hasPrefix("evt_\(other)_") == true)
        #expect(
            try await copy.column("SELECT detail ->> 'new_instance' FROM outbox.audit WHERE action = 'db.rebase'") == [
                "true"
            ])
        await copy.pool.close()
    }

    @Test func `a worker works on the installation that it is meant for, and renaming stops nothing`() async throws {
        let database = try await TestCluster.database()
        let key = try Daemon.keyFile()
        func run(_ instance: String, _ arguments: String...) async throws -> (end: ChildProcess.End, errors: String) {
            let (end, _, errors) = try await ChildProcess.run(
                arguments,
                environment: [
                    "DATABASE_URL": database.connectionString, "OUTBOX_SECRET_KEY_FILE": key,
                    "OUTBOX_INSTANCE": instance,
                ])
            return (end, errors)
        }
        let instance = try await database.pool.run { try $0.instance() }
        for command in ["run", "status"] {
            let refused = try await run("0badc0de", command)
            #expect(refused.end == .exit(78), "\(refused.errors)")
        }
        #expect(try await run(instance, "status").end == .exit(0))
        // One that has begun with an instance claims nothing in another, wherever it is led.
        try await publish(1...1, in: database)
        #expect(try await cut(database) == .events(1))
        let lease = LeaseID.random()
        #expect(
            try await database.pool.run {
                try $0.claimBatch(lease: lease, worker: "w", for: .seconds(60), instance: "0badc0de").batch == nil
            })
        let name = try #require(try await database.column("SELECT current_database()")[0])
        await database.pool.close()
        let server = try TestDatabase(connectionString: try await TestCluster.server())
        try await server.script("ALTER DATABASE \(name) RENAME TO \(name)_renamed")
        await server.pool.close()
        let renamed = try TestDatabase(connectionString: database.connectionString + "_renamed")
        #expect(
            try await renamed.pool.run {
                try $0.claimBatch(lease: lease, worker: "w", for: .seconds(60), instance: instance).batch != nil
            })
        await renamed.pool.close()
    }

    @Test func `rebase tells what was published since by who wrote it, however old the rest is`() async throws {
        let database = try await TestCluster.database()
        try await publish(1...3, in: database)
        #expect(try await cut(database) == .events(3))
        try await database.script("DELETE FROM outbox.batch")
        // Another cluster whose transaction ids are behind, so that the position in the stream lies
        // in the future: what is made after the data is made anew there, and then producers
        // publish.
        let behind = """
            INSERT INTO outbox.cut (done) SELECT (xmax::text::bigint + 100000 || ':' || xmax::text::bigint + 100000 || ':')::pg_snapshot
              FROM pg_snapshot_xmax(pg_current_snapshot()) xmax;
            """
        let remade = """
            UPDATE pg_trigger SET tgname = tgname WHERE tgrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'outbox'::regnamespace);
            UPDATE pg_constraint SET conname = conname WHERE connamespace = 'outbox'::regnamespace;
            """
        try await database.script(behind + "UPDATE outbox.setting SET cluster = cluster + 1;" + remade)
        let body = "\"" + String(repeating: "x", count: 20_000) + "\""
        try await database.publish(300, after: body)
        // What a tool for bulk loads does between: the trigger is younger than the events before
        // it.
        try await database.script(
            "ALTER TABLE outbox.event DISABLE TRIGGER wake_worker; ALTER TABLE outbox.event ENABLE TRIGGER wake_worker")
        try await database.publish(300, after: body)
        let requeued = try await database.pool.run { try $0.rebase() }
        #expect(requeued == 600)
        // As large as a cut makes them.
        #expect(try await database.number("SELECT count(*) FROM outbox.batch WHERE size > 500") == 0)
        #expect(
            try await database.number(
                "SELECT count(*) FROM outbox.event e JOIN outbox.batch b ON b.ids @> e.id WHERE e.id > 3") == 600)
        // In the same place, and transaction ids that have begun anew.
        try await database.script("DELETE FROM outbox.batch;" + behind)
        #expect(await cutRefusal(database) == "OB010")
        try await database.script(remade)
        try await publish(9...9, in: database)
        #expect(try await database.pool.run { try $0.rebase() } == 1)
    }
}
