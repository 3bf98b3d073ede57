import Outbox
import Postgres
import Receiver
import Scheduler
import TestSupport
import Testing

/// Lanes that are kept, empty, for a quarter of a lease: here, for longer than any of these tests
/// may take.
@Suite(.timeLimit(.minutes(15))) struct LaneSleepTests {
    private static let lease = Duration.seconds(600)

    /// An endpoint whose every delivery goes through its lane.
    private func constrained(_ database: TestDatabase, _ ledger: Ledger) async throws -> EndpointID {
        try await database.endpoint("e", url: ledger.url, retries: [.milliseconds(300)]) { $0.maxConcurrency = 2 }.id
    }

    /// The first delivery is through, and the lane is held with nothing in it.
    private func isAsleep(_ database: TestDatabase) async throws -> Bool {
        try await eventually {
            try await database.number(
                """
                SELECT count(*) FROM outbox.lane l WHERE l.lease_id IS NOT NULL
                   AND EXISTS (SELECT FROM outbox.attempt) AND NOT EXISTS (SELECT FROM outbox.delivery)
                """) == 1
        }
    }

    /// Runs the body beside a worker that holds the endpoint's lane, asleep after its first
    /// delivery.
    private func besideSleepingLane(
        _ body: (TestDatabase, EndpointID, Ledger) async throws -> Void
    ) async throws -> TestDatabase {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        let endpoint = try await constrained(database, ledger)
        try await TestWorker.run(database, configure: { $0.lease = Self.lease }) {
            try await database.publish()
            #expect(try await isAsleep(database))
            try await body(database, endpoint, ledger)
        }
        ledger.receiver.stop()
        return database
    }

    private func lane(_ database: TestDatabase) async throws -> [String?] {
        try await database.column("SELECT concat_ws(' ', lease_id, due_at, claims) FROM outbox.lane")
    }

    @Test func `one after the other goes through a lane under one claim, and its row stays as it is`() async throws {
        let database = try await besideSleepingLane { database, _, _ in
            let before = try await lane(database)
            for count in 2...10 {
                try await database.publish()
                let isThrough = try await eventually { try await database.deliveries("delivered") == count }
                #expect(isThrough)
            }
            #expect(try await lane(database) == before)
        }
        // A worker that stops gives it back.
        #expect(
            try await database.number("SELECT count(*) FROM outbox.lane WHERE lease_id IS NULL AND due_at = 'infinity'")
                == 1)
    }

    @Test func `what others put into a lane that sleeps is sent`() async throws {
        _ = try await besideSleepingLane { database, endpoint, ledger in
            let before = try await lane(database)
            // As another worker or an operator does.
            try await database.script(
                """
                BEGIN; SELECT FROM outbox.lane FOR UPDATE;
                UPDATE outbox.lane SET due_at = least(due_at, clock_timestamp());
                INSERT INTO outbox.delivery (event_id, endpoint_id, event_at, due_at, trigger)
                SELECT id, '\(endpoint)', created_at, clock_timestamp(), 'replay' FROM outbox.event; COMMIT
                """)
            let isSent = try await eventually {
                try await database.deliveries("delivered") == 1 && ledger.all.count == 2
            }
            #expect(isSent)
            #expect(try await lane(database) == before)
        }
    }

    @Test func `a retry in a lane that sleeps leaves when it is due`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { _, count in Receiver.Response(count == 0 ? 500 : 200) }
        _ = try await constrained(database, ledger)
        try await TestWorker.run(database, configure: { $0.lease = Self.lease }) {
            try await database.publish()
            let isThrough = try await eventually { try await database.deliveries("delivered") == 1 }
            #expect(isThrough)
            #expect(try await database.number("SELECT claims FROM outbox.lane") == 1)
            #expect(try await database.number("SELECT count(*) FROM outbox.attempt") == 2)
        }
        ledger.receiver.stop()
    }

    @Test func `an event of an ordered endpoint wakes its lane`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        try await database.endpoint("e", url: ledger.url) { $0.isOrdered = true }
        // Nobody comes by for other reasons.
        try await TestWorker.run(database, configure: { ($0.lease, $0.pollInterval) = (Self.lease, .seconds(60)) }) {
            for count in 1...3 {
                try await database.script("SELECT outbox.publish('t', '1', ordering_key => 'k')")
                let isThrough = try await eventually { try await database.deliveries("delivered") == count }
                #expect(isThrough)
            }
        }
        ledger.receiver.stop()
    }

    @Test func `a lane that sleeps is released when its endpoint is closed, and claimed when it opens`() async throws {
        _ = try await besideSleepingLane { database, endpoint, ledger in
            try await database.pool.run { try $0.pauseEndpoint(endpoint, from: nil, until: nil, reason: "r") }
            let isReleased = try await eventually {
                try await database.number("SELECT count(*) FROM outbox.lane WHERE lease_id IS NULL") == 1
            }
            #expect(isReleased)
            try await database.publish()
            let isWaiting = try await eventually { try await database.deliveries("paused") == 1 }
            #expect(isWaiting)
            #expect(ledger.all.count == 1)
            try await database.pool.run { try $0.resumeEndpoint(endpoint) }
            let isThrough = try await eventually { try await database.deliveries("delivered") == 2 }
            #expect(isThrough)
        }
    }

    @Test func `a dead letter whose key's lane sleeps goes as soon as it is replayed`() async throws {
        let database = try await TestCluster.database()
        let isWell = Flag(false)
        let ledger = try Ledger { _, _ in Receiver.Response(isWell.isSet ? 200 : 500) }
        let endpoint = try await database.endpoint("e", url: ledger.url, retries: []) {
            $0.isOrdered = true
            $0.timeout = .seconds(120)
        }.id
        try await TestWorker.run(database, configure: { $0.lease = Self.lease }) {
            try await database.script("SELECT outbox.publish('t', '1', ordering_key => 'k')")
            let isDead = try await eventually { try await database.deliveries("dead") == 1 }
            #expect(isDead)
            #expect(try await database.number("SELECT count(*) FROM outbox.lane WHERE lease_id IS NOT NULL") == 1)
            isWell.isSet = true
            // Nothing of it can be in flight, so that there is nothing to wait for.
            let delivery = try await database.deliveryID(1, endpoint)
            _ = try await database.pool.run { try $0.replayDeadLetters(delivery, reason: nil) }
            let isThrough = try await eventually { try await database.deliveries("delivered") == 1 }
            #expect(isThrough)
        }
        ledger.receiver.stop()
    }

    /// A lane that is held, its floor, and a delivery that has come to lie so long before it.
    private func laneWithDelivery(
        _ database: TestDatabase, dueBeforeItsFloor interval: String
    ) async throws -> (EndpointID, LeaseID, LaneFloor) {
        let endpoint = try await database.endpoint("e", url: "http://127.0.0.1:1/").id
        let lease = LeaseID.random()
        try await database.publish()
        let floor = try await database.pool.run { connection in
            try connection.query(
                "UPDATE outbox.lane SET lease_id = \(lease), lease_until = 'infinity', due_at = '-infinity'")
            return try #require(try connection.laneFloor(of: endpoint, lease: lease, from: .none))
        }
        try await database.script(
            """
            INSERT INTO outbox.delivery (event_id, endpoint_id, event_at, due_at, trigger)
            SELECT id, '\(endpoint)', created_at, clock_timestamp() - interval '\(interval)', 'retry' FROM outbox.event
            """)
        return (endpoint, lease, floor)
    }

    @Test func `what a clock that was set back put before the floor is found at the release`() async throws {
        let database = try await TestCluster.database()
        let (endpoint, lease, floor) = try await laneWithDelivery(database, dueBeforeItsFloor: "30 s")
        #expect(try await database.pool.run { try $0.releaseLane(endpoint, lease: lease, floor: floor) })
        #expect(try await database.number("SELECT count(*) FROM outbox.lane WHERE due_at < clock_timestamp()") == 1)
    }

    @Test func `what another server has before the floor is found: at a look, at the next floor and at the release`()
        async throws
    {
        let database = try await TestCluster.database()
        // Delivered on the last server, and back on this one.
        let (endpoint, lease, floor) = try await laneWithDelivery(database, dueBeforeItsFloor: "1 hour")
        func due(_ floor: LaneFloor) async throws -> [Bool] {
            let next = try await database.pool.run {
                try #require(try $0.laneFloor(of: endpoint, lease: lease, from: floor))
            }
            let look = try await database.pool.run { try $0.earliestDue(in: [endpoint: floor]) }
            return [look.due[endpoint] != nil, next.dueAt < floor.dueAt]
        }
        #expect(try await due(floor) == [false, false])
        let other = LaneFloor(dueAt: floor.dueAt, server: ServerStart(time: Timestamp(microseconds: 1)))
        #expect(try await due(other) == [true, true])
        #expect(try await database.pool.run { try $0.releaseLane(endpoint, lease: lease, floor: other) })
        #expect(try await database.number("SELECT count(*) FROM outbox.lane WHERE due_at < clock_timestamp()") == 1)
    }

    @Test func `a batch that lies before where a worker was is claimed within about a lease`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        try await database.endpoint("e", url: ledger.url)
        // Somebody holds one far ahead, so that everything before it counts as done.
        try await database.publish(1)
        try await database.script(
            """
            INSERT INTO outbox.batch (id, ids, size, first_at, last_at, claims, lease_id, worker, lease_until) OVERRIDING SYSTEM VALUE
            SELECT 2000000, '{[1,2)}', 1, created_at, created_at, 1, gen_random_uuid(), 'w', 'infinity' FROM outbox.event;
            UPDATE outbox.cut SET first_id = 2000000;
            INSERT INTO outbox.cut (done, first_id) VALUES (pg_current_snapshot(), 2000000)
            """)
        try await TestWorker.run(database, configure: { $0.lease = .seconds(6) }) {
            // The worker has looked past it by now; then the database is put back to where it was
            // not done.
            try await Task.sleep(for: .seconds(3))
            try await database.script(
                """
                INSERT INTO outbox.batch (id, ids, size, first_at, last_at, claims, lease_until) OVERRIDING SYSTEM VALUE
                SELECT 5, '{[1,2)}', 1, created_at, created_at, 1, '-infinity' FROM outbox.event
                """)
            #expect(await eventually { ledger.all.count == 1 })
        }
        ledger.receiver.stop()
    }

    @Test func `a lane is not kept for ever: another worker may have it`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        _ = try await constrained(database, ledger)
        try await TestWorker.run(database, configure: { $0.lease = .seconds(2) }) {
            try await database.publish()
            let isReleased = try await eventually {
                try await database.number(
                    """
                    SELECT count(*) FROM outbox.lane WHERE lease_id IS NULL AND due_at = 'infinity' AND EXISTS (SELECT FROM outbox.attempt)
                    """) == 1
            }
            #expect(isReleased)
        }
        ledger.receiver.stop()
    }
}
