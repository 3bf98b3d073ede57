import Foundation
import Outbox
import Postgres
import TestSupport
import Testing

/// Producers, cutters, claimers, receivers and operators take steps at random, one after the other,
/// and a model knows what has to come of it: every committed event in exactly one batch, and once
/// to every endpoint that keeps order, in its key's order.
///
/// Each seed is one interleaving, the same each time but for what follows from random ids.
/// `OUTBOX_MODEL_SEEDS=1000` looks through as many.
@Suite(.timeLimit(.minutes(15))) struct ModelTests {
    private static let seeds: Range<UInt64> =
        0..<(ProcessInfo.processInfo.environment["OUTBOX_MODEL_SEEDS"].flatMap(UInt64.init) ?? 12)

    @Test(.heavy, arguments: seeds) func `whatever happens in whatever order, nothing is lost, doubled or out of line`(
        seed: UInt64
    )
        async throws
    {
        var run = try await Run(seed: seed)
        for _ in 0..<250 { try await run.step() }
        try await run.finish()
        #expect(try await run.wrong() == [])
        await run.close()
    }
}

/// Some keys, of which a producer owns those it has written to until its transaction ends: the
/// order of ids is the order of commits then, key by key. Key 0 stands for none.
private struct Run {
    private struct Producer {
        let pool: ConnectionPool
        var isOpen = false
        var keys: Set<Int> = []
        var events: [(key: Int, id: Int64)] = []
    }

    /// An endpoint that keeps order.
    private struct Keeper {
        let id: EndpointID
        /// The last batch that was made before it did.
        let since: Int
        var delivered: [Int64] = []
        var dropped: Set<Int64> = []
    }

    private let database: TestDatabase
    private var random: Generator
    private var producers: [Producer] = []
    private var committed: [Int64: Int] = [:]
    private let batchSize: Int32
    private let budget: Int32
    private var keepers: [Keeper] = []
    /// Endpoints that will keep order.
    private var others: [EndpointID] = []
    /// Holds the lanes of some endpoints locked.
    private let locker: ConnectionPool
    private var locked: Set<EndpointID> = []

    init(seed: UInt64) async throws {
        database = try await TestCluster.database()
        random = Generator(seed: seed)
        batchSize = [1, 2, 4].randomElement(using: &random) ?? 1
        budget = [1, 2, 3, 5, 6, 10].randomElement(using: &random) ?? 1
        locker = try database.newPool()
        for _ in 0..<8 { producers.append(Producer(pool: try database.newPool())) }
        for number in 0..<Int.random(in: 0...2, using: &random) {
            let id = try await database.endpoint("e\(number)", url: "http://127.0.0.1:1/").id
            others.append(id)
        }
        if !others.isEmpty, Bool.random(using: &random) { try await beginOrder() }
    }

    mutating func step() async throws {
        switch Int.random(in: 0..<100, using: &random) {
        case ..<12: try await cut()
        case ..<15: try await claim()
        case ..<16 where !others.isEmpty: try await beginOrder()
        case ..<23: for keeper in keepers.indices { try await deliver(to: keeper, 0.5) }
        case ..<25: try await buryOrRaise()
        case ..<30: try await lockOrUnlock()
        default: try await produce(Int.random(in: producers.indices, using: &random))
        }
    }

    /// Ends every transaction, cuts and delivers until there is nothing left, or for so long that
    /// there should not be.
    mutating func finish() async throws {
        for producer in producers.indices where producers[producer].isOpen { try await end(producer, commits: true) }
        if !locked.isEmpty { try await lockOrUnlock() }
        var cut = Cut.busy
        for _ in 0..<5000 where cut != .events(0) {
            cut = try await database.pool.run { [batchSize, budget] in
                try $0.cut(batchSize: Int(batchSize), budget: Int(budget))
            }
            if cut == .enough { try await claim() }
        }
        #expect(cut == .events(0), "cutting does not end")
        #expect(try await database.number("SELECT count(*) FROM outbox.unrouted") == 0)
        for keeper in keepers.indices {
            for event in try await dead(keeper) { try await raise(event, of: keeper) }
            while try await deliver(to: keeper, 1) {}
        }
    }

    /// What is not as the model says.
    func wrong() async throws -> [String] {
        var wrong: [String] = []
        let events = try await database.pool.query("SELECT id FROM outbox.event ORDER BY id", of: Int64.self)
        if events != committed.keys.sorted() { wrong.append("committed events are not those of the table") }
        let batches = try await database.pool.query(
            "SELECT e.id, b.id, b.ordered FROM outbox.batch b, unnest(b.ids) AS r, generate_series(lower(r), upper(r) - 1) AS e (id) ORDER BY e.id"
        ) { row throws(PostgresError) in
            (event: try row[0] as Int64, batch: try row[1] as Int, ordered: try row[2] as [EndpointID])
        }
        if batches.map(\.event) != events {
            wrong.append("events in batches: \(batches.map(\.event)), committed: \(events)")
        }
        for keeper in keepers {
            if batches.contains(where: { $0.batch > keeper.since && !$0.ordered.contains(keeper.id) }) {
                wrong.append("order began later than it did")
            }
            let routed = batches.filter { $0.ordered.contains(keeper.id) && !keeper.dropped.contains($0.event) }.map(
                \.event)
            let expected = Dictionary(grouping: routed) { committed[$0] ?? -1 }
            let delivered = Dictionary(grouping: keeper.delivered) { committed[$0] ?? -1 }
            for key in Set(expected.keys).union(delivered.keys) {
                let (expected, delivered) = (expected[key] ?? [], delivered[key] ?? [])
                if key == 0 ? delivered.sorted() != expected : delivered != expected {
                    wrong.append("key \(key): delivered \(delivered), not \(expected)")
                }
            }
            let left = try await database.number(
                "SELECT count(*) FROM outbox.delivery WHERE endpoint_id = \(keeper.id)")
            if left > 0 { wrong.append("\(left) deliveries stand still") }
        }
        return wrong
    }

    func close() async { for pool in producers.map(\.pool) + [locker] { await pool.close() } }

    /// Somebody locks some lanes, for as long as it takes; meanwhile nothing in them changes, and
    /// everything else goes on.
    private mutating func lockOrUnlock() async throws {
        if !locked.isEmpty {
            try await locker.run { try $0.script("COMMIT") }
            return locked = []
        }
        let lanes = (keepers.map(\.id) + others).filter { _ in Bool.random(using: &random) }
        if lanes.isEmpty { return }
        try await locker.run { connection in
            try connection.script("BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0")
            try connection.query("SELECT FROM outbox.lane WHERE endpoint_id = ANY (\(lanes)) FOR UPDATE")
        }
        locked = Set(lanes)
    }

    /// Opens a transaction, writes in it, or ends it. Some have their id long before they write,
    /// some write nothing.
    private mutating func produce(_ number: Int) async throws {
        let pool = producers[number].pool
        guard producers[number].isOpen else {
            producers[number].isOpen = true
            let script = Bool.random(using: &random) ? "BEGIN" : "BEGIN; SELECT pg_current_xact_id()"
            return try await pool.run { try $0.script(script) }
        }
        guard Double.random(in: 0..<1, using: &random) < 0.7 else {
            return try await end(number, commits: Double.random(in: 0..<1, using: &random) < 0.8)
        }
        let owned = producers.indices.filter { $0 != number }.reduce(into: Set<Int>()) {
            $0.formUnion(producers[$1].keys)
        }
        guard let key = (0...6).filter({ $0 == 0 || !owned.contains($0) }).randomElement(using: &random) else { return }
        if key > 0 { producers[number].keys.insert(key) }
        let count = [1, 1, 1, 2, 4, 7].randomElement(using: &random) ?? 1
        let isUndone = Double.random(in: 0..<1, using: &random) < 0.1
        let ids = try await pool.run { connection in
            if isUndone { try connection.script("SAVEPOINT s") }
            let ids = try connection.query(
                """
                INSERT INTO outbox.event (type, ordering_key) SELECT 't', \(key == 0 ? nil : "k\(key)")
                  FROM generate_series(1, \(Int32(count))) RETURNING id
                """
            ).all(Int64.self)
            if isUndone { try connection.script("ROLLBACK TO s") }
            return ids
        }
        if !isUndone { producers[number].events += ids.map { (key, $0) } }
    }

    private mutating func end(_ number: Int, commits: Bool) async throws {
        try await producers[number].pool.run { try $0.script(commits ? "COMMIT" : "ROLLBACK") }
        if commits { for event in producers[number].events { committed[event.id] = event.key } }
        producers[number].isOpen = false
        producers[number].keys = []
        producers[number].events = []
    }

    private mutating func cut() async throws {
        let outcome = Double.random(in: 0..<1, using: &random) < 0.15 ? "ROLLBACK" : "COMMIT"
        try await database.script("BEGIN; SELECT outbox.cut(\(batchSize), \(budget)); \(outcome)")
        // S1 of v0003_cut.sql.
        let other = try await database.column(
            """
            SELECT format('%s in %s', e.id, (SELECT count(*) FROM outbox.batch b WHERE b.ids @> e.id))
              FROM outbox.event e, (SELECT c FROM outbox.cut c ORDER BY c.id DESC LIMIT 1) newest(k)
             WHERE outbox.is_cut(newest.k, e.tx, e.id)::int <> (SELECT count(*) FROM outbox.batch b WHERE b.ids @> e.id)
            """)
        #expect(other == [], "is_cut does not say which events are in a batch, and in one")
    }

    private func claim() async throws {
        try await database.script("UPDATE outbox.batch SET claims = 1 WHERE claims = 0")
    }

    private mutating func beginOrder() async throws {
        guard !locked.contains(others[0]) else { return }
        let id = others.removeFirst()
        try await database.pool.run {
            try $0.updateEndpoint(id, keyring: TestWorker.keyring) { $0.isOrdered = true }
        }
        keepers.append(
            Keeper(id: id, since: try await database.number("SELECT coalesce(max(id), 0) FROM outbox.batch")))
    }

    /// Delivers some of what is due; false when nothing is.
    @discardableResult private mutating func deliver(to keeper: Int, _ share: Double) async throws -> Bool {
        if locked.contains(keepers[keeper].id) { return false }
        let due = try await due(keeper)
        for event in due where Double.random(in: 0..<1, using: &random) < share {
            try await take(
                """
                DELETE FROM outbox.delivery WHERE event_id = \(event) AND endpoint_id = \(keepers[keeper].id)
                RETURNING endpoint_id, ordering_key
                """, of: keeper)
            keepers[keeper].delivered.append(event)
        }
        return !due.isEmpty
    }

    /// What may be sent: of each line the first.
    private func due(_ keeper: Int) async throws -> [Int64] {
        try await database.pool.query(
            """
            SELECT event_id FROM outbox.delivery WHERE endpoint_id = \(keepers[keeper].id) AND due_at < 'infinity'
             ORDER BY due_at, event_id
            """, of: Int64.self
        )
    }

    private func take(_ removal: SQL, of keeper: Int) async throws {
        let id = keepers[keeper].id
        try await database.pool.run { connection in
            try connection.transaction { connection in
                try connection.query("SELECT FROM outbox.lane WHERE endpoint_id = \(id) FOR UPDATE")
                let gone = try connection.query(removal)
                let keys = try gone.map { row throws(PostgresError) in try row[1] as String? }.compactMap(\.self)
                try connection.query("SELECT outbox.advance(\(keys.map { _ in id }), \(keys), false)")
            }
        }
    }

    private func dead(_ keeper: Int) async throws -> [Int64] {
        try await database.pool.query(
            """
            SELECT event_id FROM outbox.dead_letter WHERE endpoint_id = \(keepers[keeper].id) AND reason <> 'cancelled'
             ORDER BY event_id
            """, of: Int64.self
        )
    }

    /// Something dies, or a dead letter is replayed or dropped.
    private mutating func buryOrRaise() async throws {
        guard let keeper = keepers.indices.randomElement(using: &random), !locked.contains(keepers[keeper].id) else {
            return
        }
        if let event = try await dead(keeper).randomElement(using: &random) {
            return try await raise(event, of: keeper)
        }
        guard let event = try await due(keeper).randomElement(using: &random) else { return }
        try await take(
            """
            WITH gone AS (
                DELETE FROM outbox.delivery WHERE event_id = \(event) AND endpoint_id = \(keepers[keeper].id) RETURNING *)
            INSERT INTO outbox.dead_letter (event_id, endpoint_id, event_at, reason, attempts, fingerprint, ordering_key, scan)
            SELECT event_id, endpoint_id, event_at, 'permanent', 1, 'model', ordering_key, scan FROM gone
            RETURNING endpoint_id, ordering_key
            """, of: keeper)
    }

    private mutating func raise(_ event: Int64, of keeper: Int) async throws {
        let delivery = try await database.deliveryID(event, keepers[keeper].id)
        if Bool.random(using: &random) {
            _ = try await database.pool.run { try $0.replayDeadLetters(delivery, reason: nil) }
        } else {
            try await database.pool.run { try $0.dropDeadLetter(delivery, reason: nil) }
            keepers[keeper].dropped.insert(event)
        }
    }
}

/// The same numbers for the same seed (SplitMix64: Steele, Lea and Flood, 2014).
private struct Generator: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed &* 0x9E37_79B9_7F4A_7C15 }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }
}
