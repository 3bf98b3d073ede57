import Outbox
import Postgres
import TestSupport
import Testing

/// The hot statements on large tables: what they read follows what they deliver, never what is
/// kept. The server's own counters say what was read, so that a plan which looks right and is not
/// is found, too.
@Suite(.timeLimit(.minutes(15))) struct PlanTests {
    private struct Reads: Equatable {
        /// Rows read by scans of whole tables (those of empty partitions read none), and through
        /// indexes.
        let sequentially: Int
        let byIndex: Int
    }

    private func reads(of table: String, _ pool: ConnectionPool) async throws -> Reads {
        try await pool.run { connection in
            try connection.query("SELECT pg_stat_force_next_flush()")
            return try connection.query(
                """
                SELECT coalesce(sum(seq_tup_read), 0)::int8, coalesce(sum(idx_tup_fetch), 0)::int8
                  FROM pg_stat_user_tables WHERE schemaname = 'outbox' AND relname LIKE \(table + "%")
                """
            ).first { row throws(PostgresError) in Reads(sequentially: try row[0], byIndex: try row[1]) }
                ?? Reads(sequentially: 0, byIndex: 0)
        }
    }

    /// 100,000 events, attempts of all of them, and 20,000 deliveries that wait; with statistics
    /// that know them, or that were taken while the tables were empty.
    private func largeDatabase(isAnalyzed: Bool) async throws -> (ConnectionPool, EndpointID) {
        let database = try await TestCluster.untendedDatabase()
        let endpoint = try await database.endpoint("e", url: "https://example.com/")
        try await database.script(
            """
            ANALYZE;
            INSERT INTO outbox.event (type, after) SELECT 'test', '{"n":1}' FROM generate_series(1, 100000);
            INSERT INTO outbox.attempt (event_id, event_at, endpoint_id, number, trigger, lease_id, worker, started_at, total_us, outcome, status)
            SELECT id, created_at, '\(endpoint.id)', 1, 'first', '\(UniqueID.random())', 'w', clock_timestamp(), 1000, 'failure', 500 FROM outbox.event;
            INSERT INTO outbox.delivery (event_id, endpoint_id, event_at, due_at, trigger)
            SELECT id, '\(endpoint.id)', created_at, clock_timestamp(), 'retry' FROM outbox.event ORDER BY id LIMIT 20000;
            UPDATE outbox.lane SET due_at = clock_timestamp();
            \(isAnalyzed ? "ANALYZE" : "")
            """)
        return (try database.newPool(session: WorkerSession.planning), endpoint.id)
    }

    @Test(arguments: [true, false])
    func `cut, claim, record and lanes read what they work on and nothing else`(isAnalyzed: Bool) async throws {
        let (pool, endpoint) = try await largeDatabase(isAnalyzed: isAnalyzed)
        let before = (
            event: try await reads(of: "event", pool), attempt: try await reads(of: "attempt", pool),
            delivery: try await reads(of: "delivery", pool)
        )
        // Often enough that prepared statements get their generic plans.
        let rounds = 10
        for _ in 0..<rounds {
            let cut = try await pool.run { try $0.cut(batchSize: 500, budget: 1000) }
            #expect(cut == .events(1000))
            let lease = LeaseID.random()
            let batch = try await pool.run { connection in
                try connection.claimBatch(
                    lease: lease, worker: "w", for: .seconds(60)
                ).batch
            }
            let claimed = try #require(batch)
            #expect(claimed.events.count == 500)
            var group = RecordGroup()
            group.outcomes = claimed.events.map { event in
                Outcome(
                    delivery: DeliveryID(event: event.key, endpoint: endpoint),
                    holder: .batch(claimed.held), mayBeShared: false,
                    attempt: Attempt(
                        number: 1, trigger: .first, startedAt: event.createdAt, total: .milliseconds(1),
                        isSuccess: true,
                        status: 200), attempts: 1, resolution: .delivered)
            }
            group.finishedBatches = [claimed.held]
            let receipt = try await pool.run { [group] in try $0.record(group, worker: "w") }
            #expect(receipt.lost.isEmpty)
            let lane = LeaseID.random()
            let lanes = try await pool.run {
                try $0.claimLanes(lease: lane, worker: "w", for: .seconds(60), excluding: [])
            }
            #expect(lanes.lanes.count == 1)
            let page = try await pool.run {
                try $0.lanePage(of: endpoint, after: .start(.none), recoveredAt: nil).deliveries
            }
            #expect(page.count == 200)
            try await pool.execute("UPDATE outbox.lane SET lease_until = '-infinity'")
        }
        func read(_ table: String, since before: Reads) async throws -> Reads {
            let now = try await reads(of: table, pool)
            return Reads(sequentially: now.sequentially - before.sequentially, byIndex: now.byIndex - before.byIndex)
        }
        // Cut 1,000 a round, claimed 500, and 200 of a lane's page twice. The giant transaction
        // that they are in was looked at once, to see that it is one.
        let event = try await read("event", since: before.event)
        #expect(event.sequentially == 0)
        #expect(event.byIndex <= rounds * 2000 + 1001)
        #expect(try await read("attempt", since: before.attempt) == Reads(sequentially: 0, byIndex: 0))
        let delivery = try await read("delivery", since: before.delivery)
        #expect(delivery.sequentially == 0)
        #expect(delivery.byIndex <= rounds * 200)
        let jit = try await pool.run {
            try $0.query("SHOW jit").first(String.self)
        }
        #expect(jit == "off")
        let planned = try await pool.run {
            try $0.query("SELECT statement FROM pg_prepared_statements WHERE custom_plans > 0")
                .all(String.self)
        }
        #expect(planned == [])
        await pool.close()
    }

    @Test func `a claim searches the partitions of its batch, and no other`() async throws {
        let database = try await TestCluster.untendedDatabase()
        for day in 1...9 {
            try await database.script(
                "CREATE TABLE outbox.event_\(day) PARTITION OF outbox.event FOR VALUES FROM ('2020-01-0\(day)') TO ('2020-01-\(day + 1)')"
            )
        }
        try await database.script("INSERT INTO outbox.event (type) SELECT 'test' FROM generate_series(1, 100)")
        let pool = try database.newPool(session: WorkerSession.planning)
        #expect(try await pool.run { try $0.cut(batchSize: 500, budget: 1000) } == .events(100))
        // As a heavy customer's events lie among others'.
        try await database.script(
            "UPDATE outbox.batch SET size = 50, ids = (SELECT range_agg(int8range(id, id + 1)) FROM outbox.event WHERE id % 2 = 0)"
        )
        let (before, rounds) = (try await searches(pool), 10)
        for _ in 0..<rounds {
            let batch = try await pool.run { connection in
                let batch = try connection.claimBatch(lease: .random(), worker: "w", for: .seconds(30)).batch
                try connection.script("UPDATE outbox.batch SET claims = 0")
                return batch
            }
            #expect(batch?.events.count == 50)
        }
        let after = try await searches(pool)
        #expect(after.here - before.here == 50 * rounds)
        #expect(after.elsewhere == before.elsewhere)
        await pool.close()
    }

    /// How often today's partition of events was searched, and the others.
    private func searches(_ pool: ConnectionPool) async throws -> (here: Int, elsewhere: Int) {
        try await pool.run { connection in
            try connection.query("SELECT pg_stat_force_next_flush()")
            return try connection.query(
                """
                SELECT coalesce(sum(idx_scan) FILTER (WHERE relid = (SELECT tableoid FROM outbox.event LIMIT 1)), 0)::int8,
                       coalesce(sum(idx_scan) FILTER (WHERE relid <> (SELECT tableoid FROM outbox.event LIMIT 1)), 0)::int8
                  FROM pg_stat_user_tables WHERE schemaname = 'outbox' AND relname LIKE 'event\\_%'
                """
            ).first(Int.self, Int.self) ?? (0, 0)
        }
    }

    @Test func `a transaction that commits late is found among everything since, whatever the statistics say`()
        async throws
    {
        let database = try await TestCluster.untendedDatabase()
        for _ in 0..<10 { try await database.publish(50) }
        _ = try await database.pool.run { try $0.cut(batchSize: 500, budget: 1000) }
        try await database.script("ANALYZE")
        let pool = try database.newPool(session: WorkerSession.planning)
        let late = try database.newPool()
        try await late.run { try $0.script("BEGIN; INSERT INTO outbox.event (type) VALUES ('late')") }
        // Committed first, in small transactions, and cut as they come; then the plans are made.
        for _ in 0..<10 {
            try await database.publish(1000)
            let cut = try await pool.run { try $0.cut(batchSize: 500, budget: 1000) }
            #expect(cut == .events(1000) || cut == .events(1001))
        }
        let before = try await reads(of: "event", pool)
        try await late.run { try $0.script("COMMIT") }
        #expect(try await pool.run { try $0.cut(batchSize: 500, budget: 1000) } == .events(1))
        let after = try await reads(of: "event", pool)
        #expect(after.sequentially == before.sequentially)
        #expect(after.byIndex - before.byIndex < 10)
        await late.close()
        await pool.close()
    }

    /// What a former holder got done is read within the deadline of a statement, also of a batch
    /// for hundreds of endpoints.
    @Test func `a batch for many endpoints can be taken over`() async throws {
        let database = try await TestCluster.untendedDatabase()
        try await database.script(
            """
            INSERT INTO outbox.event (type) SELECT 't' FROM generate_series(1, 500);
            INSERT INTO outbox.attempt (event_id, event_at, endpoint_id, number, trigger, lease_id, worker, started_at, total_us, outcome, status)
            SELECT e.id, e.created_at, ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid, 1, 'first', gen_random_uuid(), 'w',
                   clock_timestamp(), 1000, 'success', 200 FROM outbox.event e, generate_series(1, 400) n
            """)
        let pool = try database.newPool(session: WorkerSession.planning)
        let (resolved, ghosts) = try await pool.run { connection in
            _ = try connection.cut(batchSize: 500, budget: 5000)
            let lease = LeaseID.random()
            let batch = try #require(try connection.claimBatch(lease: lease, worker: "w", for: .seconds(60)).batch)
            let events = batch.events.map(\.key)
            return (
                try connection.resolvedDeliveries(of: events).count,
                try connection.noteGhosts(numberedAs: events, worker: "w")
            )
        }
        #expect(resolved == 200_000)
        #expect(ghosts == 0)
        await pool.close()
    }

    /// A dashboard's look at what was delivered reads each attempt so many times, and not all of an
    /// endpoint's attempts for each.
    @Test(arguments: ["", "ANALYZE outbox.event", "ANALYZE"])
    func `the cost of the view of deliveries follows their number`(statistics: String) async throws {
        let database = try await TestCluster.untendedDatabase()
        let endpoint = try await database.endpoint("e", url: "https://example.com/")
        try await database.script(
            """
            INSERT INTO outbox.event (type) SELECT 't' FROM generate_series(1, 4000);
            INSERT INTO outbox.attempt (event_id, event_at, endpoint_id, number, trigger, lease_id, worker, started_at, total_us, outcome, status)
            SELECT id, created_at, '\(endpoint.id)', 1, 'first', gen_random_uuid(), 'w', clock_timestamp(), 1000, 'success', 200
              FROM outbox.event;
            \(statistics)
            """)
        let pool = try database.newPool()
        // As the server counts them for the session that asks.
        @Sendable func entriesRead(_ connection: inout Connection) throws -> Int {
            try connection.query("SELECT pg_stat_force_next_flush()")
            return try connection.query(
                """
                SELECT coalesce(sum(idx_tup_read), 0)::int8 FROM pg_stat_user_indexes
                 WHERE schemaname = 'outbox' AND relname LIKE 'attempt%'
                """
            ).one(Int.self)
        }
        let (delivered, read) = try await pool.run { connection in
            let before = try entriesRead(&connection)
            let count = try connection.query("SELECT count(*) FROM outbox.deliveries WHERE state = 'delivered'")
            let delivered = try count.first(Int.self)
            return (delivered, try entriesRead(&connection) - before)
        }
        #expect(delivered == 4000)
        #expect(read <= 10 * 4000)
        await pool.close()
    }
}
