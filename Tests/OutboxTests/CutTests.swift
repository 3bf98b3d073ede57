import Bytewise
import Outbox
import Postgres
import TestSupport
import Testing

/// I1 and I2: every committed event is in exactly one batch, and none of a rolled-back transaction.
@Suite(.timeLimit(.minutes(15))) struct CutTests {
    /// How often each committed event is in a batch, as `event:count`, without those that are in
    /// exactly one.
    private func wrong(_ database: TestDatabase) async throws -> [String?] {
        try await database.column(
            """
            SELECT coalesce(e.id, b.id)::text || ':' || count(b.id)
              FROM outbox.event e
              FULL JOIN (SELECT generate_series(lower(r), upper(r) - 1) AS id FROM outbox.batch, unnest(ids) r) b ON b.id = e.id
             GROUP BY e.id, b.id HAVING count(b.id) <> 1 OR e.id IS NULL
            """)
    }

    private func cutAll(_ database: TestDatabase) async throws {
        while true {
            let cut = try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) }
            if cut == .events(0) { return }
            if cut == .enough { try await claimAll(database) }
        }
    }

    /// As if workers had claimed everything, so that cutting goes on.
    private func claimAll(_ database: TestDatabase) async throws {
        try await database.script("UPDATE outbox.batch SET claims = 1 WHERE claims = 0")
    }

    @Test func `concurrent, late, aborted, savepoint and giant transactions: every event in exactly one batch`()
        async throws
    {
        let database = try await TestCluster.database()
        let isProducing = Flag(true)
        try await withThrowingTaskGroup(of: Void.self) { group in
            // Three cutters at once, racing with the producers.
            for _ in 0..<3 {
                let pool = try database.newPool()
                group.addTask {
                    while isProducing.isSet {
                        let cut = try await pool.run { try $0.cut(batchSize: 50, budget: 200) }
                        if cut == .enough { try await claimAll(database) }
                    }
                    await pool.close()
                }
            }
            try await withThrowingTaskGroup(of: Void.self) { producers in
                for producer in 0..<8 {
                    let pool = try database.newPool()
                    producers.addTask {
                        for round in 0..<60 {
                            let hold = Double((producer * 7 + round * 3) % 30) / 1000
                            let script =
                                switch (producer + round) % 5 {
                                case 0:
                                    "BEGIN; INSERT INTO outbox.event (type) VALUES ('open'), ('open'); SELECT pg_sleep(\(hold)); COMMIT"
                                case 1:
                                    "BEGIN; INSERT INTO outbox.event (type) VALUES ('aborted'); SELECT pg_sleep(\(hold)); ROLLBACK"
                                case 2:
                                    """
                                    BEGIN; INSERT INTO outbox.event (type) VALUES ('kept'); SAVEPOINT s; INSERT INTO outbox.event (type) VALUES ('undone');
                                    ROLLBACK TO s; INSERT INTO outbox.event (type) VALUES ('kept'); COMMIT
                                    """
                                case 3: "SELECT outbox.publish('plain')"
                                default: "INSERT INTO outbox.event (type) SELECT 'many' FROM generate_series(1, 40)"
                                }
                            try await pool.run { try $0.script(script) }
                        }
                        await pool.close()
                    }
                }
                let giant = try database.newPool()
                producers.addTask {
                    try await giant.run {
                        try $0.script(
                            "BEGIN; INSERT INTO outbox.event (type) SELECT 'giant' FROM generate_series(1, 12000); SELECT pg_sleep(0.5); COMMIT",
                            within: .seconds(60))
                    }
                    await giant.close()
                }
                try await producers.waitForAll()
            }
            isProducing.isSet = false
            try await group.waitForAll()
        }
        try await cutAll(database)
        #expect(try await wrong(database) == [])
        #expect(try await database.number("SELECT count(*) FROM outbox.event") > 15_000)
        #expect(try await database.number("SELECT count(*) FROM outbox.event WHERE type IN ('aborted', 'undone')") == 0)
        #expect(try await database.number("SELECT max(size) FROM outbox.batch") <= 500)
    }

    @Test func `a transaction that commits late is cut late, and holds up nobody else`() async throws {
        let database = try await TestCluster.database()
        let late = try database.newPool()
        try await late.run { try $0.script("BEGIN; INSERT INTO outbox.event (type) VALUES ('late')") }
        try await database.publish(3, type: "early")
        #expect(try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) } == .events(3))
        try await database.publish(2, type: "later")
        #expect(try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) } == .events(2))
        try await late.run { try $0.script("COMMIT") }
        #expect(try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) } == .events(1))
        #expect(try await wrong(database) == [])
        await late.close()
    }

    @Test func `a giant transaction is cut in steps`() async throws {
        let database = try await TestCluster.database()
        try await database.publish(1200)
        var steps: [Cut] = []
        for _ in 0..<4 { steps.append(try await database.pool.run { try $0.cut(batchSize: 100, budget: 500) }) }
        #expect(steps == [.events(500), .events(500), .events(200), .events(0)])
        #expect(try await wrong(database) == [])
    }

    @Test func `only one worker cuts at a time, and nobody waits for it`() async throws {
        let database = try await TestCluster.database()
        try await database.publish()
        let other = try database.newPool()
        try await other.run { try $0.script("BEGIN; SELECT outbox.cut(500, 5000)") }
        #expect(try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) } == .busy)
        try await other.run { try $0.script("ROLLBACK") }
        #expect(try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) } == .events(1))
        await other.close()
    }

    @Test func `a cut that is rolled back is cut again, whole`() async throws {
        let database = try await TestCluster.database()
        try await database.publish(7)
        try await database.script("BEGIN; SELECT outbox.cut(500, 5000); ROLLBACK")
        try await cutAll(database)
        #expect(try await wrong(database) == [])
    }

    @Test func `cutting does not run far ahead of claiming`() async throws {
        let database = try await TestCluster.database()
        try await database.publish(130)
        // One event a batch: a hundred wait, then it takes a claim to go on.
        #expect(try await database.pool.run { try $0.cut(batchSize: 1, budget: 99) } == .events(99))
        #expect(try await database.pool.run { try $0.cut(batchSize: 1, budget: 1) } == .events(1))
        #expect(try await database.pool.run { try $0.cut(batchSize: 1, budget: 99) } == .enough)
        try await database.script("UPDATE outbox.batch SET claims = 1 WHERE id = (SELECT min(id) FROM outbox.batch)")
        #expect(try await database.pool.run { try $0.cut(batchSize: 1, budget: 99) } == .events(30))
        #expect(try await wrong(database) == [])
    }

    @Test func `what is committed after a giant transaction does not wait for its end`() async throws {
        let database = try await TestCluster.database()
        let late = try database.newPool()
        try await late.run { try $0.script("BEGIN; INSERT INTO outbox.event (type) VALUES ('late')") }
        try await database.publish(1000)
        #expect(try await database.pool.run { try $0.cut(batchSize: 1, budget: 100) } == .events(100))
        try await late.run { try $0.script("COMMIT") }
        try await database.publish(7)
        // Enough waits for the giant to stand still, and not for what came since.
        #expect(try await database.pool.run { try $0.cut(batchSize: 1, budget: 100) } == .events(8))
        #expect(try await database.pool.run { try $0.cut(batchSize: 1, budget: 100) } == .enough)
        #expect(try await database.number("SELECT waiting FROM outbox.backlog WHERE stage = 'stream'") == 900)
        // A second giant stands behind the first, whatever comes after it goes on.
        try await database.publish(101)
        try await database.publish(40)
        try await database.publish(40)
        var cuts: [Cut] = []
        for _ in 0..<3 { cuts.append(try await database.pool.run { try $0.cut(batchSize: 1, budget: 100) }) }
        #expect(cuts == [.more, .events(80), .enough], "\(cuts)")
        #expect(try await database.number("SELECT cardinality(large) FROM outbox.cut ORDER BY id DESC LIMIT 1") == 2)
        try await claimAll(database)
        #expect(try await database.pool.run { try $0.cut(batchSize: 50, budget: 100) } == .events(100))
        try await cutAll(database)
        #expect(try await wrong(database) == [])
        #expect(try await database.number("SELECT sum(size) FROM outbox.batch") == 1189)
        #expect(try await database.number("SELECT cardinality(large) FROM outbox.cut ORDER BY id DESC LIMIT 1") == 0)
        await late.close()
    }

    @Test func `a customer whose batches nobody claims holds up no other customer's giant transaction`() async throws {
        let database = try await TestCluster.database()
        func giant(of customer: String) async throws {
            try await database.script(
                "INSERT INTO outbox.event (type, customer_id) SELECT 't', '\(customer)' FROM generate_series(1, 300)")
        }
        func batches() async throws -> [String?] {
            try await database.column(
                "SELECT concat_ws(' ', customer_id, count(*)) FROM outbox.batch GROUP BY customer_id ORDER BY 1")
        }
        /// Until nothing more may be cut: a cut looks at 50 giants, and there are 62.
        func cut() async throws {
            var enough = 0
            while enough < 2 {
                let cut = try await database.pool.run { try $0.cut(batchSize: 5, budget: 50) }
                enough = cut == .enough || cut == .events(0) ? enough + 1 : 0
            }
        }
        for _ in 0..<60 { try await giant(of: "stuck") }
        try await cut()
        #expect(try await batches() == ["stuck 100"])
        for customer in ["other", "third"] { try await giant(of: customer) }
        try await cut()
        #expect(try await batches() == ["other 20", "stuck 100", "third 20"])
        for _ in 0..<3 {
            try await database.script("UPDATE outbox.batch SET claims = 1 WHERE customer_id <> 'stuck'")
            try await cut()
        }
        #expect(try await batches() == ["other 60", "stuck 100", "third 60"])
        repeat {
            try await claimAll(database)
            try await cut()
        } while try await database.number("SELECT count(*) FROM outbox.batch WHERE claims = 0") > 0
        #expect(try await wrong(database) == [])
        #expect(try await database.number("SELECT sum(size) FROM outbox.batch") == 62 * 300)
    }

    @Test func `of several late transactions none is lost when a large one ends in the same cut`() async throws {
        let database = try await TestCluster.database()
        let (first, second) = (try database.newPool(), try database.newPool())
        for pool in [first, second] {
            try await pool.run {
                try $0.script("BEGIN; INSERT INTO outbox.event (type) SELECT 'late' FROM generate_series(1, 30)")
            }
        }
        try await database.publish()
        #expect(try await database.pool.run { try $0.cut(batchSize: 10, budget: 50) } == .events(1))
        for pool in [first, second] { try await pool.run { try $0.script("COMMIT") } }
        while try await database.pool.run({ try $0.cut(batchSize: 10, budget: 50) }) != .events(0) {}
        #expect(try await wrong(database) == [])
        #expect(try await database.number("SELECT sum(size) FROM outbox.batch") == 61)
        for pool in [first, second] { await pool.close() }
    }

    @Test func `a large customer gets its share however many small ones there are`() async throws {
        let database = try await TestCluster.database()
        var large = 0
        for round in 0..<60 {
            // Sixty customers with an event each and one with thirty, and capacity for a good half
            // of that.
            try await database.script(
                """
                INSERT INTO outbox.event (type, customer_id) SELECT 't', 'small-' || n FROM generate_series(1, 60) n;
                INSERT INTO outbox.event (type, customer_id) SELECT 't', 'large' FROM generate_series(1, 30)
                """)
            _ = try await database.pool.run { try $0.cut(batchSize: 10, budget: 500) }
            for _ in 0..<5 {
                let batch = try await database.pool.run {
                    try $0.claimBatch(lease: .random(), worker: "w", for: .seconds(60))
                }.batch
                if round >= 10, batch?.events.first?.customerID == "large" { large += 1 }
            }
        }
        #expect(large >= 10)
    }

    @Test func `a customer with very many events takes turns with the others`() async throws {
        let database = try await TestCluster.database()
        func publish(_ customer: String, _ count: Int) async throws {
            try await database.script(
                "SELECT outbox.publish('t', customer_id => '\(customer)') FROM generate_series(1, \(count))")
        }
        func claim(isSmall: Bool = false) async throws -> String? {
            try await database.pool.run { connection in
                try connection.claimBatch(lease: .random(), worker: "w", for: .seconds(60), isSmall: isSmall)
            }.batch?.events.map(\.customerID.text).reduce(into: [String: Int]()) { $0[$1, default: 0] += 1 }
                .sorted { $0.key < $1.key }.map { "\($0.value) of \($0.key)" }.joined(separator: ", ")
        }
        try await publish("flood", 50)
        for customer in 1...3 { try await publish("few-\(customer)", 1) }
        try await publish("second", 30)
        #expect(try await database.pool.run { try $0.cut(batchSize: 10, budget: 500) } == .events(83))
        // All that come first have turn 0; then the two floods alternate.
        #expect(try await claim(isSmall: true) == "1 of few-1, 1 of few-2, 1 of few-3")
        #expect(try await claim(isSmall: true) == nil)
        let first = try await [claim(), claim()].compactMap(\.self).sorted()
        #expect(first == ["10 of flood", "10 of second"])
        // Whoever comes now is next, whatever still waits of the floods.
        try await publish("few-4", 2)
        try await publish("flood", 30)
        #expect(try await database.pool.run { try $0.cut(batchSize: 10, budget: 500) } == .events(32))
        var next: [String] = []
        while let batch = try await claim() { next.append(batch) }
        #expect(next.prefix(3).contains("2 of few-4"), "\(next)")
        #expect(next.suffix(5) == Array(repeating: "10 of flood", count: 5), "\(next)")
        #expect(next.filter { $0 == "10 of second" }.count == 2 && next.filter { $0 == "10 of flood" }.count == 7)
        // The turn never goes back: what is cut now is not before anything that a worker has seen.
        let floor = try await database.pool.run { try $0.batchFloor() }
        try await publish("few-5", 1)
        #expect(try await database.pool.run { try $0.cut(batchSize: 10, budget: 500) } == .events(1))
        let last = try await database.pool.run {
            try $0.claimBatch(lease: .random(), worker: "w", for: .seconds(60), floor: floor)
        }
        #expect(last.batch?.events.map(\.customerID) == ["few-5"])
        #expect(try await wrong(database) == [])
    }

    @Test func `what a cut puts into its turn is found, whatever was claimed while it went on`() async throws {
        let database = try await TestCluster.database()
        func publish(_ customer: String, _ count: Int) async throws {
            try await database.script(
                "INSERT INTO outbox.event (type, customer_id) SELECT 't', '\(customer)' FROM generate_series(1, \(count))"
            )
        }
        func claim(_ floor: BatchFloor) async throws -> String? {
            try await database.pool.run {
                try $0.claimBatch(lease: .random(), worker: "w", for: .seconds(60), floor: floor)
            }.batch?.events.first?.customerID.text
        }
        try await publish("first", 1)
        #expect(try await database.pool.run { try $0.cut(batchSize: 10, budget: 500) } == .events(1))
        try await publish("flood", 60)
        #expect(try await database.pool.run { try $0.cut(batchSize: 10, budget: 500) } == .events(60))
        try await publish("few", 1)
        let cutter = try database.newPool()
        try await cutter.run { try $0.script("BEGIN; SELECT outbox.cut(10, 500)") }
        #expect(try await claim(.none) == "first")
        for _ in 0..<3 { #expect(try await claim(.none) == "flood") }
        let floor = try await database.pool.run { try $0.batchFloor() }
        try await cutter.run { try $0.script("COMMIT") }
        #expect(try await claim(floor) == "few")
        #expect(try await claim(floor) == "flood")
        await cutter.close()
    }

    @Test func `a batch that is given back unused is found behind every floor`() async throws {
        let database = try await TestCluster.database()
        try await database.publish(3)
        _ = try await database.pool.run { try $0.cut(batchSize: 1, budget: 500) }
        let lease = LeaseID.random()
        #expect(
            try await database.pool.run {
                try $0.claimBatch(lease: lease, worker: "w", for: .seconds(60)).batch?.id.rawValue
            } == 1)
        let floor = try await database.pool.run { try $0.batchFloor() }
        try await database.pool.run { try $0.releaseLeases(of: lease) }
        let again = try await database.pool.run {
            try $0.claimBatch(lease: .random(), worker: "w", for: .seconds(60), floor: floor).batch
        }
        #expect(again?.id.rawValue == 1)
    }

    @Test func `a batch that lost its worker comes before all others`() async throws {
        let database = try await TestCluster.database()
        try await database.publish(3)
        _ = try await database.pool.run { try $0.cut(batchSize: 1, budget: 500) }
        func claim() async throws -> Int64? {
            try await database.pool.run {
                try $0.claimBatch(lease: .random(), worker: "w", for: .seconds(60), floor: $0.batchFloor())
            }.batch?.id.rawValue
        }
        #expect(try await claim() == 1)
        #expect(try await claim() == 2)
        try await database.script("UPDATE outbox.batch SET lease_until = clock_timestamp() WHERE id = 1")
        #expect(try await claim() == 1)
        #expect(try await claim() == 3)
    }

    @Test func `a stream position from the future is refused with the way out`() async throws {
        let database = try await TestCluster.database()
        try await database.script("INSERT INTO outbox.cut (done) VALUES ('900000000:900000000:')")
        let error = await #expect(throws: PostgresError.self) {
            try await database.pool.run { _ = try $0.cut(batchSize: 500, budget: 5000) }
        }
        #expect(error?.sqlState == "OB010")
        #expect(error?.hint?.contains("rebase") == true)
    }

    @Test func `an idle stream is not written to`() async throws {
        let database = try await TestCluster.database()
        try await database.publish()
        try await cutAll(database)
        let before = try await database.number("SELECT max(id) FROM outbox.cut")
        for _ in 0..<5 {
            #expect(try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) } == .events(0))
        }
        #expect(try await database.number("SELECT max(id) FROM outbox.cut") == before)
    }

    @Test
    func `a sleeping worker is woken by the commit of what was inserted meanwhile, and by nothing once it is awake`()
        async throws
    {
        let database = try await TestCluster.database()
        let worker = try database.newPool(session: SessionSetUp(channel: "outbox"))
        let producer = try database.newPool()
        // A transaction that is open for long keeps nobody awake, and nobody from being woken.
        let slow = try database.newPool()
        try await slow.run { try $0.script("BEGIN; INSERT INTO outbox.event (type) VALUES ('a')") }
        #expect(try await worker.run { try $0.sleep(for: .seconds(3600)) })
        try await producer.run { try $0.script("INSERT INTO outbox.event (type) VALUES ('b')") }
        #expect(try await worker.run { try $0.waitForNotification(upTo: .seconds(30)) })
        // What had written before the worker slept and commits after is for its next look.
        try await slow.run { try $0.script("COMMIT") }
        #expect(try await worker.run { try $0.waitForNotification(upTo: .milliseconds(50)) } == false)
        #expect(try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) } == .events(2))
        try await worker.run { try $0.wake() }
        // Awake again: producers do not notify, so that their commits are not serialised.
        try await producer.run { try $0.script("INSERT INTO outbox.event (type) VALUES ('c')") }
        #expect(try await worker.run { try $0.waitForNotification(upTo: .milliseconds(50)) } == false)
        // One that died in its sleep is forgotten when its time is over.
        #expect(try await worker.run { try $0.sleep(for: .seconds(-5)) })
        try await producer.run { try $0.script("INSERT INTO outbox.event (type) VALUES ('d')") }
        #expect(try await worker.run { try $0.waitForNotification(upTo: .milliseconds(50)) } == false)
        for pool in [worker, producer, slow] { await pool.close() }
    }
}
