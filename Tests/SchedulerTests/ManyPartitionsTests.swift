import Outbox
import Postgres
import Receiver
import Scheduler
import TestSupport
import Testing

/// A month by the hour: what a worker does takes the locks of the hours that it works on, and waits
/// for nobody who has another one.
@Suite(.timeLimit(.minutes(15))) struct ManyPartitionsTests {
    /// Partitions of one hour each, from so many hours ago on to three hours ahead, in both logs.
    private func byTheHour(_ database: TestDatabase, hoursAgo: Int) async throws {
        try await database.script(
            """
            UPDATE outbox.setting SET partition_unit = 'hour', event_retention = '60 days', attempt_retention = '60 days';
            DO $$ DECLARE x record; begin_at timestamptz := date_trunc('hour', now()); BEGIN
                FOR x IN SELECT * FROM outbox.partitions WHERE lower IS NOT NULL LOOP
                    EXECUTE format('DROP TABLE outbox.%I', x.name);
                END LOOP;
                FOR x IN SELECT p.parent, begin_at + h * interval '1 hour' AS lower
                           FROM unnest('{event,attempt}'::name[]) p(parent), generate_series(-\(hoursAgo), 3) h LOOP
                    PERFORM outbox.make_partition(x.parent, x.parent || to_char(x.lower AT TIME ZONE 'UTC', '_YYYYMMDDHH24'),
                                                  x.lower, x.lower + interval '1 hour');
                END LOOP;
            END $$
            """)
    }

    private func close(_ database: TestDatabase) async throws -> [String] {
        var closed: [String] = []
        while case let name?? = try await database.column("SELECT outbox.close_partition()").first {
            closed.append(name)
        }
        return closed
    }

    @Test(.heavy) func `with 1440 of them a statement takes at most a hundred locks, and none of another hour`()
        async throws
    {
        let database = try await TestCluster.database()
        try await byTheHour(database, hoursAgo: 716)
        #expect(try await database.number("SELECT count(*) FROM outbox.partitions WHERE lower IS NOT NULL") == 1440)
        _ = try await database.pool.run { try $0.cut(batchSize: 100, budget: 1000) }
        // All but the last of them at once, as if that had been done hour by hour.
        try await database.script("INSERT INTO outbox.closed VALUES (date_trunc('hour', now()) - interval '4 hours')")
        #expect(try await close(database).count == 3)
        let endpoint = try await database.endpoint("e", url: "http://127.0.0.1:1/").id
        try await database.publish(200)
        try await database.script(
            """
            INSERT INTO outbox.event (type, created_at)
            SELECT 'old', now() - n * interval '20 min' FROM generate_series(1, 2000) n;
            INSERT INTO outbox.delivery (event_id, endpoint_id, event_at, due_at, trigger)
            SELECT id, '\(endpoint)', created_at, clock_timestamp(), 'retry' FROM outbox.event WHERE type = 'old';
            """)
        let pool = try database.newPool(session: WorkerSession.planning)
        let operators = try database.newPool()
        func locks(
            _ name: String, _ pool: ConnectionPool, _ body: @escaping @Sendable (inout Connection) throws -> Int
        ) async throws {
            let (found, taken) = try await pool.run { connection in
                try connection.query("BEGIN")
                let found = try body(&connection)
                let taken = try connection.query("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()").first(
                    Int.self)
                try connection.query("COMMIT")
                return (found, taken ?? 0)
            }
            #expect(found > 0, "\(name)")
            #expect(taken <= 100, "\(name)")
        }
        try await database.script("DELETE FROM outbox.stray")
        try await locks("cut", pool) {
            guard case .events(let count) = try $0.cut(batchSize: 100, budget: 1000) else { return 0 }
            return count
        }
        try await locks("claim", pool) {
            try $0.claimBatch(lease: .random(), worker: "w", for: .seconds(60)).batch?.events.count ?? 0
        }
        try await locks("page", pool) {
            let page = try $0.lanePage(of: endpoint, after: .start(.none), recoveredAt: nil).deliveries
            #expect(page.allSatisfy { $0.content != nil })
            return page.count
        }
        try await locks("starts", pool) {
            try $0.recentStarts(of: endpoint, atMost: 10, within: .seconds(60)).count + 1
        }
        let event = EventKey(id: EventID(rawValue: 1), createdAt: try await databaseTime(database))
        let old = try await database.pool.run { connection in
            try connection.query(
                "SELECT id, created_at FROM outbox.event WHERE type = 'old' ORDER BY created_at LIMIT 1"
            ).first {
                row throws(PostgresError) in EventKey(id: try row[0], createdAt: try row[1])
            }
        }
        let key = try #require(old)
        try await locks("get", operators) { try $0.event(key).rows.count }
        var filter = ListFilter()
        filter.event = try await database.pool.run { try $0.eventReference(key.webhookID(instance: try $0.instance())) }
        for state in ["waiting", "dead"] {
            filter.state = state
            try await locks("deliveries", operators) { [filter] in try $0.listDeliveries(filter).rows.count + 1 }
        }
        try await locks("events", operators) { [filter] in try $0.listEvents(filter).rows.count }
        try await locks("dead letters", operators) { [filter] in try $0.listDeadLetters(filter).rows.count + 1 }
        try await locks("problems", operators) { try $0.problems().rows.count + 1 }
        try await locks("ghosts", pool) { try $0.noteGhosts(numberedAs: [event], worker: "w") + 1 }
        try await locks("resolved", pool) { try $0.resolvedDeliveries(of: [event]).count + 1 }
        await pool.close()
        await operators.close()
    }

    @Test(.heavy) func `an operator's command needs no more locks than a hundred at a time, whatever it looks for`()
        async throws
    {
        let server = try await TestServer.make(settings: [
            "max_connections=20", "max_locks_per_transaction=1024", "autovacuum=off",
        ])
        let database = try TestDatabase(connectionString: server.connectionString)
        try await database.pool.run { _ = try Migrator.migrate(&$0) }
        try await byTheHour(database, hoursAgo: 220)
        let endpoint = try await database.endpoint("e", url: "http://127.0.0.1:1/").id
        let other = try await database.endpoint("other", url: "http://127.0.0.1:1/").id
        // An event every hour: one is delivered at once, one a week later, one is a dead letter,
        // one waits.
        try await database.script(
            """
            INSERT INTO outbox.event (type, customer_id, created_at, transaction_id)
            SELECT 't' || n % 4, 'c' || n % 8, now() - n * interval '1 hour',
                   ('00000000-0000-7000-8000-' || lpad((n % 30)::text, 12, '0'))::uuid FROM generate_series(210, 1, -1) n;
            INSERT INTO outbox.attempt (event_id, event_at, endpoint_id, number, trigger, lease_id, worker, started_at, total_us, outcome, status)
            SELECT e.id, e.created_at, '\(endpoint)', k, 'first', gen_random_uuid(), 'w',
                   e.created_at + CASE WHEN e.id % 4 = 1 AND k = 2 THEN '3 days' ELSE '1 s' END::interval, 1000,
                   CASE WHEN e.id % 4 = 0 OR e.id % 4 = 1 AND k = 2 THEN 'success' ELSE 'failure' END, 200
              FROM outbox.event e, generate_series(1, 2) k WHERE e.id % 4 < 3 AND e.created_at < now() - interval '100 hours' AND k <= 1 + e.id % 4;
            INSERT INTO outbox.dead_letter (event_id, endpoint_id, event_at, reason, attempts, fingerprint)
            SELECT id, '\(endpoint)', created_at, 'exhausted', 3, 'f' FROM outbox.event WHERE id % 4 = 2;
            INSERT INTO outbox.delivery (event_id, endpoint_id, event_at, due_at, trigger)
            SELECT id, '\(endpoint)', created_at, clock_timestamp(), 'retry' FROM outbox.event WHERE id % 4 = 3;
            """)
        let transaction = try #require(UniqueID("00000000-0000-7000-8000-000000000022"))
        let noon = try await databaseTime(database) + .seconds(-4 * 86_400)
        let cases: [(SQL, @Sendable (inout ListFilter) -> Void)] = [
            ("true", { _ in }), ("event_type = 't1'", { $0.eventType = "t1" }),
            ("customer_id = 'c2'", { $0.customerID = "c2" }),
            ("event_type = 'none'", { $0.eventType = "none" }),
            ("endpoint_id = \(endpoint)", { $0.endpoint = endpoint }),
            ("endpoint_id = \(other)", { $0.endpoint = other }),
            ("transaction_id = \(transaction)", { $0.transactionID = transaction }),
            ("created_at >= \(noon)", { $0.since = noon }), ("created_at < \(noon)", { $0.until = noon }),
        ]
        let states: [String?] = [nil, "delivered", "waiting", "dead"]
        @Sendable func filter(_ change: (inout ListFilter) -> Void, _ state: String?) -> ListFilter {
            var filter = ListFilter()
            change(&filter)
            (filter.state, filter.limit, filter.patience) = (state, 5000, .seconds(60))
            return filter
        }
        var expected: [[Int]] = []
        for (condition, change) in cases {
            var counts: [Int] = []
            for state in states {
                let isOfState: SQL = state.map { "state = \($0)" } ?? "true"
                counts.append(
                    try await database.number(
                        "SELECT count(*) FROM outbox.deliveries WHERE \(condition) AND \(isOfState)"))
            }
            counts.append(
                try await database.number(
                    """
                    SELECT count(*) FROM (SELECT a.event_id, a.endpoint_id, a.started_at AS created_at, e.type AS event_type, e.customer_id, e.transaction_id
                                            FROM outbox.attempt a JOIN outbox.event e ON e.id = a.event_id) a WHERE \(condition)
                    """))
            if filter(change, nil).endpoint == nil {
                counts.append(
                    try await database.number(
                        "SELECT count(*) FROM (SELECT id, created_at, type AS event_type, customer_id, transaction_id FROM outbox.event) e WHERE \(condition)"
                    ))
            }
            expected.append(counts)
        }
        #expect(expected[0].allSatisfy { $0 > 20 })

        while try await database.pool.run({ try $0.cut(batchSize: 100, budget: 1000) }) != .events(0) {}
        try await database.script("INSERT INTO outbox.closed VALUES (date_trunc('hour', now()) - interval '4 hours')")

        // Somebody else leaves room for so many: each backend has sixteen more in a place of its
        // own, and from 18 on as many as it may have locks on average.
        try await server.stop()
        try await server.start(changed: ["max_locks_per_transaction=16"])
        let others = try database.newPool()
        _ = await #expect(throws: PostgresError.self) {
            try await others.run {
                try $0.script("SELECT pg_advisory_lock(n) FROM generate_series(1, 1000000) n", within: .seconds(60))
            }
        }
        try await others.run { try $0.script("SELECT pg_advisory_unlock(n) FROM generate_series(1, 84) n") }
        let operators = try database.newPool(session: OperatorSession.planning)
        let refusal = await #expect(throws: PostgresError.self) {
            try await operators.run { _ = try $0.listing("SELECT count(*) FROM outbox.event") }
        }
        #expect(refusal?.sqlState == "53200")
        for ((condition, change), counts) in zip(cases, expected) {
            for (state, count) in zip(states, counts) {
                let found = try await operators.run { try $0.listDeliveries(filter(change, state)) }
                #expect(found.rows.count == count, "\(condition) \(state ?? "")")
            }
            let attempts = try await operators.run { try $0.listAttempts(filter(change, nil)) }
            #expect(attempts.rows.count == counts[4], "\(condition)")
            if counts.count > 5 {
                let events = try await operators.run { try $0.listEvents(filter(change, nil)) }
                #expect(events.rows.count == counts[5], "\(condition)")
            }
            _ = try await operators.run { try $0.listDeadLetters(filter(change, nil)) }
        }
        // One of each state, by its bare number.
        for (number, reason) in [(4, "delivered"), (5, "delivered"), (6, "dead"), (7, "due")] {
            let (state, found) = try await operators.run { connection in
                let delivery = DeliveryID(event: try connection.eventKey("\(number)"), endpoint: endpoint)
                if reason == "dead" { _ = try connection.deadLetter(delivery) }
                return (
                    try connection.delivery(delivery).first("state"),
                    try connection.explain(delivery).first?.reason.rawValue
                )
            }
            #expect(state == (reason == "due" ? "waiting" : reason) && found == reason)
        }
        #expect(try await operators.run { try $0.trace(transaction) }.events.rows.count == 7)
        _ = try await operators.run { try $0.status() }
        _ = try await operators.run { try $0.problems() }
        #expect(try await operators.run { try $0.listEndpoints() }.rows.count == 2)
        await others.close()
        await operators.close()
        await database.pool.close()
        try await server.stop()
    }

    private func databaseTime(_ database: TestDatabase) async throws -> Timestamp {
        try await database.pool.run { connection in
            try connection.query("SELECT clock_timestamp()").first(Timestamp.self)
                ?? .distantPast
        }
    }

    @Test(.heavy)
    func `who has locked every other hour holds up nothing that is published, sent, tried again and recorded`()
        async throws
    {
        let database = try await TestCluster.database()
        try await byTheHour(database, hoursAgo: 50)
        _ = try await database.pool.run { try $0.cut(batchSize: 100, budget: 1000) }
        _ = try await close(database)
        let ledger = try Ledger { _, number in Receiver.Response(number < 30 && number.isMultiple(of: 3) ? 500 : 200) }
        let retries = Array(repeating: Duration.milliseconds(50), count: 50)
        try await database.endpoint("plain", url: ledger.url, retries: retries) { $0.eventTypes = ["plain"] }
        try await database.endpoint("lined", url: ledger.url, retries: retries) {
            $0.eventTypes = ["lined"]
            $0.isOrdered = true
        }
        try await database.endpoint("limited", url: ledger.url, retries: retries) {
            $0.eventTypes = ["limited"]
            $0.maxConcurrency = 2
            $0.rates = [try RateLimit("1000/1s")]
        }
        let holder = try database.newPool()
        try await holder.run { connection in
            try connection.script(
                """
                SET idle_in_transaction_session_timeout = 0; BEGIN;
                DO $$ DECLARE name name; BEGIN
                    FOR name IN SELECT x.name FROM outbox.partitions x
                                 WHERE x.upper < now() - interval '2 hours' LOOP
                        EXECUTE format('LOCK TABLE outbox.%I IN ACCESS EXCLUSIVE MODE', name);
                    END LOOP;
                END $$
                """)
        }
        try await TestWorker.run(database, configure: { $0.lease = .seconds(3) }) {
            for type in ["plain", "lined", "limited"] {
                try await database.script(
                    "SELECT outbox.publish('\(type)', to_json(n), ordering_key => (n % 3)::text) FROM generate_series(1, 30) n"
                )
            }
            let isDrained = try await eventually { try await database.isDrained() }
            #expect(isDrained)
        }
        #expect(ledger.counts.count == 90)
        await holder.close()
        ledger.receiver.stop()
    }

    @Test(.heavy)
    func `an event that comes into an hour that is closed is delivered once, whatever its transaction saw`()
        async throws
    {
        let database = try await TestCluster.database()
        try await byTheHour(database, hoursAgo: 6)
        let ledger = try Ledger()
        try await database.endpoint("e", url: ledger.url)
        let old = try database.newPool()
        let insert = """
            INSERT INTO outbox.event (type, created_at) VALUES ('test', date_trunc('hour', now()) - interval '4 hours'),
                                                               ('test', '2019-01-01Z'), ('test', '2040-01-01Z')
            """
        // It has its snapshot from before.
        try await old.run { try $0.script("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM outbox.closed") }
        try await TestWorker.run(database) {
            let isClosed = try await eventually {
                _ = try await close(database)
                return try await database.number("SELECT count(*) FROM outbox.closed") == 5
            }
            #expect(isClosed)
            try await old.run { try $0.script("\(insert); COMMIT") }
            try await database.script(insert)
            // A partition that is made for such a time now is closed from the beginning.
            try await database.script(
                """
                SELECT outbox.make_partition('event', 'event_older', date_trunc('hour', now()) - interval '9 hours',
                                             date_trunc('hour', now()) - interval '8 hours');
                INSERT INTO outbox.event (type, created_at) VALUES ('test', date_trunc('hour', now()) - interval '9 hours')
                """)
            let isDone = try await eventually { try await database.isDrained() && ledger.counts.count == 7 }
            #expect(isDone)
            let isTidy = try await eventually {
                _ = try await database.pool.run { $0.keepHouse() }
                return try await database.number("SELECT count(*) FROM outbox.stray") == 0
            }
            #expect(isTidy)
        }
        #expect(ledger.all.count == 7)
        await old.close()
        ledger.receiver.stop()
    }

    @Test(.heavy) func `an hour is not closed while something in it is not committed, or not in a batch`() async throws
    {
        let database = try await TestCluster.database()
        try await byTheHour(database, hoursAgo: 6)
        let writer = try database.newPool()
        let insert =
            "INSERT INTO outbox.event (type, created_at) VALUES ('test', date_trunc('hour', now()) - interval '3 hours')"
        try await writer.run { try $0.script("BEGIN; \(insert)") }
        func cut() async throws -> Cut { try await database.pool.run { try $0.cut(batchSize: 100, budget: 1000) } }
        _ = try await cut()
        #expect(try await close(database).count == 3)
        try await writer.run { try $0.script("COMMIT") }
        #expect(try await close(database).isEmpty)
        // Nor while the same is true of the default partition, in which something of that hour may
        // be.
        #expect(try await cut() == .events(1))
        try await writer.run {
            try $0.script("BEGIN; INSERT INTO outbox.event (type, created_at) VALUES ('test', '2019-01-01Z')")
        }
        #expect(try await close(database).isEmpty)
        try await writer.run { try $0.script("COMMIT") }
        #expect(try await close(database).isEmpty)
        #expect(try await cut() == .events(1))
        #expect(try await close(database).count == 2)
        #expect(try await cut() == .events(0))
        await writer.close()
    }

    @Test(.heavy) func `whoever makes or closes one meets whoever closes another, and looks at what is there`()
        async throws
    {
        let database = try await TestCluster.database()
        try await byTheHour(database, hoursAgo: 6)
        let (first, second) = (try database.newPool(), try database.newPool())
        try await database.script(
            """
            DO $$ BEGIN EXECUTE 'DROP TABLE outbox.event' || to_char(now() AT TIME ZONE 'UTC' - interval '4 hours', '_YYYYMMDDHH24'); END $$;
            SELECT outbox.close_partition(); SELECT outbox.close_partition()
            """)
        try await first.run { try $0.script("BEGIN; SELECT outbox.close_partition()") }
        let made = Task {
            try await second.run {
                try $0.script(
                    """
                    SELECT outbox.make_partition('event', 'event_between', date_trunc('hour', now()) - interval '4 hours',
                                                 date_trunc('hour', now()) - interval '3 hours')
                    """)
            }
        }
        let isWaiting = try await database.someoneWaitsForALock()
        #expect(isWaiting)
        try await first.run { try $0.script("COMMIT") }
        try await made.value
        try await database.script(
            "INSERT INTO outbox.event (type, created_at) VALUES ('test', date_trunc('hour', now()) - interval '210 min')"
        )
        #expect(try await database.pool.run { try $0.cut(batchSize: 100, budget: 1000) } == .events(1))
        // Who replicates fires no common trigger.
        try await database.script(
            """
            SET session_replication_role = replica;
            INSERT INTO outbox.event (type, created_at) VALUES ('test', date_trunc('hour', now()) - interval '210 min');
            RESET session_replication_role
            """)
        #expect(try await database.pool.run { try $0.cut(batchSize: 100, budget: 1000) } == .events(1))
        let refusal = await #expect(throws: PostgresError.self) {
            try await first.run {
                try $0.script("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT outbox.close_partition(); COMMIT")
            }
        }
        #expect(refusal?.sqlState == "OB014")
        await first.close()
        await second.close()
    }

    @Test func `a page ends where its events are of many hours, and takes none for gone that it did not look for`()
        async throws
    {
        let database = try await TestCluster.database()
        let endpoint = try await database.endpoint("e", url: "http://127.0.0.1:1/").id
        try await database.script(
            """
            UPDATE outbox.setting SET partition_unit = 'hour';
            INSERT INTO outbox.event (type, created_at) SELECT 'old', now() - n * interval '1 day' FROM generate_series(1, 3) n;
            INSERT INTO outbox.event (type, created_at) SELECT 'new', now() - n * interval '1 min' FROM generate_series(1, 3) n;
            -- The first one's event is gone, and so is one of the last.
            INSERT INTO outbox.delivery (event_id, endpoint_id, event_at, due_at, trigger) VALUES
                (99, '\(endpoint)', now() - interval '9 days', now() - interval '2 hours', 'retry'),
                (98, '\(endpoint)', now(), now() - interval '150 s', 'retry');
            INSERT INTO outbox.delivery (event_id, endpoint_id, event_at, due_at, trigger)
            SELECT id, '\(endpoint)', created_at, CASE type WHEN 'old' THEN now() - interval '1 hour' ELSE created_at END, 'retry'
              FROM outbox.event
            """)
        var (pages, cursor): ([[String]], LaneCursor) = ([], .start(.none))
        while true {
            let page = try await database.pool.run { [cursor] in
                try $0.lanePage(of: endpoint, after: cursor, recoveredAt: nil).deliveries
            }
            guard let last = page.last else { break }
            pages.append(page.map { "\($0.event.id)\($0.content == nil ? " gone" : "")" })
            cursor = LaneCursor(dueAt: last.dueAt, event: last.event.id)
        }
        #expect(pages == [["99 gone"], ["1"], ["2"], ["3"], ["6", "98 gone", "5", "4"]])
        let infinite = "outbox.first_events_at('{1,2}', '{-infinity,infinity}')"
        #expect(try await database.number("SELECT count(*) FROM \(raw: infinite)") == 0)
    }
}
