import EmbeddedPostgres
import Foundation
import Outbox
import OutboxSchema
import Postgres
import TestSupport
import Testing

@Suite(.timeLimit(.minutes(15))) struct SchemaTests {
    @Test func `migrations are numbered without a gap and named after their files`() throws {
        #expect(Migration.all.map(\.version) == Array(1...Migration.all.count))
        #expect(Set(Migration.all.map(\.name)).count == Migration.all.count)
        let files = try FileManager.default.contentsOfDirectory(atPath: root + "/sql/migrations").sorted()
        let names = Migration.all.map { migration in
            let digits = String(migration.version)
            return "v" + String(repeating: "0", count: 4 - digits.count) + digits + "_" + migration.name + ".sql"
        }
        #expect(files == names)
        for (file, migration) in zip(files, Migration.all) {
            #expect(try String(contentsOfFile: root + "/sql/migrations/" + file, encoding: .utf8) == migration.text)
        }
    }

    @Test func `two migrators at once: one applies, the other finds nothing to do`() async throws {
        let database = try await TestCluster.database(migrated: false)
        let pool = try database.newPool(size: 2)
        async let first = pool.run { try Migrator.migrate(&$0) }
        async let second = pool.run { try Migrator.migrate(&$0) }
        let counts = try await [first.count, second.count].sorted()
        #expect(counts == [0, Migration.all.count])
        await pool.close()
    }

    @Test func `a migrator that waits too long says that another is running`() async throws {
        let database = try await TestCluster.database(migrated: false)
        let holder = try database.newPool()
        try await holder.run { try $0.script("BEGIN; CREATE SCHEMA outbox") }
        await #expect(throws: Migrator.SchemaError.self) {
            try await database.pool.run { _ = try Migrator.migrate(&$0, lockTimeout: .milliseconds(100)) }
        }
        #expect(try await database.pool.run { try Migrator.status(&$0).version } == 0)
        await holder.close()
    }

    @Test func `missing, older, newer and changed schemas are each refused by name`() async throws {
        let empty = try await TestCluster.database(migrated: false)
        let database = try await TestCluster.database()
        func refusal(_ database: TestDatabase) async -> String? {
            do {
                try await database.pool.run { try Migrator.check(&$0) }
                return nil
            } catch { return String(describing: error) }
        }
        #expect(await refusal(empty)?.contains("no outbox schema") == true)
        #expect(await refusal(database) == nil)
        try await database.script("UPDATE outbox.migration SET checksum = 'x' WHERE version = 2")
        #expect(await refusal(database)?.contains("publish") == true)
        try await database.script("DELETE FROM outbox.migration WHERE version > 1")
        #expect(await refusal(database)?.contains("version 1") == true)
        try await database.script("INSERT INTO outbox.migration (version, name, checksum) VALUES (999, 'future', 'x')")
        #expect(await refusal(database)?.contains("999") == true)
        await #expect(throws: Migrator.SchemaError.self) {
            try await database.pool.run { _ = try Migrator.migrate(&$0) }
        }
    }

    @Test func `the schema is the one in sql/catalogue.txt`() async throws {
        let database = try await TestCluster.database()
        // Everything that a reviewer must see when it changes, as every server tells it: tables,
        // columns, defaults, constraints, indexes, functions, views, triggers and grants. The
        // partitions of the day are left out.
        let dump =
            try await database.column(
                """
                SELECT line FROM (
                    SELECT 1 AS part, c.relname || '.' || lpad(a.attnum::text, 2, '0') AS place,
                           format('column %s.%s %s%s%s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
                                  CASE WHEN a.attnotnull THEN ' not null' ELSE '' END,
                                  coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')) AS line
                      FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                      LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
                     WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
                    UNION ALL
                    SELECT 2, c.relname || k.conname, format('constraint %s %s %s', c.relname, k.conname, pg_get_constraintdef(k.oid))
                      FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
                     -- From 18 on what is not null is a constraint, too.
                     WHERE c.relnamespace = 'outbox'::regnamespace AND NOT c.relispartition AND k.contype <> 'n'
                    UNION ALL
                    SELECT 3, indexname, indexdef FROM pg_indexes i JOIN pg_class c ON c.oid = format('outbox.%I', tablename)::regclass
                     WHERE schemaname = 'outbox' AND NOT c.relispartition
                    UNION ALL
                    SELECT 4, p.oid::regprocedure::text, format('function %s returns %s%s %s', p.oid::regprocedure, pg_get_function_result(p.oid),
                           CASE WHEN p.prosecdef THEN ' security definer' ELSE '' END, md5(p.prosrc))
                      FROM pg_proc p WHERE p.pronamespace IN ('outbox'::regnamespace, 'outbox_api'::regnamespace, 'outbox_private'::regnamespace)
                    UNION ALL
                    SELECT 5, c.relname, format('view %s', c.relname)
                      FROM pg_class c WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind = 'v'
                    UNION ALL
                    SELECT 6, c.relname || t.tgname, pg_get_triggerdef(t.oid)
                      FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
                     WHERE c.relnamespace = 'outbox'::regnamespace AND NOT c.relispartition AND NOT t.tgisinternal
                    UNION ALL
                    SELECT 7, grantee || table_name || privilege_type, format('grant %s on %s to %s', lower(privilege_type), table_name, grantee)
                      FROM information_schema.role_table_grants WHERE table_schema = 'outbox' AND grantee LIKE 'outbox\\_%'
                    UNION ALL
                    SELECT 8, grantee || routine_name || specific_name, format('grant execute on %s%s to %s', CASE routine_schema WHEN 'outbox' THEN '' ELSE routine_schema || '.' END, routine_name, grantee)
                      FROM information_schema.role_routine_grants WHERE routine_schema IN ('outbox', 'outbox_api', 'outbox_private') AND grantee LIKE 'outbox\\_%') x
                 ORDER BY part, place COLLATE "C", line COLLATE "C"
                """
            ).compactMap { $0 }.joined(separator: "\n") + "\n"
        let path = root + "/sql/catalogue.txt"
        if ProcessInfo.processInfo.environment["OUTBOX_TEST_UPDATE"] != nil {
            try dump.write(toFile: path, atomically: true, encoding: .utf8)
        }
        #expect(
            try String(contentsOfFile: path, encoding: .utf8) == dump,
            "run OUTBOX_TEST_UPDATE=1 swift test --filter SchemaTests, and look at the difference")
    }

    /// The repository's folder.
    private var root: String {
        URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("../..").standardized.path
    }
}
