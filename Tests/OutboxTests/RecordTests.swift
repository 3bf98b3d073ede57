import Outbox
import Postgres
import TestSupport
import Testing

/// What is read back when a commit got no answer, and what writing again does.
@Suite struct RecordTests {
    private func lane(_ database: TestDatabase, _ endpoint: EndpointID) async throws -> LeaseID {
        let lease = LeaseID.random()
        try await database.pool.execute(
            "UPDATE outbox.lane SET lease_id = \(lease), lease_until = 'infinity' WHERE endpoint_id = \(endpoint)")
        return lease
    }

    private func wasRecorded(_ database: TestDatabase, _ group: RecordGroup) async throws -> Bool {
        try await database.pool.run { try $0.wasRecorded(group) }
    }

    private func batch(_ database: TestDatabase) async throws -> ClaimedBatch {
        let batch = try await database.pool.run { connection in
            _ = try connection.cut(batchSize: 500, budget: 5000)
            return try connection.claimBatch(
                lease: .random(), worker: "w", for: .seconds(60)
            ).batch
        }
        return try #require(batch)
    }

    private func outcome(
        _ event: Event, _ endpoint: EndpointID, _ holder: Holder, _ resolution: Resolution, attempt: Attempt? = nil
    ) -> Outcome {
        Outcome(
            pair: Pair(event: event.key, endpoint: endpoint), holder: holder,
            mayBeShared: false,
            attempt: attempt, attempts: 1, resolution: resolution)
    }

    @Test func `a row that waited before is no proof of the commit, and writing again changes nothing`() async throws {
        let database = try await TestCluster.database()
        let id = try await database.endpoint("e", url: "https://example.com/").id
        try await database.publish(2)
        let batch = try await batch(database)
        let holder = Holder.batch(batch.id, batch.lease)
        var first = RecordGroup()
        first.outcomes = [outcome(batch.events[0], id, holder, .wait(.zero, .first))]
        #expect(try await wasRecorded(database, first) == false)
        _ = try await database.pool.run { [first] in try $0.record(first, worker: "w") }
        #expect(try await wasRecorded(database, first) == true)

        // The same row is now moved by its lane, in one group with a new row of the batch: only the new one proves it.
        let lease = try await lane(database, id)
        var second = RecordGroup()
        second.outcomes = [
            outcome(batch.events[0], id, .lane(id, lease), .dead(.workerCrashed)),
            outcome(batch.events[1], id, holder, .wait(.zero, .first)),
        ]
        second.finishedBatches = [batch.lease: FinishedBatch(id: batch.id, server: batch.server)]
        #expect(try await wasRecorded(database, second) == false)
        for _ in 0..<2 { _ = try await database.pool.run { [second] in try $0.record(second, worker: "w") } }
        #expect(try await wasRecorded(database, second) == true)
        #expect(try await database.number("SELECT count(*) FROM outbox.dead_letter") == 1)
        #expect(try await database.number("SELECT count(*) FROM outbox.delivery") == 1)
        #expect(try await database.number("SELECT count(*) FROM outbox.batch") == 0)
    }

    @Test func `state under a lease that is gone is not written, the attempt is, and the receipt says so`() async throws
    {
        let database = try await TestCluster.database()
        let id = try await database.endpoint("e", url: "https://example.com/").id
        try await database.publish(1)
        let batch = try await batch(database)
        let stale = Holder.batch(batch.id, .random())
        let attempt = Attempt(
            number: 1, trigger: .first, startedAt: batch.events[0].createdAt, total: .zero, isSuccess: false,
            status: 500)
        var group = RecordGroup()
        group.outcomes = [outcome(batch.events[0], id, stale, .wait(.zero, .retry), attempt: attempt)]
        group.finishedBatches = [stale.lease: FinishedBatch(id: batch.id, server: batch.server)]
        let receipt = try await database.pool.run { [group] in try $0.record(group, worker: "w") }
        #expect(receipt.lost == [stale])
        #expect(try await database.number("SELECT count(*) FROM outbox.attempt") == 1)
        #expect(try await database.number("SELECT count(*) FROM outbox.delivery") == 0)
        #expect(try await database.number("SELECT count(*) FROM outbox.batch") == 1)
    }

    @Test func `of two workers that claim at once each batch goes to one`() async throws {
        let database = try await TestCluster.database()
        try await database.publish(2000)
        while try await database.pool.run({ try $0.cut(batchSize: 50, budget: 5000) }) != .events(0) {}
        let pool = try database.newPool(size: 4)
        let claimed = try await withThrowingTaskGroup(of: [BatchID].self) { group in
            for worker in 0..<4 {
                group.addTask {
                    var mine: [BatchID] = []
                    while let batch = try await pool.run({ connection in
                        try connection.claimBatch(
                            lease: .random(), worker: "w\(worker)", for: .seconds(60)
                        ).batch
                    }) { mine.append(batch.id) }
                    return mine
                }
            }
            return try await group.reduce(into: []) { $0 += $1 }
        }
        #expect(claimed.count == 40)
        #expect(Set(claimed).count == 40)
        await pool.close()
    }
}
