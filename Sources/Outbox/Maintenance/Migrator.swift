import Bytewise
import Crypto
package import OutboxSchema
package import Postgres

/// Brings a database's schema to the version of this binary.
package enum Migrator {
    /// The version that this binary works with.
    package static let expectedVersion = Migration.all.count

    /// How a database's schema compares with this binary.
    package struct Status: Sendable {
        /// The newest applied migration; 0 when there is no schema.
        package let version: Int
        /// The applied migrations, oldest first.
        package let applied: [Applied]
        /// The migrations that this binary would still apply.
        package let pending: [Migration]
        /// Applied migrations whose text was changed afterwards, or that this binary does not know.
        package let drifted: [Applied]

        /// True when this binary can work with the database as it is.
        package var isCurrent: Bool { version == Migrator.expectedVersion && drifted.isEmpty }
    }

    /// A row of `outbox.migration`.
    package struct Applied: Sendable {
        package let version: Int
        package let name: String
        package let checksum: String
        package let appliedAt: Timestamp
    }

    /// Why the schema cannot be used or migrated.
    package enum SchemaError: Error, Sendable, CustomStringConvertible {
        case missing
        case unfit(String)
        case older(found: Int)
        case newer(found: Int)
        case drifted([String])
        case busy
        case foreignSchema(String, owner: String)
        case openSchema(String, to: String)
        case foreignObject(String, schema: String)

        package var description: String {
            switch self {
            case .missing: "the database has no outbox schema: {db.migrate}"
            case .unfit(let why): why
            case .older(let found):
                "the schema is at version \(found), this binary needs \(Migrator.expectedVersion): {db.migrate}"
            case .newer(let found):
                "the schema is at version \(found), this binary knows only \(Migrator.expectedVersion); install the newer one"
            case .drifted(let names):
                "applied migrations differ from this binary's: \(names.joined(separator: ", ")); "
                    + "use the binary that applied them, or restore the files"
            case .foreignSchema(let schema, let owner):
                "what is in the schema \"\(schema)\" is of the role \(owner), who could run anything with this user's rights; "
                    + "connect as \(owner) to migrate, and as a member of outbox_operator or outbox_worker for the rest"
            case .openSchema(let schema, let roles):
                "\(roles) may create something in the schema \"\(schema)\", which would run with this user's rights; "
                    + "run: REVOKE CREATE ON SCHEMA \(schema) FROM \(roles); and see ALTER DEFAULT PRIVILEGES"
            case .foreignObject(let object, let schema):
                "\(object) is not of the role that owns the schema \"\(schema)\", and could run with this user's rights; "
                    + "see whose it is, and drop it, or the schema when nothing in it is needed"
            case .busy:
                "another migration is running, or another session holds a lock on outbox.migration; try again when it is done"
            }
        }
    }

    /// Throws a `SchemaError` for a database that cannot hold our schema: its server is too old, or
    /// its encoding is not UTF-8.
    package static func requireFit(_ connection: inout Connection) throws {
        let found = try connection.query(
            """
            SELECT current_setting('server_version_num')::int, current_setting('server_version'), current_setting('server_encoding'),
                   current_database()::text
            """
        ).one(Int.self, String.self, String.self, String.self)
        let (number, version, encoding, name) = found
        if number < 150_000 {
            throw SchemaError.unfit("the server is PostgreSQL \(version); 15 or later is needed")
        }
        if encoding != "UTF8" {
            throw SchemaError.unfit(
                "the database \(name) has the encoding \(encoding), and UTF8 is needed; "
                    + "make another with: createdb -E UTF8 -T template0 NAME")
        }
    }

    /// Reads the state of the database's schema.
    package static func status(_ connection: inout Connection) throws -> Status {
        try requireFit(&connection)
        let exists = try connection.query("SELECT to_regclass('outbox.migration') IS NOT NULL").first(Bool.self)
        guard exists == true else { return Status(version: 0, applied: [], pending: Migration.all, drifted: []) }
        try requireTrust(&connection)
        let applied = try connection.query(
            "SELECT version, name, checksum, applied_at FROM outbox.migration ORDER BY version"
        ).map { row throws(PostgresError) in
            Applied(version: try row[0], name: try row[1], checksum: try row[2], appliedAt: try row[3])
        }
        let version = applied.last?.version ?? 0
        let drifted = applied.filter { applied in
            applied.version <= expectedVersion && checksum(Migration.all[applied.version - 1]) != applied.checksum
        }
        return Status(
            version: version, applied: applied, pending: Migration.all.filter { $0.version > version }, drifted: drifted
        )
    }

    /// Throws a `SchemaError` unless this binary can work with the database as it is.
    package static func check(_ connection: inout Connection) throws {
        let status = try status(&connection)
        if status.version == 0 { throw SchemaError.missing }
        if status.version > expectedVersion { throw SchemaError.newer(found: status.version) }
        if !status.drifted.isEmpty { throw SchemaError.drifted(status.drifted.map(\.name)) }
        if status.version < expectedVersion { throw SchemaError.older(found: status.version) }
    }

    /// Applies the missing migrations, all in one transaction, and returns those that it applied.
    ///
    /// Two migrators cannot race: the second waits for the first and then finds nothing to do; when
    /// it has waited for `lockTimeout`, it throws `SchemaError.busy`. A schema that is newer than
    /// this binary is refused untouched.
    @discardableResult
    package static func migrate(
        _ connection: inout Connection, lockTimeout: Duration = .seconds(30)
    ) throws -> [Migration] {
        try requireFit(&connection)
        do {
            return try connection.transaction { connection in
                try connection.query("SELECT set_config('lock_timeout', \("\(lockTimeout.milliseconds)ms"), true)")
                try lock(&connection, within: lockTimeout + .seconds(5))
                let status = try status(&connection)
                if status.version > expectedVersion { throw SchemaError.newer(found: status.version) }
                if !status.drifted.isEmpty { throw SchemaError.drifted(status.drifted.map(\.name)) }
                if status.version > 0, !status.pending.isEmpty { try connection.requireHome(instance: nil) }
                for migration in status.pending {
                    try connection.query(
                        """
                        INSERT INTO outbox.migration (version, name, checksum)
                        VALUES (\(migration.version), \(migration.name), \(checksum(migration)))
                        """)
                    try connection.script(migration.text, within: .seconds(300))
                }
                return status.pending
            }
        } catch let error as PostgresError where error.sqlState == "55P03" {
            throw SchemaError.busy
        }
    }

    /// Throws a `SchemaError` when objects in the schema may belong to a role with fewer rights
    /// than this session: everything that we read or call there runs with our rights. PostgreSQL's
    /// own tables decide, before anything in the schema is touched.
    ///
    /// A superuser trusts itself and other superusers. Every other role trusts the schema's owner,
    /// and only its owner migrates.
    private static func requireTrust(_ connection: inout Connection) throws {
        let schemas = try connection.query(
            """
            SELECT n.nspowner = u.oid OR o.rolsuper OR NOT u.rolsuper AND (m.oid IS NULL OR m.relkind = 'r' AND m.relowner = n.nspowner),
                   o.rolname, n.nspname,
                   (SELECT string_agg(coalesce(quote_ident(g.rolname), 'PUBLIC'), ', ')
                      FROM aclexplode(n.nspacl) a LEFT JOIN pg_roles g ON g.oid = a.grantee
                     WHERE a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner AND g.rolsuper IS NOT TRUE),
                   (SELECT min(x.name) FROM (
                        SELECT p.oid::regprocedure::text, p.proowner FROM pg_proc p WHERE p.pronamespace = n.oid
                        UNION ALL SELECT c.oid::regclass::text, c.relowner FROM pg_class c WHERE c.relnamespace = n.oid
                        UNION ALL SELECT t.oid::regtype::text, t.typowner FROM pg_type t WHERE t.typnamespace = n.oid
                        UNION ALL SELECT o.oid::regoperator::text, o.oprowner FROM pg_operator o WHERE o.oprnamespace = n.oid) x(name, owner)
                      WHERE x.owner <> n.nspowner)
              FROM pg_namespace n JOIN pg_roles o ON o.oid = n.nspowner JOIN pg_roles u ON u.rolname = current_user
              LEFT JOIN pg_class m ON m.relnamespace = n.oid AND m.relname = 'migration'
             WHERE n.nspname IN ('outbox', 'outbox_api', 'outbox_private') ORDER BY n.nspname
            """
        ).map { row throws(PostgresError) in
            (
                isTrusted: try row[0] as Bool, owner: try row[1] as String, schema: try row[2] as String,
                others: try row[3] as String?, planted: try row[4] as String?
            )
        }
        for found in schemas {
            if !found.isTrusted { throw SchemaError.foreignSchema(found.schema, owner: found.owner) }
            if let others = found.others { throw SchemaError.openSchema(found.schema, to: others) }
            if let planted = found.planted { throw SchemaError.foreignObject(planted, schema: found.schema) }
        }
    }

    /// Locks the migrations for this session until the transaction ends. It is not an advisory
    /// lock, which any session could take: holding this lock takes a right, and queueing for it
    /// takes the right to name the table. Of two sessions that create the table, the second waits
    /// until the first has committed, and begins again.
    private static func lock(_ connection: inout Connection, within limit: Duration) throws {
        try requireTrust(&connection)
        try connection.script("SAVEPOINT schema", within: limit)
        do throws(PostgresError) {
            try connection.script(
                """
                CREATE SCHEMA IF NOT EXISTS outbox;
                CREATE TABLE IF NOT EXISTS outbox.migration (
                    version    int PRIMARY KEY,
                    name       text NOT NULL,
                    checksum   text NOT NULL,
                    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
                );
                """, within: limit)
        } catch {
            // Another session made it at this moment.
            guard error.sqlState == "23505" else { throw error }
            try connection.script("ROLLBACK TO schema")
        }
        try requireTrust(&connection)
        try connection.script("LOCK TABLE outbox.migration IN SHARE UPDATE EXCLUSIVE MODE", within: limit)
    }

    private static func checksum(_ migration: Migration) -> String {
        hexadecimal(SHA256.hash(data: Array(migration.text.utf8)))
    }
}
