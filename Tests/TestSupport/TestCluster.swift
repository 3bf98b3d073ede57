import EmbeddedPostgres
import Foundation
import Outbox
package import Postgres
import Synchronization

/// One PostgreSQL server for all tests of a process, and a fresh database for each test, cloned
/// from a migrated template.
package enum TestCluster {
    private static let toLeave = Mutex<EmbeddedCluster?>(nil)

    /// Starts the server when the first test needs it. It is stopped when the process ends.
    private static let started = Task { () throws -> EmbeddedCluster in
        let folder = TestFolder.path("cluster")
        // Durability is what the product relies on, not what these tests measure; the kill tests
        // bring their own server.
        let cluster = try await EmbeddedCluster(
            folder: folder, settings: ["fsync = off", "max_connections = 800", "log_min_messages = error"])
        toLeave.withLock { $0 = cluster }
        atexit { try? TestCluster.toLeave.withLock { try $0?.leave() } }
        let pool = try ConnectionPool(try ConnectionTarget(cluster.connectionString), size: 1)
        try await pool.run { connection in
            try connection.script("CREATE DATABASE template_outbox", within: .seconds(60))
        }
        await pool.close()
        let template = try ConnectionPool(
            try ConnectionTarget(cluster.connectionString + " dbname=template_outbox"), size: 1)
        try await template.run { _ = try Migrator.migrate(&$0) }
        await template.close()
        return cluster
    }

    private static let numbers = Atomic(0)
    /// CREATE DATABASE wants its template to itself.
    private static let making = Gate(1)

    /// The connection string of the server's maintenance database.
    package static func server() async throws -> String { try await started.value.connectionString }

    /// A new database.
    ///
    /// - Parameter migrated: with the schema, or empty.
    package static func database(migrated: Bool = true) async throws -> TestDatabase {
        let server = try await server()
        let name = "test_\(numbers.add(1, ordering: .relaxed).newValue)"
        try await making.pass {
            let pool = try ConnectionPool(try ConnectionTarget(server), size: 1)
            do {
                try await pool.run {
                    try $0.script(
                        "CREATE DATABASE \(name)\(migrated ? " TEMPLATE template_outbox" : "")", within: .seconds(60))
                }
                await pool.close()
            } catch {
                await pool.close()
                throw error
            }
        }
        let database = try TestDatabase(connectionString: server + " dbname=\(name)")
        // A clone is a copy that sends nothing; this makes it an installation of its own.
        if migrated {
            try await database.pool.run {
                try $0.script(
                    """
                    UPDATE outbox.setting
                       SET instance = left(replace(gen_random_uuid()::text, '-', ''), 8), database = outbox.database_identifier();
                    TRUNCATE outbox.timeline; INSERT INTO outbox.timeline DEFAULT VALUES
                    """)
            }
        }
        return database
    }

    /// A database whose statistics stay as a test leaves them, and in which nobody but the test
    /// reads.
    package static func untendedDatabase() async throws -> TestDatabase {
        let database = try await database()
        try await database.script(
            """
            DO $$ DECLARE t regclass; BEGIN
                FOR t IN SELECT c.oid FROM pg_class c WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind = 'r' LOOP
                    EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off)', t);
                END LOOP;
                -- It would read the table, too.
                FOR t IN SELECT c.oid FROM pg_class c JOIN pg_am m ON m.oid = c.relam
                          WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind = 'i' AND m.amname = 'brin' LOOP
                    EXECUTE format('ALTER INDEX %s SET (autosummarize = off)', t);
                END LOOP;
            END $$;
            """)
        return database
    }
}

/// Lets so many tasks at a time through, in order.
actor Gate {
    private var free: Int
    private var waiters: [CheckedContinuation<Void, Never>] = []

    init(_ places: Int) { free = places }

    func pass<Value>(_ body: () async throws -> Value) async rethrows -> Value {
        // A place that is left goes to the first who waits, and is never free in between.
        if free == 0 { await withCheckedContinuation { waiters.append($0) } } else { free -= 1 }
        defer { if waiters.isEmpty { free += 1 } else { waiters.removeFirst().resume() } }
        return try await body()
    }
}

/// A database of one test.
package final class TestDatabase: Sendable {
    package let connectionString: String
    package let pool: ConnectionPool

    package init(connectionString: String, connections: Int = 2) throws {
        self.connectionString = connectionString
        pool = try ConnectionPool(try ConnectionTarget(connectionString), size: connections)
    }

    deinit {
        // Nobody can use it any more; its connections would count until the process ends.
        Task { [pool] in await pool.close() }
    }

    package var target: ConnectionTarget {
        get throws { try ConnectionTarget(connectionString) }
    }

    /// A pool of connections of one's own.
    package func newPool(size: Int = 1, session: SessionSetUp = SessionSetUp()) throws -> ConnectionPool {
        try ConnectionPool(try target, size: size, session: session)
    }

    /// Runs a statement and returns its first column as text.
    package func column(_ sql: SQL) async throws -> [String?] {
        try await pool.run { try $0.query(sql, asText: true).map { row throws(PostgresError) in try row[0] } }
    }

    /// Runs a statement and returns the first number of its first row.
    package func number(_ sql: SQL) async throws -> Int {
        try await pool.query(sql, of: Int.self).first ?? 0
    }

    /// Waits until somebody in this database waits for a lock; false when nobody does.
    package func someoneWaitsForALock() async throws -> Bool {
        try await eventually {
            try await self.number(
                """
                SELECT count(*) FROM pg_locks
                 WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                """) > 0
        }
    }

    /// Runs a script.
    package func script(_ text: String) async throws {
        try await pool.run { try $0.script(text, within: .seconds(120)) }
    }
}

/// Waits until the condition holds; false when it does not within the limit, which is there to end
/// a broken test.
package func eventually(
    within limit: Duration = .seconds(180), _ condition: @Sendable () async throws -> Bool
) async rethrows -> Bool {
    let deadline = ContinuousClock.now + limit
    while .now < deadline {
        if try await condition() { return true }
        do { try await Task.sleep(for: .milliseconds(20)) } catch { return false }
    }
    return try await condition()
}
