import Outbox
import Postgres
import TestSupport
import Testing

/// Somebody's old snapshot keeps every dead row: what is read must not follow how many there are.
@Suite(.timeLimit(.minutes(15))) struct HeldSnapshotTests {
    /// Blocks that were looked at since the server started.
    private func blocks(_ pool: ConnectionPool) async throws -> [String: Int] {
        try await pool.run { connection in
            try connection.query("SELECT pg_stat_force_next_flush()")
            let rows = try connection.query(
                """
                SELECT relname, (heap_blks_read + heap_blks_hit + coalesce(idx_blks_read + idx_blks_hit, 0))::int8
                  FROM pg_statio_user_tables
                 WHERE schemaname = 'outbox' AND relname IN ('batch', 'cut', 'delivery', 'dead_letter', 'lane', 'setting', 'endpoint')
                """
            ).all(String.self, Int.self)
            return Dictionary(uniqueKeysWithValues: rows)
        }
    }

    /// Two events, from the stream through a lane to their end: one statement after the other as a
    /// worker sends them.
    private func deliver(
        to endpoint: EndpointID, under lane: LeaseID, from floor: inout LaneFloor, batches: BatchFloor,
        _ pool: ConnectionPool
    ) async throws {
        let from = floor
        floor = try await pool.run { connection in
            let cut = try connection.cut(batchSize: 500, budget: 5000)
            #expect(cut == .events(2))
            let lease = LeaseID.random()
            let batch = try #require(
                try connection.claimBatch(lease: lease, worker: "w", for: .seconds(60), floor: batches).batch)
            func outcomes(_ holder: Holder, _ resolution: Resolution) -> [Outcome] {
                batch.events.map { event in
                    let attempt = Attempt(
                        number: 1, trigger: .first, startedAt: event.createdAt, total: .milliseconds(1),
                        isSuccess: true, status: 200)
                    let isSent = if case .delivered = resolution { true } else { false }
                    return Outcome(
                        delivery: DeliveryID(event: event.key, endpoint: endpoint), holder: holder,
                        mayBeShared: false, attempt: isSent ? attempt : nil, attempts: isSent ? 1 : 0,
                        resolution: resolution)
                }
            }
            var spilled = RecordGroup()
            spilled.outcomes = outcomes(.batch(batch.held), .wait(.zero, .first))
            spilled.finishedBatches = [batch.held]
            #expect(try connection.record(spilled, worker: "w").lost.isEmpty)
            #expect(try connection.earliestDue(in: [endpoint: from]).due.count == 1)
            let page = try connection.lanePage(of: endpoint, after: .start(from), recoveredAt: nil).deliveries
            #expect(page.count == 2)
            var delivered = RecordGroup()
            delivered.outcomes = outcomes(.lane(endpoint, lane), .delivered)
            #expect(try connection.record(delivered, worker: "w").lost.isEmpty)
            return try #require(try connection.laneFloor(of: endpoint, lease: lane, from: from))
        }
    }

    @Test func `what a delivery through a lane reads stays the same, however many were delivered before`() async throws
    {
        let database = try await TestCluster.untendedDatabase()
        let endpoint = try await database.endpoint("e", url: "https://example.com/") { $0.maxConcurrency = 1 }.id
        let old = try database.newPool()
        try await old.run {
            try $0.script("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.setting; SAVEPOINT held")
        }
        let pool = try database.newPool(session: WorkerSession.planning)
        var floor = LaneFloor.none
        var batches = BatchFloor.none
        func run(_ rounds: Int) async throws -> [String: Int] {
            let before = try await blocks(pool)
            for round in 0..<rounds / 20 {
                // As a worker does now and then: new leases, a new floor, a breaker that opens and
                // closes, and statistics.
                let lane = LeaseID.random()
                if round.isMultiple(of: 10) { try await database.script("VACUUM ANALYZE") }
                batches = try await pool.run { [batches] connection in
                    let claim = try connection.claimLanes(lease: lane, worker: "w", for: .seconds(60), excluding: [])
                    #expect(claim.lanes.count <= 1)
                    try connection.query(
                        "UPDATE outbox.lane SET lease_id = \(lane), lease_until = 'infinity', trips = 1 - trips")
                    return try connection.batchFloor(from: batches)
                }
                for _ in 0..<20 {
                    try await database.publish(2)
                    try await deliver(to: endpoint, under: lane, from: &floor, batches: batches, pool)
                }
                _ = try await pool.run { [floor] in try $0.releaseLane(endpoint, lease: lane, floor: floor) }
            }
            let after = try await blocks(pool)
            return after.merging(before) { ($0 - $1) / rounds }
        }
        _ = try await run(100)
        let early = try await run(100)
        _ = try await run(800)
        let late = try await run(100)
        // A few blocks more: trees grow by a level.
        for (table, count) in late {
            let before = early[table] ?? 0
            #expect(count <= before + before / 3 + 6, "\(table): \(count) blocks a delivery, \(before) at first")
        }
        await pool.close()
        await old.close()
    }
}
