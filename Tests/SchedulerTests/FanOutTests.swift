import Bytewise
import Glibc
import Logging
import Outbox
import Postgres
import Receiver
import TestSupport
import Testing

@testable import Scheduler

/// An event for very many endpoints of one customer is nobody else's wait.
@Suite(.timeLimit(.minutes(15))) struct FanOutTests {
    /// Two hundred endpoints of one customer that answer nothing before the gate opens, and one of
    /// another customer that answers at once.
    private func run(
        lease: Duration, _ body: (TestDatabase, _ many: Ledger, _ other: Ledger, _ gate: Flag) async throws -> Void
    ) async throws {
        let database = try await TestCluster.database()
        let gate = Flag(false)
        let many = try Ledger { _, _ in
            while !gate.isSet { usleep(10_000) }
            return Receiver.Response()
        }
        let other = try Ledger()
        for number in 0..<200 {
            try await database.endpoint("many-\(number)", url: many.url) {
                $0.customerID = "many"
                $0.timeout = .seconds(300)
            }
        }
        try await database.endpoint("other", url: other.url) {
            $0.customerID = "other"
            $0.timeout = .seconds(300)
        }
        try await TestWorker.run(
            database,
            configure: {
                $0.maxInFlight = 20
                $0.lease = lease
                $0.softDeadline = .seconds(300)
            }
        ) {
            try await body(database, many, other, gate)
        }
        for ledger in [many, other] { ledger.receiver.stop() }
    }

    private func publish(_ count: Int, of customer: String, _ database: TestDatabase) async throws {
        try await database.script(
            "INSERT INTO outbox.event (type, customer_id) SELECT 't', '\(customer)' FROM generate_series(1, \(count))")
    }

    @Test func `while one customer's requests fill everything they may, another's go out`() async throws {
        try await run(lease: .seconds(300)) { database, many, other, gate in
            try await publish(20, of: "many", database)
            #expect(await eventually { many.all.count == 10 })
            for count in 1...3 {
                try await publish(1, of: "other", database)
                #expect(await eventually { other.all.count == count })
            }
            #expect(many.all.count == 10)
            gate.isSet = true
            #expect(await eventually { many.all.count == 4000 })
            let isEmpty = try await eventually { try await database.number("SELECT count(*) FROM outbox.batch") == 0 }
            #expect(isEmpty)
            #expect(many.all.count == 4000 && other.all.count == 3)
            #expect(try await database.number("SELECT count(*) FROM outbox.attempt") == 4003)
        }
    }

    @Test func `what finds no room in half a lease goes to the lanes, and the batch ends`() async throws {
        try await run(lease: .seconds(6)) { database, many, other, gate in
            try await publish(20, of: "many", database)
            #expect(await eventually { many.all.count == 10 })
            let isMoved = try await eventually {
                try await database.number("SELECT count(*) FROM outbox.delivery") >= 3000
            }
            #expect(isMoved)
            gate.isSet = true
            let isThrough = try await eventually {
                try await database.number(
                    "SELECT count(DISTINCT (event_id, endpoint_id)) FROM outbox.attempt WHERE outcome = 'success'")
                    == 4000
            }
            #expect(isThrough)
            let isEmpty = try await eventually { try await database.number("SELECT count(*) FROM outbox.batch") == 0 }
            #expect(isEmpty)
        }
    }

    @Test func `events for few endpoints come first, and a part of the deliveries is made at a time`() throws {
        func event(_ number: Int64, of customer: ExactText) -> Event {
            Event(
                id: EventID(rawValue: number), createdAt: .distantPast, customerID: customer.text, type: "t",
                changeType: "Create", transactionID: .random(), identity: nil, before: nil, after: nil,
                occurredAt: .distantPast)
        }
        func endpoint(_ number: Int, of customer: ExactText) -> Endpoint {
            var configuration = EndpointConfiguration(name: "\(number)", url: "https://example.com/")
            configuration.customerID = customer.text
            return Endpoint(EndpointID(rawValue: .random()), configuration)
        }
        let many = (0..<15_000).map { endpoint($0, of: "many") }
        let few = endpoint(0, of: "few")
        let directory = EndpointDirectory.Snapshot(
            seen: .nothing, endpoints: Dictionary(uniqueKeysWithValues: (many + [few]).map { ($0.id, $0) }))
        let held = HeldBatch(id: BatchID(rawValue: 1), lease: .random(), server: ServerStart(time: .distantPast))
        let events = [event(1, of: "many"), event(2, of: "few"), event(3, of: "many"), event(4, of: "few")]
        let batch = ClaimedBatch(held: held, claims: 1, size: 4, ordered: [], events: events)
        let lease = Lease(.batch(held), claims: 1, unresolved: 1, trustedUntil: .now)
        var feed = BatchFeed(batch, under: lease, to: directory, resolved: [], until: .now)
        #expect(feed.nextEvents().map(\.id.rawValue) == [2, 4, 1])
        #expect(!feed.isPlanned)
        #expect(feed.nextEvents().map(\.id.rawValue) == [3])
        #expect(feed.isPlanned)

        for endpoint in many.prefix(5) + [few] { feed.add(BatchFeed.Waiting(event: events[0], endpoint: endpoint)) }
        #expect(feed.take(["many": 2, "few": 0, "none": 7]).count == 2)
        #expect(Set(feed.customers) == ["many", "few"])
        #expect(feed.take(["none": .max, "few": .max]).count == 1 && feed.count == 3)
        #expect(feed.take(["many": 10, "few": 10]).count == 3 && feed.isHandedOn)
    }

    @Test func `a batch that was lost is not kept from its next holder, however much of it is unresolved`() async throws
    {
        let database = try await TestCluster.database()
        try await database.publish(3)
        _ = try await database.pool.run { try $0.cut(batchSize: 10, budget: 10) }
        let claim = try await database.pool.run {
            try $0.claimBatch(lease: .random(), worker: "one", for: .seconds(3))
        }
        let batch = try #require(claim.batch)
        let keeper = LeaseKeeper(pool: database.pool, duration: .milliseconds(1500), logger: Logger(label: "test"))
        let lease = Lease(.batch(batch.held), claims: 1, unresolved: 4, trustedUntil: .now + .seconds(3))
        keeper.keep(lease)
        lease.lose()
        let keeping = Task { await keeper.run() }
        // The row is ours as far as the database can tell, and would be renewed for ever.
        let isClaimed = try await eventually {
            try await database.pool.run { try $0.claimBatch(lease: .random(), worker: "two", for: .seconds(60)) }.batch
                != nil
        }
        #expect(isClaimed)
        keeping.cancel()
        await keeping.value
    }

    @Test func `lanes that sleep take no memory, however many they are`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        for number in 0..<200 {
            try await database.endpoint("e\(number)", url: ledger.url) {
                $0.customerID = "many"
                $0.maxConcurrency = 2
            }
        }
        try await database.endpoint("direct", url: ledger.url) { $0.customerID = "direct" }
        try await TestWorker.run(
            database,
            configure: { configuration in
                configuration.maxBytes = 4 << 20
                configuration.lease = .seconds(300)
            }
        ) {
            try await publish(1, of: "many", database)
            #expect(await eventually { ledger.all.count == 200 })
            // They are empty and sleep now; a batch of somebody else is read as ever.
            for count in 1...3 {
                try await publish(1, of: "direct", database)
                #expect(await eventually { ledger.all.count == 200 + count })
            }
            let isSmall = try await eventually {
                try await database.number(
                    "SELECT (budgets -> 'event_bytes' ->> 'used')::int8 FROM outbox.worker") < 100_000
            }
            #expect(isSmall)
            #expect(
                try await database.number("SELECT count(*) FROM outbox.lane WHERE lease_until > clock_timestamp()")
                    > 100)
        }
        ledger.receiver.stop()
    }
}
