import Outbox
import Postgres
import TestSupport
import Testing

/// Somebody has the lane of one endpoint locked, for as long as they like: nobody else waits for
/// it.
@Suite(.timeLimit(.minutes(15))) struct LockedLaneTests {
    private let database: TestDatabase
    private let locker: ConnectionPool

    init() async throws {
        database = try await TestCluster.database()
        locker = try database.newPool()
    }

    private func lock(_ endpoint: EndpointID) async throws {
        try await locker.run { connection in
            try connection.script("BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0")
            try connection.query("SELECT FROM outbox.lane WHERE endpoint_id = \(endpoint) FOR UPDATE")
        }
    }

    private func unlock() async throws { try await locker.run { try $0.script("COMMIT") } }

    private func keeper(_ name: String) async throws -> EndpointID {
        try await database.endpoint(name, url: "http://127.0.0.1:1/") { $0.isOrdered = true }.id
    }

    private func cut() async throws -> Cut {
        try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) }
    }

    /// What waits in the lane, as `event key`, a star behind what is due.
    private func lane(_ endpoint: EndpointID) async throws -> [String?] {
        try await database.column(
            """
            SELECT event_id || coalesce(' ' || outbox.key_of(ordering_key), '') || CASE WHEN due_at < 'infinity' THEN ' *' ELSE '' END
              FROM outbox.delivery WHERE endpoint_id = \(endpoint) ORDER BY ordering_key, scan, event_id
            """)
    }

    private func reason(_ event: Int64, _ endpoint: EndpointID) async throws -> String? {
        let delivery = try await database.deliveryID(event, endpoint)
        return try await database.pool.run { try $0.explain(delivery) }.first?.reason.rawValue
    }

    @Test func `the others get their events at once, and it gets its own in order when it is free`() async throws {
        let (held, free) = (try await keeper("held"), try await keeper("free"))
        try await lock(held)
        for key in ["a", "b", "a"] { try await database.script("SELECT outbox.publish('t', ordering_key => '\(key)')") }
        #expect(try await cut() == .events(3))
        #expect(try await lane(free) == ["1 a *", "3 a", "2 b *"])
        #expect(try await lane(held) == [])
        #expect(try await reason(1, held) == "lane_locked")
        #expect(try await database.deliveries("waiting") == 6)
        #expect(try await database.number("SELECT waiting FROM outbox.backlog WHERE endpoint = 'held'") == 3)
        // What is cut now stands behind them, whether or not the lane is free at that moment.
        try await database.script("SELECT outbox.publish('t', ordering_key => 'a'); SELECT outbox.publish('t')")
        #expect(try await cut() == .events(2))
        #expect(try await lane(held) == [])
        try await unlock()
        try await database.script("SELECT outbox.publish('t', ordering_key => 'b')")
        #expect(try await cut() == .events(1))
        #expect(try await lane(held) == ["1 a *", "3 a", "4 a", "2 b *", "6 b", "5 *"])
        #expect(try await database.number("SELECT count(*) FROM outbox.unrouted") == 0)
        #expect(try await database.column("SELECT problem FROM outbox.problems WHERE problem <> 'no_worker'") == [])
        await locker.close()
    }

    @Test func `what is put in line late goes before what was in line already of the same look`() async throws {
        let held = try await keeper("held")
        let later = try database.newPool()
        // Of two transactions the one with the lower number published last: the look is cut in
        // parts.
        try await later.run { try $0.script("BEGIN; SELECT pg_current_xact_id()") }
        try await database.script(
            "INSERT INTO outbox.event (type, ordering_key) SELECT 't', 'a' FROM generate_series(1, 3)")
        try await later.run {
            try $0.script(
                "INSERT INTO outbox.event (type, ordering_key) SELECT 't', 'a' FROM generate_series(1, 3); COMMIT")
        }
        try await lock(held)
        func part() async throws -> Cut { try await database.pool.run { try $0.cut(batchSize: 500, budget: 4) } }
        _ = try await part()
        let first = try await lane(held).count
        try await unlock()
        while try await part() != .events(0) {}
        #expect(first == 0)
        #expect(try await lane(held) == ["1 a *", "2 a", "3 a", "4 a", "5 a", "6 a"])
        await later.close()
        await locker.close()
    }

    @Test func `a walk that lets go what was held leaves a locked lane out, and comes back`() async throws {
        let (held, free) = (try await keeper("held"), try await keeper("free"))
        try await database.script(
            "INSERT INTO outbox.event (type, ordering_key) SELECT 't', 'k' || n FROM generate_series(1, 10) n")
        func part() async throws -> Cut { try await database.pool.run { try $0.cut(batchSize: 500, budget: 4) } }
        _ = try await part()
        #expect(try await lane(held).count == 4)
        try await lock(held)
        var cuts = 0
        while try await part() != .events(0) { cuts += 1; if cuts > 100 { break } }
        #expect(cuts < 100)
        #expect(try await lane(free).filter { $0?.hasSuffix("*") == true }.count == 10)
        #expect(try await lane(held).filter { $0?.hasSuffix("*") == true }.count == 0)
        #expect(
            try await database.column(
                "SELECT problem FROM outbox.problems WHERE problem NOT IN ('no_worker', 'lane_locked')") == [])
        try await unlock()
        while try await part() != .events(0) {}
        #expect(try await lane(held).filter { $0?.hasSuffix("*") == true }.count == 10)
        await locker.close()
    }

    @Test func `what waits for a locked lane can be cancelled, and ends with its endpoint or its order`() async throws {
        let (held, gone) = (try await keeper("held"), try await keeper("gone"))
        try await lock(held)
        for _ in 0..<3 { try await database.script("SELECT outbox.publish('t', ordering_key => 'a')") }
        _ = try await cut()
        try await unlock()
        let second = try await database.deliveryID(2, held)
        await #expect(throws: Problem.self) {
            try await database.pool.run { try $0.retryDelivery(second, reason: nil) }
        }
        try await database.pool.run { try $0.cancelDelivery(second, reason: nil) }
        #expect(try await database.deliveries("cancelled") == 1)
        try await database.pool.run {
            try $0.updateEndpoint(held, keyring: TestWorker.keyring) { $0.isOrdered = false }
        }
        _ = try await cut()
        #expect(try await lane(held) == ["1 *", "3 *"])

        try await lock(gone)
        try await database.script("SELECT outbox.publish('t', ordering_key => 'a')")
        _ = try await cut()
        try await unlock()
        try await database.pool.run { try $0.deleteEndpoint(gone, reason: nil) }
        #expect(try await database.number("SELECT count(*) FROM outbox.unrouted") == 0)
        #expect(
            try await database.number(
                "SELECT count(*) FROM outbox.dead_letter WHERE endpoint_id = \(gone) AND reason = 'cancelled'") == 4)
        await locker.close()
    }

    @Test(.heavy) func `15,000 endpoints that keep order and 5,201 events: a cut looks up whom each event is for`()
        async throws
    {
        try await database.script(
            """
            INSERT INTO outbox.endpoint (name, url, ordered, customer_id) SELECT 'e' || n, 'http://127.0.0.1:1/', true, 'c' || n FROM generate_series(1, 15000) n;
            INSERT INTO outbox.lane (endpoint_id) SELECT id FROM outbox.endpoint;
            INSERT INTO outbox.event (type, customer_id, ordering_key) SELECT 't', 'c' || n, 'k' FROM generate_series(1, 5201) n
            """)
        #expect(try await cut() == .events(5000))
        #expect(try await cut() == .events(201))
        #expect(try await database.number("SELECT count(*) FROM outbox.delivery WHERE due_at < 'infinity'") == 5201)
        await locker.close()
    }
}
