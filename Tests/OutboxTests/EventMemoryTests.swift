import Bytewise
import Outbox
import Postgres
import Templates
import TestSupport
import Testing

/// What events take in memory is counted as it lies there, and what does not fit is not read.
@Suite(.timeLimit(.minutes(15))) struct EventMemoryTests {
    private let mebibyte = 1 << 20

    @Test func `a customer has as much as is left for others, however many lanes it has`() {
        let memory = EventMemory(limit: 64 * mebibyte)
        var rooms: [EventMemory.Room] = []
        while let room = memory.room(for: "one", isFirst: false) { rooms.append(room) }
        #expect((22...25).contains(memory.used / mebibyte))
        while let room = memory.room(for: "one", isFirst: true) { rooms.append(room) }
        #expect((41...42).contains(memory.used / mebibyte))
        #expect(memory.greedy.isEmpty)
        // Whoever has nothing gets a whole page, and then a share of what is left.
        var first = memory.room(for: "two", isFirst: true)
        #expect(first.map { $0.bytes >= mebibyte / 4 * 3 } == true)
        first = nil
        for customer in 0..<1000 {
            while let room = memory.room(for: ExactText("\(customer)"), isFirst: true) { rooms.append(room) }
        }
        // The last eighth is for batches.
        #expect(memory.used <= 56 * mebibyte && memory.used > 54 * mebibyte && memory.hasRoomForBatch)
        rooms = []
        #expect(memory.used == 0)
    }

    @Test func `pages of slow endpoints leave something for each other endpoint of their customer`() {
        let memory = EventMemory(limit: 128 * mebibyte)
        var rooms: [EventMemory.Room] = []
        // As much as they may have, with a second and a third page.
        for _ in 0..<3 { while let room = memory.room(for: "*", isFirst: false) { rooms.append(room) } }
        for _ in 0..<100 { if let room = memory.room(for: "*", isFirst: true) { rooms.append(room) } }
        let used = memory.used
        let others = (0..<1500).map { _ in memory.room(for: "*", isFirst: true) }
        #expect(others.allSatisfy { $0.map { $0.bytes >= 16 * 1024 } == true })
        #expect(memory.used - used == 1500 * 16 * 1024)
        withExtendedLifetime(others) {}
    }

    @Test func `a customer that has three times what is free is greedy`() throws {
        let memory = EventMemory(limit: 64 * mebibyte)
        let large = try #require(memory.room(for: "one", atLeast: 50 * mebibyte, isFirst: true))
        #expect(memory.greedy == ["one"])
        withExtendedLifetime(large) {}
        #expect(memory.room(for: "two", isFirst: true) != nil)
    }

    @Test func `an event that is larger than all that is free waits until it is alone`() {
        let memory = EventMemory(limit: 2 * mebibyte)
        let small = memory.room(for: "one", isFirst: true)
        #expect(small != nil)
        #expect(memory.room(for: "two", atLeast: 3 * mebibyte, isFirst: true) == nil)
        withExtendedLifetime(small) {}
        let alone = EventMemory(limit: 2 * mebibyte)
        #expect(alone.room(for: "two", atLeast: 3 * mebibyte, isFirst: true)?.bytes == 3 * mebibyte)
    }

    /// Ten events of a mebibyte that compress to nothing, waiting in a lane.
    private func database() async throws -> (TestDatabase, EndpointID) {
        let database = try await TestCluster.database()
        let endpoint = try await database.endpoint("e", url: "http://127.0.0.1:9/")
        try await database.script(
            """
            INSERT INTO outbox.event (type, after, customer_id) SELECT 't', to_json(repeat('x', 1000000)), 'c' FROM generate_series(1, 10);
            INSERT INTO outbox.delivery (event_id, endpoint_id, event_at, due_at, trigger)
            SELECT id, '\(endpoint.id)', created_at, created_at, 'first' FROM outbox.event
            """)
        return (database, endpoint.id)
    }

    @Test func `a page is as large as its events are in memory, however small they lie in the database`() async throws {
        let (database, endpoint) = try await database()
        #expect(try await database.number("SELECT sum(pg_column_size(after)) FROM outbox.event") < mebibyte)
        let memory = EventMemory(limit: 64 * mebibyte)
        var page: LanePage? = try await database.pool.run {
            try $0.lanePage(of: endpoint, after: .start(.none), recoveredAt: nil, atMost: 3_500_000, in: memory)
        }
        #expect(page?.deliveries.map(\.event.id.rawValue) == [1, 2, 3])
        #expect((3_000_000...3_010_000).contains(memory.used))
        #expect(Array(memory.holders.keys) == ["c"])
        // A body that was built from it lies beside it.
        _ = page?.deliveries.first?.content?.body(.standard, webhookID: "evt_1")
        #expect((4_000_000...4_020_000).contains(memory.used))
        page = nil
        // The task that read it lets go of it when it has ended.
        #expect(await eventually { memory.used == 0 }, "\(memory.used)")
        #expect(memory.holders.values.allSatisfy { $0 == 0 })
    }

    @Test func `what a lane of everybody's reads counts as its endpoint's`() async throws {
        let (database, endpoint) = try await database()
        let memory = EventMemory(limit: 64 * mebibyte)
        let page = try await database.pool.run {
            try $0.lanePage(of: endpoint, after: .start(.none), recoveredAt: nil, in: memory, of: "*")
        }
        #expect(page.deliveries.count == 1 && memory.holders["*"].map { $0 > 1_000_000 } == true)
        #expect(memory.holders["c"] == nil)
    }

    @Test func `the database and a worker take as much at a time`() async throws {
        let database = try await TestCluster.database()
        #expect(try await database.number("SELECT outbox.max_bytes_at_a_time()") == EventMemory.mostAtATime)
    }

    @Test func `customers whose events are gone are forgotten, and the others are not asked again and again`() {
        let memory = EventMemory(limit: 1 << 40)
        var rooms: [EventMemory.Room] = []
        for customer in 0..<3000 {
            guard let room = memory.room(for: ExactText("\(customer)"), isFirst: true) else { continue }
            if customer % 3 == 0 { rooms.append(room) }
        }
        #expect(rooms.count == 1000)
        let held = memory.holders.filter { $0.value > 0 }
        #expect(held.count == 1000 && memory.holders.count <= 2500)
        rooms = []
        #expect(memory.used == 0)
    }

    @Test func `a request may take its response, and what a template makes of its event`() throws {
        let event = Event(
            id: EventID(rawValue: 1), createdAt: .distantPast, customerID: "c", type: "t", changeType: "Create",
            transactionID: .random(), identity: nil, before: nil, after: [UInt8](repeating: 0x20, count: 3000),
            occurredAt: .distantPast)
        var configuration = EndpointConfiguration(name: "e", url: "https://example.com/")
        let id = EndpointID(rawValue: .random())
        #expect(Endpoint(id, configuration).bytesInFlight(for: event) == 0)
        configuration.rules.form = .json
        #expect(Endpoint(id, configuration).bytesInFlight(for: event) == 240 * 1024)
        configuration.template = try Template(
            #"{"v":""# + String(repeating: "%after%", count: 340) + #""}"#, kind: .json)
        // Another format is chosen.
        #expect(Endpoint(id, configuration).bodyBytes(for: event) == 0)
        configuration.format = .template
        #expect(Endpoint(id, configuration).bodyBytes(for: event) >= 340 * 3000)
    }

    @Test func `an event for which there is not room is not read, and its size is said`() async throws {
        let (database, endpoint) = try await database()
        let memory = EventMemory(limit: 64 * mebibyte)
        let page = try await database.pool.run {
            try $0.lanePage(of: endpoint, after: .start(.none), recoveredAt: nil, atMost: 999_999, in: memory)
        }
        #expect(page.deliveries.isEmpty && page.needed == 1_000_002 && memory.used == 0)
    }

    @Test func `a batch ends at a mebibyte of what its events are in memory`() async throws {
        let (database, _) = try await database()
        #expect(try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) } == .events(10))
        #expect(try await database.number("SELECT max(size) FROM outbox.batch") <= 2)
        let memory = EventMemory(limit: 64 * mebibyte)
        let claim = try await database.pool.run {
            try $0.claimBatch(lease: .random(), worker: "w", for: .seconds(60), in: memory)
        }
        #expect(claim.batch?.events.isEmpty == false)
        #expect(memory.used <= 2_100_000 && memory.used >= 1_000_000)
    }
}
