import Outbox
import Postgres
import TestSupport
import Testing

/// What is read back when a commit got no response, and what writing again does.
@Suite(.timeLimit(.minutes(15))) struct RecordTests {
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
            delivery: DeliveryID(event: event.key, endpoint: endpoint), holder: holder,
            mayBeShared: false,
            attempt: attempt, attempts: 1, resolution: resolution)
    }

    @Test func `a row that waited before is no proof of the commit, and writing again changes nothing`() async throws {
        let database = try await TestCluster.database()
        let id = try await database.endpoint("e", url: "https://example.com/").id
        try await database.publish(2)
        let batch = try await batch(database)
        let holder = Holder.batch(batch.held)
        var first = RecordGroup()
        first.outcomes = [outcome(batch.events[0], id, holder, .wait(.zero, .first))]
        #expect(try await wasRecorded(database, first) == false)
        _ = try await database.pool.run { [first] in try $0.record(first, worker: "w") }
        #expect(try await wasRecorded(database, first) == true)

        // The same row is now moved by its lane, in one group with a new row of the batch: only the
        // new one proves it.
        let lease = try await lane(database, id)
        var second = RecordGroup()
        second.outcomes = [
            outcome(batch.events[0], id, .lane(id, lease), .dead(.workerCrashed)),
            outcome(batch.events[1], id, holder, .wait(.zero, .first)),
        ]
        second.finishedBatches = [batch.held]
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
        let gone = HeldBatch(id: batch.held.id, lease: .random(), server: batch.held.server)
        let stale = Holder.batch(gone)
        let attempt = Attempt(
            number: 1, trigger: .first, startedAt: batch.events[0].createdAt, total: .zero, isSuccess: false,
            status: 500)
        var group = RecordGroup()
        group.outcomes = [outcome(batch.events[0], id, stale, .wait(.zero, .retry), attempt: attempt)]
        group.finishedBatches = [gone]
        let receipt = try await database.pool.run { [group] in try $0.record(group, worker: "w") }
        #expect(receipt.lost == [stale])
        #expect(try await database.number("SELECT count(*) FROM outbox.attempt") == 1)
        #expect(try await database.number("SELECT count(*) FROM outbox.delivery") == 0)
        #expect(try await database.number("SELECT count(*) FROM outbox.batch") == 1)
    }

    /// The lane is held on both sides of a failover; the event that was sent is lost, and another
    /// has its number.
    @Test(arguments: [true, false, nil]) func `what is known of an event changes nothing of another with its number`(
        isSuccess: Bool?
    ) async throws {
        let database = try await TestCluster.database()
        let id = try await database.endpoint("e", url: "https://example.com/").id
        try await database.publish(1)
        let event = try await database.pool.run { try $0.eventKey("1") }
        let lease = try await lane(database, id)
        try await database.pool.execute(
            """
            INSERT INTO outbox.delivery (event_id, event_at, endpoint_id, due_at, trigger)
            VALUES (\(event.id), \(event.createdAt), \(id), '-infinity', 'retry')
            """)
        let ghost = EventKey(id: event.id, createdAt: event.createdAt + .milliseconds(-5))
        let attempt = Attempt(
            number: 1, trigger: .first, startedAt: event.createdAt, total: .zero, isSuccess: isSuccess == true,
            status: isSuccess == true ? 200 : 500)
        let resolution: Resolution =
            switch isSuccess {
            case true: .delivered
            case false: .wait(.seconds(3600), .retry)
            default: .dead(.permanent)
            }
        var group = RecordGroup()
        group.outcomes = [
            Outcome(
                delivery: DeliveryID(event: ghost, endpoint: id), holder: .lane(id, lease), mayBeShared: false,
                attempt: attempt,
                attempts: 1, resolution: resolution)
        ]
        let receipt = try await database.pool.run { [group] in try $0.record(group, worker: "w") }
        #expect(receipt.ghosts == 1)
        #expect(
            try await database.column("SELECT due_at::text || attempts FROM outbox.delivery") == ["-infinity0"])
        #expect(try await database.number("SELECT count(*) FROM outbox.dead_letter") == 0)
        #expect(try await database.deliveries("delivered") == 0)
        #expect(try await database.column("SELECT problem FROM outbox.problems WHERE problem = 'ghosts'") == ["ghosts"])
        // The attempt is a true record, and resolves nothing when the event's batch is claimed
        // again.
        #expect(try await database.number("SELECT count(*) FROM outbox.attempts") == 1)
        #expect(
            try await database.pool.run { try $0.resolvedDeliveries(of: [event]) } == [
                DeliveryID(event: event, endpoint: id)
            ])
        try await database.script("DELETE FROM outbox.delivery; DELETE FROM outbox.ghost")
        #expect(try await database.pool.run { try $0.resolvedDeliveries(of: [event]) } == [])
        #expect(try await database.pool.run { try $0.noteGhosts(numberedAs: [event], worker: "w") } == 1)
    }

    /// The database goes elsewhere and may come back: what is written on one server is not on the
    /// other.
    @Test(arguments: [true, false], [true, false])
    func `a batch that was claimed on another server is lost: nothing of it is settled here, and it is not finished`(
        isSuccess: Bool, isLast: Bool
    ) async throws {
        let database = try await TestCluster.database()
        let id = try await database.endpoint("e", url: "https://example.com/").id
        try await database.publish(2)
        let batch = try await batch(database)
        let attempt = Attempt(
            number: 1, trigger: .first, startedAt: batch.events[0].createdAt, total: .zero, isSuccess: isSuccess,
            status: isSuccess ? 200 : 500)
        let before = ServerStart(time: batch.held.server.time + .seconds(-1))
        func group(of held: HeldBatch) -> RecordGroup {
            var group = RecordGroup()
            let resolution = isSuccess ? Resolution.delivered : .wait(.seconds(60), .retry)
            group.outcomes = [outcome(batch.events[0], id, .batch(held), resolution, attempt: attempt)]
            if isLast { group.finishedBatches = [held] }
            return group
        }
        let foreign = HeldBatch(id: batch.held.id, lease: batch.held.lease, server: before)
        let elsewhere = try await database.pool.run { [group = group(of: foreign)] in try $0.record(group, worker: "w")
        }
        #expect(elsewhere.lost == [.batch(foreign)])
        #expect(try await database.number("SELECT count(*) FROM outbox.attempt") == 1)
        #expect(try await database.number("SELECT count(*) FROM outbox.delivery") == 0)
        #expect(try await database.number("SELECT count(*) FROM outbox.batch") == 1)
        let here = try await database.pool.run { [group = group(of: batch.held)] in try $0.record(group, worker: "w") }
        #expect(here.lost == [])
        #expect(try await database.number("SELECT count(*) FROM outbox.batch") == (isLast ? 0 : 1))
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
