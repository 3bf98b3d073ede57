import Outbox
import OutboxPublishing
import Postgres
import TestSupport
import Testing

@Suite(.timeLimit(.minutes(15))) struct PublishTests {
    @Test func `one transaction has one TransactionId, also across savepoints, and two have two`() async throws {
        let database = try await TestCluster.database()
        for _ in 0..<2 {
            try await database.script(
                """
                BEGIN;
                SELECT outbox.publish('a');
                SAVEPOINT s; INSERT INTO outbox.event (type) VALUES ('b'); ROLLBACK TO s;
                SAVEPOINT s; INSERT INTO outbox.event (type) VALUES ('c'), ('d'); RELEASE s;
                COMMIT
                """)
        }
        let ids = try await database.column("SELECT transaction_id::text FROM outbox.event ORDER BY id")
        #expect(ids.count == 6)
        #expect(Set(ids).count == 2)
        #expect(Set(ids.prefix(3)).count == 1)
        // Version 7, variant 1 (RFC 9562).
        #expect(
            ids.allSatisfy { id in id?.dropFirst(14).first == "7" && "89ab".contains(id?.dropFirst(19).first ?? "-") })
    }

    @Test func `begin_operation sets the TransactionId and the identity of the rest of the transaction only`()
        async throws
    {
        let database = try await TestCluster.database()
        let id = try #require(UniqueID("9cc8c8d0-3d24-46f4-b63c-8c5d092b7205"))
        try await database.pool.run { connection in
            try connection.transaction { connection in
                #expect(try connection.beginOperation(transactionID: id, identity: "tom") == id)
                try connection.publish(NewEvent(type: "a"))
                try connection.query("INSERT INTO outbox.event (type) VALUES ('b')")
            }
            try connection.publish(NewEvent(type: "c"))
        }
        let rows = try await database.column("SELECT transaction_id || ' ' || identity FROM outbox.event ORDER BY id")
        #expect(rows.prefix(2) == ["\(id) tom", "\(id) tom"])
        #expect(rows[2]?.hasSuffix(" outbox") == true)
        #expect(rows[2]?.hasPrefix(id.description) == false)
    }

    @Test func `a known dedup key publishes nothing and answers the first event's number`() async throws {
        let database = try await TestCluster.database()
        var event = NewEvent(type: "a")
        event.dedupKey = "k"
        let ids = try await database.pool.run { [event] in [try $0.publish(event), try $0.publish(event)] }
        #expect(ids[0] == ids[1])
        // The key is the customer's own.
        event.customerID = "other"
        let others = try await database.pool.run { [event] in try $0.publish(event) }
        #expect(others != ids[0])
        #expect(try await database.number("SELECT count(*) FROM outbox.event") == 2)
    }

    @Test func `of two producers with one key the second waits and gets the first one's number`() async throws {
        let database = try await TestCluster.database()
        let (first, second) = (try database.newPool(), try database.newPool())
        var event = NewEvent(type: "a")
        event.dedupKey = "k"
        let id = try await first.run { [event] connection in
            try connection.script("BEGIN")
            return try connection.publish(event)
        }
        async let other = second.run { [event] in try $0.publish(event) }
        #expect(
            try await eventually {
                try await database.number(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                ) == 1
            })
        try await first.run { try $0.script("COMMIT") }
        #expect(try await other == id)
        #expect(try await database.number("SELECT count(*) FROM outbox.event") == 1)
        await first.close()
        await second.close()
    }

    @Test func `the producer's bytes are kept`() async throws {
        let database = try await TestCluster.database()
        let text = #"{ "b" : 1.10, "a":12345678901234567890.5 ,"b":"é☃"}"#
        try await database.publish(after: text)
        #expect(try await database.column("SELECT after::text FROM outbox.event") == [text])
    }

    @Test func `emit is refused where it would publish what does not happen, or keep it from happening`() async throws {
        let database = try await TestCluster.database()
        try await database.script("CREATE TABLE public.orders (id int)")
        for door in ["outbox", "outbox_api"] {
            for (when, statement) in [
                ("BEFORE INSERT ON public.orders FOR EACH ROW", "INSERT INTO public.orders VALUES (1)"),
                ("AFTER INSERT ON public.orders FOR EACH STATEMENT", "INSERT INTO public.orders VALUES (1)"),
                ("AFTER TRUNCATE ON public.orders", "TRUNCATE public.orders"),
            ] {
                try await database.script("CREATE TRIGGER emit \(when) EXECUTE FUNCTION \(door).emit()")
                await #expect { try await database.script(statement) } throws: {
                    ($0 as? PostgresError)?.sqlState == "OB003"
                }
                try await database.script("DROP TRIGGER emit ON public.orders")
            }
        }
        #expect(try await database.number("SELECT count(*) FROM outbox.event") == 0)
    }

    @Test func `emit turns row changes into events`() async throws {
        let database = try await TestCluster.database()
        try await database.script(
            """
            CREATE TABLE public.orders (id int PRIMARY KEY, tenant text, total int);
            CREATE TRIGGER emit AFTER INSERT OR UPDATE OR DELETE ON public.orders FOR EACH ROW EXECUTE FUNCTION outbox.emit('order', 'tenant');
            CREATE TABLE public.plain (id int);
            CREATE TRIGGER emit AFTER INSERT ON public.plain FOR EACH ROW EXECUTE FUNCTION outbox.emit();
            INSERT INTO public.orders VALUES (1, 'acme', 5); UPDATE public.orders SET total = 6; DELETE FROM public.orders; INSERT INTO public.plain VALUES (9)
            """)
        let rows = try await database.column(
            "SELECT concat_ws(' ', type, change_type, customer_id, before ->> 'total', after ->> 'total') FROM outbox.event ORDER BY id"
        )
        #expect(
            rows == ["order Create acme 5", "order Update acme 5 6", "order Delete acme 6", "plain Create default"])
    }

    @Test func `COPY works`() async throws {
        let database = try await TestCluster.database()
        try await database.script(
            "COPY outbox.event (type, after) FROM PROGRAM 'echo \"a|{}\"; echo \"b|{}\"' WITH (DELIMITER '|')")
        #expect(try await database.number("SELECT count(*) FROM outbox.event") == 2)
    }

    @Test(arguments: [
        ("SELECT outbox.publish('a', '{')", "22P02"), ("SELECT outbox.publish('')", "OB002"),
        ("SELECT outbox.publish(NULL)", "OB002"),
        ("SELECT outbox.publish('a', ('\"' || repeat('x', 1048576) || '\"')::json)", "OB001"),
        ("INSERT INTO outbox.event (type, after) VALUES ('a', ('\"' || repeat('x', 1048576) || '\"')::json)", "OB001"),
        ("INSERT INTO outbox.event (type) VALUES ('')", "23514"),
        ("INSERT INTO outbox.event (type, occurred_at) VALUES ('a', 'infinity')", "23514"),
        ("INSERT INTO outbox.event (type, headers) VALUES ('a', '[]')", "23514"),
        ("INSERT INTO outbox.event (type, transaction_id) VALUES ('a', 'x')", "22P02"),
    ])
    func `what cannot be an event fails the producer's statement`(statement: String, sqlState: String) async throws {
        let database = try await TestCluster.database()
        let error = await #expect(throws: PostgresError.self) { try await database.script(statement) }
        #expect(error?.sqlState == sqlState)
        #expect(try await database.number("SELECT count(*) FROM outbox.event") == 0)
    }

    @Test func `the body limit can be changed`() async throws {
        let database = try await TestCluster.database()
        try await database.script("SELECT outbox.set_body_limit(10)")
        let error = await #expect(throws: PostgresError.self) { try await database.publish(after: #"{"n":12345}"#) }
        #expect(error?.sqlState == "OB001")
        #expect(error?.hint?.contains("set_body_limit") == true)
        try await database.publish(after: #"{"n":1234}"#)
    }

    @Test func `a producer's role can publish and nothing else`() async throws {
        let database = try await TestCluster.database()
        let pool = try database.newPool()
        func asProducer(_ statement: String) async throws {
            try await pool.run { connection in
                try connection.transaction { connection in
                    try connection.script("SET LOCAL ROLE outbox_producer; \(statement)")
                }
            }
        }
        try await asProducer("SELECT outbox.publish('a', '{}')")
        try await asProducer(
            "SELECT outbox.begin_operation(identity => 'x'); INSERT INTO outbox.event (type, after, ordering_key) VALUES ('a', '{}', 'k')"
        )
        try await asProducer("SELECT outbox.publish('a', dedup_key => 'k')")
        let denied = [
            "SELECT id FROM outbox.event",
            "INSERT INTO outbox.event (id, type) OVERRIDING SYSTEM VALUE VALUES (1, 'a')",
            "INSERT INTO outbox.event (tx, type) VALUES ('1', 'a')",
            "INSERT INTO outbox.event (created_at, type) VALUES (now(), 'a')",
            "UPDATE outbox.event SET type = 'x'", "DELETE FROM outbox.event", "SELECT * FROM outbox.endpoint",
            "SELECT * FROM outbox.deliveries",
            "SELECT * FROM outbox.secret", "INSERT INTO outbox.delivery DEFAULT VALUES", "SELECT outbox.cut(1, 1)",
            "SELECT outbox.set_body_limit(1)",
            "SELECT outbox.make_partitions()", "SELECT * FROM outbox.dedup",
        ]
        for statement in denied {
            let error = await #expect(throws: PostgresError.self, "\(statement)") { try await asProducer(statement) }
            #expect(error?.sqlState == "42501", "\(statement)")
        }
    }

    @Test func `a worker's role is enough for a worker, a reader's for the views`() async throws {
        let database = try await TestCluster.database()
        for view in ["deliveries", "attempts", "dead_letters", "backlog", "endpoint_health", "transactions"] {
            try await database.script("BEGIN; SET LOCAL ROLE outbox_reader; SELECT * FROM outbox.\(view); COMMIT")
        }
        let error = await #expect(throws: PostgresError.self) {
            try await database.script("BEGIN; SET LOCAL ROLE outbox_reader; SELECT * FROM outbox.event; COMMIT")
        }
        #expect(error?.sqlState == "42501")
    }
}
