import Foundation
import Outbox
import Postgres
import Synchronization
import TestSupport
import Testing

/// A lesser role runs nothing with a greater one's rights, and holds nobody up.
@Suite(.timeLimit(.minutes(15))) struct RightsTests {
    private static let numbers = Atomic(0)

    /// A role that can log in, member of others, with a pool of connections of its own.
    private func login(_ database: TestDatabase, _ grants: String...) async throws -> (
        name: String, pool: ConnectionPool
    ) {
        let name = "app_\(Self.numbers.add(1, ordering: .relaxed).newValue)_\(UInt32.random(in: 0 ... .max))"
        try await database.script("CREATE ROLE \(name) LOGIN")
        for grant in grants { try await database.script("GRANT \(grant) TO \(name)") }
        let string = database.connectionString.replacing("user=outbox", with: "user=\(name)")
        return (name, try ConnectionPool(try ConnectionTarget(string), size: 1))
    }

    private func sqlState(_ pool: ConnectionPool, _ script: String) async -> String? {
        do {
            try await pool.run { try $0.transaction { try $0.script(script) } }
            return nil
        } catch { return (error as? PostgresError)?.sqlState ?? "\(error)" }
    }

    @Test func `every function is bound when it is made, or sets its own path`() async throws {
        let database = try await TestCluster.database()
        let others = try await database.column(
            """
            SELECT oid::regprocedure::text FROM pg_proc
             WHERE pronamespace IN ('outbox'::regnamespace, 'outbox_api'::regnamespace, 'outbox_private'::regnamespace) AND prosqlbody IS NULL
               AND 'search_path=pg_catalog, pg_temp' <> ALL (coalesce(proconfig, '{}'))
            """)
        #expect(others == [])
        // Of those that run with the owner's rights, only these take anything from a caller that
        // may be hostile, and all of it is of PostgreSQL's own types: no cast or operator of
        // anybody else is looked for.
        let foreign = try await database.column(
            """
            SELECT p.oid::regprocedure::text FROM pg_proc p, unnest(p.proargtypes) a JOIN pg_type t ON t.oid = a
             WHERE p.pronamespace IN ('outbox'::regnamespace, 'outbox_api'::regnamespace, 'outbox_private'::regnamespace) AND p.prosecdef AND t.typnamespace <> 'pg_catalog'::regnamespace
            """)
        #expect(foreign == [])
    }

    @Test func `emit turns a row into JSON with the rights of whoever changed it`() async throws {
        let database = try await TestCluster.database()
        let (name, pool) = try await login(database, "outbox_producer")
        try await database.script("CREATE SCHEMA evil AUTHORIZATION \(name)")
        // The cast is the producer's own, and tells who runs it.
        try await pool.run {
            try $0.script(
                """
                CREATE TABLE evil.seen (who text);
                CREATE TYPE evil.thing AS ENUM ('a');
                CREATE FUNCTION evil.as_json(evil.thing) RETURNS json LANGUAGE plpgsql AS
                $$ BEGIN INSERT INTO evil.seen VALUES (current_user); RETURN '1'; END $$;
                CREATE CAST (evil.thing AS json) WITH FUNCTION evil.as_json(evil.thing);
                CREATE TABLE evil.orders (id int, thing evil.thing);
                CREATE TRIGGER emit AFTER INSERT ON evil.orders FOR EACH ROW EXECUTE FUNCTION outbox.emit('order');
                INSERT INTO evil.orders VALUES (1, 'a')
                """)
        }
        #expect(try await database.column("SELECT DISTINCT who FROM evil.seen") == [name])
        #expect(try await database.number("SELECT count(*) FROM outbox.event WHERE type = 'order'") == 1)
        await pool.close()
    }

    /// An operator and a function that fit our domains and types better than PostgreSQL's, in a
    /// schema that comes first.
    private static func trap(_ name: String) -> String {
        """
        CREATE SCHEMA evil; GRANT ALL ON SCHEMA evil TO PUBLIC;
        CREATE TABLE evil.seen (what text, who text); GRANT ALL ON evil.seen TO PUBLIC;
        CREATE FUNCTION evil.equal(outbox.event_type, text) RETURNS boolean LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO evil.seen VALUES ('type = text', current_user); RETURN true; END $$;
        CREATE FUNCTION evil.equal(text, outbox.event_type) RETURNS boolean LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO evil.seen VALUES ('text = type', current_user); RETURN true; END $$;
        CREATE FUNCTION evil.equal(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO evil.seen VALUES ('bigint = bigint', current_user); RETURN $1 OPERATOR(pg_catalog.-) $2 OPERATOR(pg_catalog.>=) 0; END $$;
        CREATE FUNCTION evil.count(bigint) RETURNS bigint LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO evil.seen VALUES ('count', current_user); RETURN 1; END $$;
        CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO evil.seen VALUES ('clock_timestamp', current_user); RETURN pg_catalog.clock_timestamp(); END $$;
        CREATE OPERATOR evil.= (LEFTARG = outbox.event_type, RIGHTARG = text, FUNCTION = evil.equal);
        CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = outbox.event_type, FUNCTION = evil.equal);
        CREATE OPERATOR evil.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = evil.equal);
        ALTER ROLE \(name) SET search_path = evil, pg_catalog
        """
    }

    /// What a worker and an operator do, in a few statements.
    private func work(_ pool: ConnectionPool) async throws {
        _ = try await pool.run { connection in
            _ = try connection.cut(batchSize: 500, budget: 5000)
            _ = try connection.claimBatch(lease: .random(), worker: "w", for: .seconds(60))
            _ = try connection.batchFloor()
            #expect(connection.keepHouse().failures.isEmpty)
            var filter = ListFilter()
            filter.eventType = "test"
            filter.customerID = "default"
            _ = try connection.listEvents(filter)
            _ = try connection.listDeliveries(filter)
            _ = try connection.problems()
            _ = try connection.transaction { try $0.listEvents(filter) }
        }
    }

    @Test(arguments: [false, true]) func `a search path that leads elsewhere changes nothing`(isPooled: Bool)
        async throws
    {
        let database = try await TestCluster.database()
        let (name, own) = try await login(database, "outbox_worker", "outbox_operator", "outbox_reader")
        await own.close()
        try await database.script(Self.trap(name))
        try await database.publish(3)
        let pooler = isPooled ? try await Pooler(before: database, users: [name]) : nil
        let string =
            pooler?.connectionString(user: name)
            ?? database.connectionString.replacing("user=outbox", with: "user=\(name)")
        let pool = try ConnectionPool(try ConnectionTarget(string), size: 2, session: WorkerSession.planning)
        try await work(pool)
        #expect(try await database.column("SELECT DISTINCT what || ' as ' || who FROM evil.seen") == [])
        // The trap is one: without the path, the same words mean something else.
        try await pool.run {
            try $0.script(
                "SET search_path = evil, pg_catalog; SELECT count(*) FROM outbox.event WHERE type = 'test'::text")
        }
        #expect(try await database.number("SELECT count(*) FROM evil.seen") > 0)
        await pool.close()
        await pooler?.stop()
    }

    @Test func `a stranger's advisory locks stop nobody, and make nobody notify`() async throws {
        let database = try await TestCluster.database()
        let (_, stranger) = try await login(database)
        try await stranger.run { connection in
            for number in 1...3 { try connection.query("SELECT pg_advisory_lock(7231, \(Int32(number)))") }
        }
        try await database.publish(2)
        #expect(try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) } == .events(2))
        try await database.pool.run { _ = try Migrator.migrate(&$0, lockTimeout: .seconds(2)) }
        let listener = try database.newPool(session: SessionSetUp(channel: "outbox"))
        #expect(try await listener.run { try $0.waitForNotification(upTo: .milliseconds(20)) } == false)
        try await database.publish(1)
        #expect(try await listener.run { try $0.waitForNotification(upTo: .milliseconds(50)) } == false)
        // What would do it needs a right.
        #expect(await sqlState(stranger, "LOCK TABLE outbox.cutting IN SHARE UPDATE EXCLUSIVE MODE") == "42501")
        #expect(await sqlState(stranger, "SELECT setval('outbox.asleep_until', 9999999999)") == "42501")
        #expect(await sqlState(stranger, "LOCK TABLE outbox.migration IN ACCESS SHARE MODE") == "42501")
        for right in ["outbox_producer", "outbox_reader"] {
            let (_, pool) = try await login(database, right)
            for script in [
                "LOCK TABLE outbox.cutting IN SHARE UPDATE EXCLUSIVE MODE",
                "SELECT setval('outbox.asleep_until', 9999999999)",
                "SELECT nextval('outbox.asleep_until')", "LOCK TABLE outbox.migration IN EXCLUSIVE MODE",
                "LOCK TABLE outbox.event IN SHARE MODE", "SELECT FROM outbox.setting FOR UPDATE",
                "LOCK TABLE outbox.lane IN SHARE ROW EXCLUSIVE MODE",
            ] { #expect(await sqlState(pool, script) == "42501", "\(right): \(script)") }
            await pool.close()
        }
        await stranger.close()
        await listener.close()
    }

    @Test func `a schema that somebody else has put there is not filled`() async throws {
        let database = try await TestCluster.database(migrated: false)
        let (name, stranger) = try await login(database)
        let (owner, pool) = try await login(database)
        try await database.script(
            "GRANT CREATE ON DATABASE \(try await database.column("SELECT current_database()")[0] ?? "") TO \(name), \(owner)"
        )
        try await stranger.run { try $0.script("CREATE SCHEMA outbox; GRANT ALL ON SCHEMA outbox TO PUBLIC") }
        let refusal = await #expect(throws: Migrator.SchemaError.self) {
            try await pool.run { _ = try Migrator.migrate(&$0) }
        }
        #expect(refusal?.description.contains("PUBLIC may create") == true)
        #expect(
            try await database.number("SELECT count(*) FROM pg_class WHERE relnamespace = 'outbox'::regnamespace") == 0)
        // A superuser least of all: neither to migrate nor to look, also when the table is there,
        // or something that looks like it.
        for script in [
            "SELECT 1",
            "CREATE VIEW outbox.migration AS SELECT 1 AS version, 'x' AS name, 'y' AS checksum, now() AS applied_at",
            "DROP VIEW outbox.migration; CREATE TABLE outbox.migration (version int PRIMARY KEY, name text NOT NULL, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())",
        ] {
            try await stranger.run { try $0.script(script) }
            let foreign = await #expect(throws: Migrator.SchemaError.self) {
                try await database.pool.run { _ = try Migrator.migrate(&$0) }
            }
            #expect(foreign?.description.contains("is of the role \(name)") == true)
            if script != "SELECT 1" {
                await #expect(throws: Migrator.SchemaError.self) {
                    try await database.pool.run { try Migrator.check(&$0) }
                }
            }
        }
        await stranger.close()
        await pool.close()
    }

    /// What was planted while others could create stays when they cannot any more, and is preferred
    /// where it fits better than ours.
    @Test(arguments: [
        "CREATE FUNCTION outbox.refuse_body(int, int) RETURNS boolean LANGUAGE sql AS 'SELECT true'",
        "CREATE TABLE outbox.planted ()", "CREATE TYPE outbox.planted AS ENUM ('a')",
        "CREATE OPERATOR outbox.=== (FUNCTION = pg_catalog.texteq, LEFTARG = text, RIGHTARG = text)",
    ])
    func `a schema with something of somebody else's in it is neither filled nor used`(planted: String) async throws {
        let database = try await TestCluster.database(migrated: false)
        let (name, stranger) = try await login(database)
        func refusal(_ work: @escaping @Sendable (inout Connection) throws -> Void) async -> String? {
            let refusal = await #expect(throws: Migrator.SchemaError.self) { try await database.pool.run(work) }
            return refusal?.description
        }
        try await database.script("CREATE SCHEMA outbox; GRANT ALL ON SCHEMA outbox TO \(name)")
        try await stranger.run { try $0.script(planted) }
        try await database.script("REVOKE ALL ON SCHEMA outbox FROM \(name)")
        #expect(await refusal { _ = try Migrator.migrate(&$0) }?.contains("is not of the role that owns") == true)
        try await database.script("DROP SCHEMA outbox CASCADE")
        try await database.pool.run { _ = try Migrator.migrate(&$0) }
        for schema in ["outbox", "outbox_api", "outbox_private"] {
            try await database.script("GRANT ALL ON SCHEMA \(schema) TO \(name)")
            #expect(
                await refusal { try Migrator.check(&$0) }?.contains("CREATE ON SCHEMA \(schema) FROM \(name)") == true)
            try await stranger.run { try $0.script(planted.replacing("outbox.", with: "\(schema).")) }
            try await database.script("REVOKE ALL ON SCHEMA \(schema) FROM \(name)")
            #expect(await refusal { try Migrator.check(&$0) }?.contains("is not of the role that owns") == true)
            try await database.script("DROP OWNED BY \(name)")
            try await database.pool.run { try Migrator.check(&$0) }
        }
        await stranger.close()
    }

    @Test func `who can name the private functions is named by doctor`() async throws {
        let database = try await TestCluster.database()
        let (name, pool) = try await login(database, "outbox_operator")
        func problems() async throws -> [String?] {
            try await database.column("SELECT detail FROM outbox.problems WHERE problem = 'private_schema_open'")
        }
        #expect(try await problems() == [])
        // Not pg_read_all_data, which would be for every database of the server, and so for other
        // tests.
        try await database.script("GRANT USAGE ON SCHEMA outbox_private TO \(name)")
        #expect(try await problems().map { $0?.contains(name) } == [true])
        await pool.close()
    }

    @Test func `what a view shows is not of a type whose check it has passed`() async throws {
        let database = try await TestCluster.database()
        #expect(
            try await database.column(
                """
                SELECT c.relname || '.' || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
                  JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_type e ON e.oid = t.typelem
                 WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind = 'v' AND 'outbox'::regnamespace IN (t.typnamespace, e.typnamespace)
                """) == [])
        try await database.script(
            "INSERT INTO outbox.event (type, customer_id) VALUES ('outbox.endpoint.disabled', 'x')")
        let (_, pool) = try await login(database, "outbox_producer", "outbox_reader")
        #expect(
            await sqlState(
                pool, "INSERT INTO outbox.event (type) SELECT t FROM outbox.transactions, unnest(event_types) t")
                == "23514")
        await pool.close()
    }

    @Test func `a role that does not inherit its membership is bound like any other`() async throws {
        let database = try await TestCluster.database()
        let (name, pool) = try await login(database)
        try await database.script(
            "ALTER ROLE \(name) NOINHERIT; GRANT outbox_producer TO \(name); SELECT outbox.grant_publish('\(name)', '{acme}')"
        )
        #expect(await sqlState(pool, "SELECT outbox_api.publish('t', customer_id => 'acme')") == nil)
        #expect(await sqlState(pool, "SELECT outbox_api.publish('t', customer_id => 'gamma')") == "OB004")
        // It may put the other role on, and is that one then.
        #expect(
            await sqlState(pool, "SET LOCAL ROLE outbox_producer; SELECT outbox.publish('t', customer_id => 'gamma')")
                == nil)
        // A role that was given another name is still the one whose right is taken away.
        let (old, second) = try await login(database)
        try await database.script(
            """
            SELECT outbox.grant_publish('\(old)', '{acme}'); ALTER ROLE \(old) RENAME TO \(old)_renamed;
            SELECT outbox.grant_publish('\(old)_renamed', '{}')
            """)
        #expect(try await database.number("SELECT count(*) FROM outbox.producer_customer WHERE role = '\(old)'") == 0)
        await pool.close()
        await second.close()
    }

    @Test func `a schema in which others may create is neither filled nor used`() async throws {
        let database = try await TestCluster.database(migrated: false)
        let (name, stranger) = try await login(database)
        func refusal(_ work: @escaping @Sendable (inout Connection) throws -> Void) async -> String? {
            let refusal = await #expect(throws: Migrator.SchemaError.self) { try await database.pool.run(work) }
            return refusal?.description
        }
        try await database.script("CREATE SCHEMA outbox; GRANT ALL ON SCHEMA outbox TO PUBLIC, \(name)")
        #expect(await refusal { _ = try Migrator.migrate(&$0) }?.contains("PUBLIC") == true)
        try await database.script("REVOKE CREATE ON SCHEMA outbox FROM PUBLIC")
        #expect(await refusal { _ = try Migrator.migrate(&$0) }?.contains(name) == true)
        try await database.script("REVOKE CREATE ON SCHEMA outbox FROM \(name)")
        // What the service would put functions into is not there before it.
        for taken in ["outbox_api", "outbox_private"] {
            try await database.script("CREATE SCHEMA \(taken) AUTHORIZATION \(name)")
            #expect(await refusal { _ = try Migrator.migrate(&$0) }?.contains("is of the role \(name)") == true)
            try await database.script("ALTER SCHEMA \(taken) OWNER TO CURRENT_USER")
            await #expect { try await database.pool.run { _ = try Migrator.migrate(&$0) } } throws: {
                ($0 as? PostgresError)?.sqlState == "OB020"
            }
            try await database.script("DROP SCHEMA \(taken)")
        }
        try await database.pool.run { _ = try Migrator.migrate(&$0) }
        try await database.script("GRANT CREATE ON SCHEMA outbox TO \(name)")
        #expect(await refusal { try Migrator.check(&$0) }?.contains("REVOKE CREATE") == true)
        await stranger.close()
    }

    /// nextval locks whatever it is given before it looks at it, and anybody may call it.
    @Test func `who can only connect neither stops a migration, nor a cut, nor retention`() async throws {
        let database = try await TestCluster.database()
        let (_, stranger) = try await login(database)
        try await database.script(
            """
            UPDATE outbox.setting SET event_retention = '1 hour';
            CREATE TABLE outbox.event_old PARTITION OF outbox.event FOR VALUES FROM ('2020-01-01') TO ('2020-01-02');
            INSERT INTO outbox.event (type, created_at) VALUES ('old', '2020-01-01 12:00')
            """)
        #expect(try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) } == .events(1))
        try await database.script("DELETE FROM outbox.batch")
        try await stranger.run { connection in
            try connection.script("SET idle_in_transaction_session_timeout = 0; BEGIN")
            for table in ["event", "event_default", "migration", "cutting", "batch", "setting", "cut"] {
                let oid = try connection.query(
                    "SELECT c.oid::int8 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'outbox' AND c.relname = \(table)"
                ).first(Int64.self)
                try connection.script("SAVEPOINT s")
                do throws(PostgresError) { try connection.script("SELECT nextval(\(oid ?? 0)::oid::regclass)") } catch {
                    #expect(error.sqlState == "42809", "\(table): \(error)")
                }
                try connection.script("ROLLBACK TO s")
            }
        }
        #expect(
            try await database.number(
                "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database WHERE d.datname = current_database() AND mode = 'RowExclusiveLock' AND relation = 'outbox.event'::regclass"
            )
                == 1)
        try await database.pool.run { _ = try Migrator.migrate(&$0, lockTimeout: .seconds(1)) }
        try await database.publish(3)
        #expect(try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) } == .events(3))
        // Dropping the partition takes the lock; emptying it does not.
        #expect(try await database.pool.run { $0.keepHouse().dropped } == [])
        #expect(try await database.number("SELECT count(*) FROM outbox.event WHERE type = 'old'") == 0)
        await #expect { try await database.pool.run { try $0.rebase(isNewInstance: true) } } throws: {
            ($0 as? PostgresError)?.sqlState == "55P03"
        }
        await stranger.close()
        #expect(await eventuallyDropped(database))
    }

    private func eventuallyDropped(_ database: TestDatabase) async -> Bool {
        (try? await eventually { try await database.pool.run { $0.keepHouse().dropped } == ["event_old"] }) ?? false
    }

    @Test func `a producer can be prepared where transactions may be, whoever sleeps`() async throws {
        let server = try await TestServer.make(settings: ["max_prepared_transactions=5"])
        let database = try TestDatabase(connectionString: server.connectionString)
        try await database.pool.run { _ = try Migrator.migrate(&$0) }
        // Whatever the mark says.
        try await database.script("SELECT setval('outbox.asleep_until', 9999999999)")
        #expect(try await database.pool.run { try $0.sleep(for: .seconds(60)) } == false)
        try await database.script(
            "BEGIN; INSERT INTO outbox.event (type) VALUES ('a'); PREPARE TRANSACTION 'p'")
        #expect(try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) } == .events(0))
        try await database.script("COMMIT PREPARED 'p'")
        #expect(try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) } == .events(1))
        await database.pool.close()
        try await server.kill()
    }

    @Test func `what the service says about itself no producer can say`() async throws {
        let database = try await TestCluster.database()
        let (_, producer) = try await login(database, "outbox_producer")
        for (script, state) in [
            ("SELECT outbox.publish('outbox.endpoint.disabled', '{}')", "OB002"),
            ("INSERT INTO outbox.event (type) VALUES ('outbox.endpoint.disabled')", "23514"),
        ] { #expect(await sqlState(producer, script) == state, "\(script)") }
        let (_, operator_) = try await login(database, "outbox_operator")
        #expect(await sqlState(operator_, "SELECT outbox.publish('outbox.x')") == "OB002")
        let (_, worker) = try await login(database, "outbox_worker")
        #expect(await sqlState(worker, "INSERT INTO outbox.event (type) VALUES ('outbox.endpoint.disabled')") == nil)
        for pool in [producer, operator_, worker] { await pool.close() }
    }

    @Test func `a dedup key is a role's own, and a customer's`() async throws {
        let database = try await TestCluster.database()
        let (_, one) = try await login(database, "outbox_producer")
        let (_, two) = try await login(database, "outbox_producer")
        func publish(_ pool: ConnectionPool, customer: String) async throws -> Int64? {
            try await pool.query(
                "SELECT outbox.publish('t', customer_id => \(customer), dedup_key => 'order-1')", of: Int64.self
            ).first
        }
        let first = try await publish(one, customer: "acme")
        #expect(try await publish(one, customer: "acme") == first)
        #expect(try await publish(two, customer: "acme") != first)
        #expect(try await publish(one, customer: "other") != first)
        #expect(try await database.number("SELECT count(*) FROM outbox.event") == 3)
        let tooLong = String(repeating: "é", count: 129)
        #expect(await sqlState(one, "SELECT outbox.publish('t', dedup_key => '\(tooLong)')") == "OB002")
        #expect(await sqlState(one, "SELECT outbox.publish('t', dedup_key => '')") == "OB002")
        await one.close()
        await two.close()
    }

    @Test func `a role that is bound to customers publishes for them and for nobody else`() async throws {
        let database = try await TestCluster.database()
        let (name, pool) = try await login(database)
        #expect(await sqlState(pool, "SELECT outbox_api.publish('t')") == "42501")
        try await database.script("SELECT outbox.grant_publish('\(name)', '{acme,beta}')")
        #expect(await sqlState(pool, "SELECT outbox_api.publish('t', customer_id => 'acme')") == nil)
        #expect(await sqlState(pool, "SELECT outbox_api.publish('t', customer_id => 'gamma')") == "OB004")
        #expect(await sqlState(pool, "SELECT outbox_api.publish('t')") == "OB004")
        // Playing the bound role gives no more than being it; being more gives more.
        let (_, player) = try await login(database, name)
        #expect(
            await sqlState(player, "SET ROLE \(name); SELECT outbox_api.publish('t', customer_id => 'gamma')")
                == "OB004")
        #expect(await sqlState(player, "SELECT outbox_api.publish('t', customer_id => 'beta')") == nil)
        // Its own trigger publishes with its rights.
        try await database.script("CREATE SCHEMA own AUTHORIZATION \(name)")
        try await pool.run {
            try $0.script(
                """
                CREATE TABLE own.orders (id int, tenant text);
                CREATE TRIGGER emit AFTER INSERT ON own.orders FOR EACH ROW EXECUTE FUNCTION outbox_api.emit('order', 'tenant');
                INSERT INTO own.orders VALUES (1, 'acme')
                """)
        }
        #expect(await sqlState(pool, "INSERT INTO own.orders VALUES (2, 'gamma')") == "OB004")
        // So does one that somebody else has put on its table.
        try await database.script(
            "CREATE TRIGGER emit2 AFTER INSERT ON own.orders FOR EACH ROW EXECUTE FUNCTION outbox.emit('order2', 'tenant')"
        )
        #expect(await sqlState(pool, "INSERT INTO own.orders VALUES (3, 'acme')") == nil)
        try await database.script("SELECT outbox.grant_publish('\(name)', '{}')")
        #expect(await sqlState(pool, "SELECT outbox_api.publish('t', customer_id => 'acme')") == "42501")
        try await database.script("GRANT outbox_producer TO \(name)")
        #expect(await sqlState(database.pool, "SELECT outbox.grant_publish('\(name)', '{acme}')") == "OB002")
        #expect(
            try await database.column("SELECT type || ' ' || customer_id FROM outbox.event ORDER BY id") == [
                "t acme", "t beta", "order acme", "order acme", "order2 acme",
            ])
        await pool.close()
        await player.close()
    }

    @Test func `what a bound role says arrives as it was said`() async throws {
        let database = try await TestCluster.database()
        let (name, pool) = try await login(database)
        try await database.script("SELECT outbox.grant_publish('\(name)', '{acme}')")
        func said(by function: String) async throws -> String? {
            try await database.script("DELETE FROM outbox.event; DELETE FROM outbox.dedup")
            let script = """
                SELECT \(function).begin_operation('00000000-0000-4000-8000-000000000001', 'somebody');
                SELECT \(function).publish(
                    'type', after => '{"a": 1}', change_type => 'change', customer_id => 'acme', before => '{"a":  0}',
                    identity => 'identity', transaction_id => '00000000-0000-4000-8000-000000000002', ordering_key => 'order',
                    dedup_key => 'dedup', deliver_at => '2999-01-01', headers => '{"h": "v"}', occurred_at => '2001-01-01');
                SELECT \(function).publish('plain', customer_id => 'acme')
                """
            #expect(await sqlState(function == "outbox" ? database.pool : pool, script) == nil)
            return try await database.column(
                """
                SELECT jsonb_agg(to_jsonb(e) - '{id,tx,created_at}'::text[] ORDER BY id)::text || (SELECT count(*) FROM outbox.dedup)
                  FROM outbox.event e
                """)[0]
        }
        let direct = try await said(by: "outbox")
        #expect(try await said(by: "outbox_api") == direct)
        #expect(direct?.contains("somebody") == true)
        await pool.close()
    }

    /// ANALYZE, REFRESH and their like run what a table's owner has made in the session of whoever
    /// runs them.
    @Test func `what a role has made is that role also in a superuser's session`() async throws {
        let database = try await TestCluster.database()
        let (bound, pool) = try await login(database)
        let (manager, operating) = try await login(database, "outbox_operator")
        try await database.script("SELECT outbox.grant_publish('\(bound)', '{acme}')")
        try await operating.run { try $0.script("SELECT outbox.record_audit(NULL, 'before', 'b', NULL, NULL)") }
        for (role, pool, body) in [
            (bound, pool, "outbox_api.publish('t', customer_id => 'gamma')"),
            (bound, pool, "outbox_api.publish('t', customer_id => 'acme', dedup_key => 'k')"),
            (manager, operating, "outbox.record_audit(NULL, 'during', 'b', NULL, NULL)"),
            (manager, operating, "outbox.set_body_limit(2000)"),
            (
                manager, operating,
                "outbox.record_endpoint_test(gen_random_uuid(), 0, now(), 'test', gen_random_uuid(), now(), '{}', true, 200, '', '', '', '')"
            ),
        ] {
            try await database.script("CREATE SCHEMA own AUTHORIZATION \(role)")
            try await pool.run {
                try $0.script(
                    """
                    CREATE TABLE own.said (what text);
                    CREATE FUNCTION own.act() RETURNS void LANGUAGE plpgsql AS $$
                    BEGIN
                        PERFORM \(body);
                        INSERT INTO own.said VALUES ('done');
                    EXCEPTION WHEN OTHERS THEN INSERT INTO own.said VALUES (SQLSTATE);
                    END $$;
                    CREATE FUNCTION own.f(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
                    BEGIN
                        IF session_user <> '\(role)' THEN PERFORM own.act(); END IF;
                        RETURN $1;
                    END $$;
                    CREATE TABLE own.t (a int);
                    CREATE INDEX ON own.t (own.f(a));
                    INSERT INTO own.t VALUES (1)
                    """)
            }
            try await database.script("ANALYZE own.t")
            let isGamma = body.contains("gamma")
            #expect(
                try await database.column("SELECT DISTINCT what FROM own.said") == [isGamma ? "OB004" : "done"],
                "\(body)")
            try await database.script("DROP SCHEMA own CASCADE")
        }
        #expect(try await database.column("SELECT DISTINCT customer_id FROM outbox.event") == ["acme"])
        #expect(try await database.column("SELECT DISTINCT producer FROM outbox.dedup") == [bound])
        #expect(try await database.column("SELECT DISTINCT worker FROM outbox.attempt") == [manager])
        // Whose session it was, and who acted in it.
        #expect(
            try await database.column(
                "SELECT DISTINCT action || ' ' || session FROM outbox.audit WHERE action <> 'producer.grant' ORDER BY 1"
            )
                == [
                    "before \(manager)", "db.set_body_limit outbox as \(manager)", "during outbox as \(manager)",
                ])
        // Nobody can say himself for whom he calls.
        for pool in [pool, operating] {
            #expect(
                await sqlState(pool, "SELECT outbox_private.record_audit('x', NULL, 'a', 'b', NULL, NULL)") == "42501")
        }
        await pool.close()
        await operating.close()
    }

    /// Locks that PostgreSQL takes before it asks for a right, and what may be made of a table that
    /// can be named.
    @Test func `a bound role can name nothing of ours, and so neither queue for its locks nor depend on it`()
        async throws
    {
        let database = try await TestCluster.database()
        let (name, pool) = try await login(database)
        try await database.script(
            "SELECT outbox.grant_publish('\(name)', '{acme}'); CREATE SCHEMA own AUTHORIZATION \(name)")
        let holder = try ConnectionPool(
            try ConnectionTarget(database.connectionString.replacing("user=outbox", with: "user=\(name)")), size: 1)
        // Its own open transaction, for which the next ones would wait with everybody behind them.
        try await holder.run { try $0.script("BEGIN; SELECT outbox_api.publish('t', customer_id => 'acme')") }
        let relations = try await database.column(
            """
            SELECT relname::text FROM pg_class
             WHERE relnamespace = 'outbox'::regnamespace AND relkind IN ('r', 'p', 'v', 'S') ORDER BY 1
            """
        ).compactMap(\.self)
        #expect(relations.contains("event") && relations.contains("cutting") && relations.contains("migration"))
        for relation in relations {
            for attack in [
                "CREATE RULE r AS ON INSERT TO outbox.\(relation) DO NOTHING",
                "CREATE VIEW own.v AS SELECT FROM outbox.\(relation) FOR UPDATE",
                "PREPARE p AS DELETE FROM outbox.\(relation)", "LOCK TABLE outbox.\(relation)",
                "CREATE TABLE own.t (e outbox.\(relation))", "CREATE TABLE own.t (LIKE outbox.\(relation))",
                "CREATE TABLE own.t (id bigint REFERENCES outbox.\(relation))",
                "CREATE INDEX ON outbox.\(relation) (id)",
                "CREATE TRIGGER t AFTER INSERT ON outbox.\(relation) FOR EACH ROW EXECUTE FUNCTION outbox_api.emit()",
            ] {
                #expect(await sqlState(pool, "SET LOCAL lock_timeout = '1s'; \(attack)") == "42501", "\(attack)")
            }
        }
        for type in ["body", "event_type", "cut"] {
            #expect(await sqlState(pool, "CREATE TABLE own.t (a outbox.\(type))") == "42501", "\(type)")
        }
        await holder.close()
        await pool.close()
    }

    @Test func `what the service itself needs no operator can take away by naming it`() async throws {
        let database = try await TestCluster.database()
        let (_, pool) = try await login(database, "outbox_operator")
        let owner = try #require(
            try await database.column("SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'outbox'")[0])
        for role in ["outbox_producer", "outbox_worker", "outbox_reader", "outbox_operator", owner] {
            for customers in ["'{}'", "NULL", "'{acme}'"] {
                #expect(
                    await sqlState(pool, "SELECT outbox.grant_publish('\(role)', \(customers))") == "OB002", "\(role)")
            }
        }
        let (name, producer) = try await login(database, "outbox_producer")
        #expect(await sqlState(pool, "SELECT outbox.grant_publish('\(name)', '{}')") == "OB002")
        #expect(await sqlState(producer, "SELECT outbox.publish('t')") == nil)
        // Who can name the tables is bound to nobody.
        for right in ["outbox_operator", "outbox_reader", "outbox_producer"] {
            let (other, login) = try await login(database, right)
            #expect(await sqlState(pool, "SELECT outbox.grant_publish('\(other)', '{acme}')") == "OB002", "\(right)")
            await login.close()
        }
        #expect(await sqlState(pool, "SELECT outbox.grant_publish('\(name)', '{NULL}')") == "OB002")
        // A role of the same name is another role.
        let (bound, first) = try await login(database)
        try await database.script("SELECT outbox.grant_publish('\(bound)', '{acme}')")
        await first.close()
        try await database.script("DROP OWNED BY \(bound); DROP ROLE \(bound); CREATE ROLE \(bound) LOGIN")
        let (other, _) = try await login(database)
        try await database.script("SELECT outbox.grant_publish('\(other)', '{other}'); GRANT \(other) TO \(bound)")
        let again = try ConnectionPool(
            try ConnectionTarget(database.connectionString.replacing("user=outbox", with: "user=\(bound)")), size: 1)
        #expect(await sqlState(again, "SELECT outbox_api.publish('t', customer_id => 'acme')") == "OB004")
        #expect(await sqlState(again, "SELECT outbox_api.publish('t', customer_id => 'other')") == nil)
        // So is one with its number, where a restore has brought the rows.
        try await database.script("UPDATE outbox.producer_customer SET role = 'somebody' WHERE customer_id = 'other'")
        #expect(await sqlState(again, "SELECT outbox_api.publish('t', customer_id => 'other')") == "OB004")
        for pool in [pool, producer, again] { await pool.close() }
    }

    @Test func `one customer's ordering key is nothing to another's`() async throws {
        let database = try await TestCluster.database()
        let id = try await database.endpoint("e", url: "http://127.0.0.1:1/") { $0.isOrdered = true }.id
        try await database.script(
            """
            SELECT outbox.publish('t', customer_id => 'a', ordering_key => 'order-42', deliver_at => '9999-01-01');
            SELECT outbox.publish('t', customer_id => 'b', ordering_key => 'order-42');
            SELECT outbox.publish('t', customer_id => 'a', ordering_key => 'order-42')
            """)
        #expect(try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) } == .events(3))
        #expect(
            try await database.column(
                "SELECT event_id::text FROM outbox.delivery WHERE due_at <= clock_timestamp() AND endpoint_id = \(id)")
                == ["2"])
        let behind = try await database.deliveryID(3, id)
        let why = try await database.pool.run { try $0.explain(behind).first }
        #expect(why?.detail == "behind 1:e of ordering key order-42")
    }

    @Test func `nothing that a producer says is without a limit`() async throws {
        let database = try await TestCluster.database()
        let (_, pool) = try await login(database, "outbox_producer")
        #expect(await sqlState(pool, "SELECT outbox.publish('t', identity => repeat('x', 257))") == "23514")
        #expect(
            await sqlState(
                pool,
                "SET LOCAL outbox.identity = '\(String(repeating: "x", count: 257))'; INSERT INTO outbox.event (type) VALUES ('t')"
            ) == "23514")
        // Compressed, this is small; a worker has it as it is.
        #expect(
            await sqlState(
                pool,
                "CREATE TEMP TABLE t (h jsonb); INSERT INTO t SELECT jsonb_build_object('a', repeat('x', 5000000)); INSERT INTO outbox.event (type, headers) SELECT 't', h FROM t"
            ) == "23514")
        #expect(
            await sqlState(pool, "SELECT outbox.publish('t', headers => jsonb_build_object('a', repeat('x', 60000)))")
                == nil)
        await pool.close()
    }

    @Test func `migrating through a pooler leaves the application's session as it was`() async throws {
        let database = try await TestCluster.database(migrated: false)
        let pooler = try await Pooler(before: database, users: [], connections: 1)
        let pool = try ConnectionPool(try ConnectionTarget(pooler.connectionString()), size: 1)
        try await pool.run { _ = try Migrator.migrate(&$0) }
        let psql = try ChildProcess("/usr/bin/psql", ["-XAtc", "SHOW search_path", pooler.connectionString()])
        #expect(await psql.wait() == .exit(0), "\(psql.errors)")
        #expect(psql.output == "\"$user\", public\n")
        await pool.close()
        await pooler.stop()
    }

    @Test func `when and by whom something was done the audit log says itself`() async throws {
        let database = try await TestCluster.database()
        for right in ["outbox_worker", "outbox_operator"] {
            let (name, pool) = try await login(database, right)
            #expect(
                await sqlState(
                    pool,
                    "INSERT INTO outbox.audit (at, actor, session, action, object) VALUES ('2000-01-01', 'x', 'x', 'a', 'b')"
                )
                    == "42501")
            #expect(await sqlState(pool, "UPDATE outbox.audit SET actor = 'x'") == "42501")
            #expect(await sqlState(pool, "DELETE FROM outbox.audit") == "42501")
            #expect(await sqlState(pool, "SELECT outbox.record_audit(NULL, 'a', 'b', 'c', '{}')") == nil)
            // What a function does it says itself.
            for action in ["db.rebase", "db.set_body_limit", "producer.grant"] {
                #expect(
                    await sqlState(pool, "SELECT outbox.record_audit(NULL, '\(action)', 'b', 'c', '{}')") == "OB002")
                #expect(
                    await sqlState(pool, "SELECT outbox_private.append_audit('x', NULL, '\(action)', 'b', 'c', '{}')")
                        == "42501")
            }
            #expect(
                await sqlState(pool, "SELECT outbox.set_body_limit(1000)")
                    == (right == "outbox_operator" ? nil : "42501"))
            #expect(
                try await database.number(
                    "SELECT count(*) FROM outbox.audit WHERE actor = 'database:' || \(name) AND at > clock_timestamp() - interval '1 min'"
                ) == (right == "outbox_operator" ? 2 : 1))
            await pool.close()
        }
        #expect(try await database.number("SELECT count(*) FROM outbox.audit WHERE action = 'db.set_body_limit'") == 1)
    }

    @Test func `an operator has the rights for everything that commands read`() async throws {
        let database = try await TestCluster.database()
        let endpoint = try await database.endpoint("e", url: "https://example.com/").id
        let transaction = UniqueID.random()
        try await database.script("SELECT outbox.publish('t', transaction_id => '\(transaction)')")
        let delivery = try await database.deliveryID(1, endpoint)
        let (_, pool) = try await login(database, "outbox_operator")
        try await pool.run { connection in
            let filter = ListFilter()
            _ = try connection.listEvents(filter)
            _ = try connection.listDeliveries(filter)
            _ = try connection.listAttempts(filter)
            _ = try connection.listDeadLetters(filter)
            _ = try connection.listEndpoints()
            _ = try connection.trace(transaction)
            _ = try connection.explain(delivery)
            _ = try connection.status()
            _ = try connection.lockWaits()
            _ = try connection.problems(keyring: TestWorker.keyring)
        }
        await pool.close()
    }

    @Test func `a reader can see whether something is wrong`() async throws {
        let database = try await TestCluster.database()
        let (_, pool) = try await login(database, "outbox_reader")
        for view in [
            "deliveries", "attempts", "dead_letters", "backlog", "endpoint_health", "transactions", "problems",
        ] {
            #expect(await sqlState(pool, "SELECT * FROM outbox.\(view)") == nil, "\(view)")
        }
        await pool.close()
    }
}
