import Outbox
import Postgres
import Receiver
import Scheduler
import TestSupport
import Testing

/// Endpoints that keep order: one delivery of an ordering key at a time, in the order of the
/// stream.
@Suite(.timeLimit(.minutes(15))) struct OrderTests {
    private func outcomes(_ database: TestDatabase) async throws -> [String?] {
        try await database.column(
            "SELECT event_id || ' ' || outcome FROM outbox.attempt ORDER BY started_at, event_id, number")
    }

    private func healthy(_ database: TestDatabase) async throws {
        let problems = try await database.column(
            "SELECT problem || detail FROM outbox.problems WHERE problem NOT IN ('no_worker', 'order_blocked')")
        #expect(problems == [])
    }

    @Test func `events of a key arrive one at a time and in order, whoever sends them and however often they fail`()
        async throws
    {
        let database = try await TestCluster.database()
        let lines = Lines()
        let ledger = try Ledger { request, _ in
            lines.take(request) { key, place, before in
                // One in eight fails, one way or another, and not all keys at the same time: the
                // breaker stays closed.
                let mixed = (key.hashValue &* 31 &+ before) &* 0x2545_F491_4F6C_DD1D
                let fails = (mixed >> 40).isMultiple(of: 8)
                return fails
                    ? Receiver.Response(500, manner: place.isMultiple(of: 2) ? .hangUp : .proper) : Receiver.Response()
            }
        }
        try await database.endpoint(
            "e", url: ledger.url, retries: Array(repeating: .milliseconds(20), count: 30)
        ) {
            $0.isOrdered = true
            $0.format = .raw
        }
        try await TestWorker.run(database, configure: { $0.worker = "one" }) {
            let other = try await TestWorker(database, name: "two")
            try await database.publishLines(keys: 40, rounds: 25)
            let isThrough = await eventually(within: .seconds(60)) { lines.delivered == 1000 }
            #expect(isThrough)
            let isDrained = try await eventually { try await database.isDrained() }
            #expect(isDrained)
            try await other.stop()
        }
        #expect(lines.wrong == [])
        #expect(try await database.deliveries("delivered") == 1000)
        try await healthy(database)
        ledger.receiver.stop()
    }

    @Test func `a dead letter blocks its key and no other, until it is replayed or dropped`() async throws {
        let database = try await TestCluster.database()
        let isWell = Flag(false)
        let ledger = try Ledger { request, _ in
            Receiver.Response(
                isWell.isSet || !String(decoding: request.body, as: UTF8.self).contains("bad") ? 200 : 500)
        }
        let endpoint = try await database.endpoint("e", url: ledger.url, retries: []) { $0.isOrdered = true }.id
        try await TestWorker.run(database) {
            try await database.script(
                """
                SELECT outbox.publish('t', '"bad"', ordering_key => 'a'), outbox.publish('t', '1', ordering_key => 'b');
                SELECT outbox.publish('t', '"bad"', ordering_key => 'a'), outbox.publish('t', '2', ordering_key => 'b'), outbox.publish('t', '3');
                SELECT outbox.publish('t', '4', ordering_key => 'a')
                """)
            let isBlocked = try await eventually { try await database.deliveries("delivered") == 3 }
            #expect(isBlocked)
            #expect(try await database.deliveries("dead") == 1)
            #expect(ledger.counts[3] == nil)
            let second = try await database.deliveryID(3, endpoint)
            let why = try await database.pool.run { try $0.explain(second).first }
            #expect(why?.reason == .order)
            #expect(why?.detail == "behind 1:e, a dead letter, of ordering key a")
            #expect(why?.fixes.last == UseCase("dead.drop", "1", "\(endpoint)"))
            // What stands behind a dead letter cannot be pulled out.
            await #expect(throws: Problem.self) {
                try await database.pool.run { try $0.retryDelivery(second, reason: nil) }
            }
            try await healthy(database)

            // Dropped: the next goes, and becomes a dead letter itself. Replayed: all the rest
            // goes.
            let first = try await database.deliveryID(1, endpoint)
            try await database.pool.run { try $0.dropDeadLetter(first, reason: "test") }
            let isNext = await eventually { ledger.counts[3] == 1 }
            #expect(isNext)
            let isParked = try await eventually { try await database.deliveries("dead") == 1 }
            #expect(isParked)
            #expect(ledger.counts[6] == nil)
            isWell.isSet = true
            let replayed = try await database.pool.run { try $0.replayDeadLetters(second, reason: nil) }
            #expect(replayed == 1)
            let isThrough = try await eventually { try await database.deliveries("delivered") == 5 }
            #expect(isThrough)
        }
        let key = ledger.eventIDs.filter { [1, 3, 6].contains($0) }
        #expect(key == [1, 3, 3, 6])
        #expect(try await database.deliveries("cancelled") == 1)
        try await healthy(database)
        ledger.receiver.stop()
    }

    @Test func `with on-dead skip the key goes on, and a replay takes its old place without overtaking`() async throws {
        let database = try await TestCluster.database()
        let isWell = Flag(false)
        let isHeld = Flag(true)
        let ledger = try Ledger { request, _ in
            let body = String(decoding: request.body, as: UTF8.self)
            if body.contains("slow") {
                isHeld.waitUntilCleared()
            }
            return Receiver.Response(isWell.isSet || !body.contains("bad") ? 200 : 500)
        }
        let endpoint = try await database.endpoint("e", url: ledger.url, retries: []) {
            $0.isOrdered = true
            $0.onDead = .skip
            $0.timeout = .seconds(300)
        }.id
        try await TestWorker.run(database) {
            try await database.script(
                """
                SELECT outbox.publish('t', '"bad"', ordering_key => 'a'); SELECT outbox.publish('t', '"slow"', ordering_key => 'a');
                SELECT outbox.publish('t', '3', ordering_key => 'a')
                """)
            let isSkipped = await eventually { ledger.counts[2] == 1 }
            #expect(isSkipped)
            isWell.isSet = true
            let first = try await database.deliveryID(1, endpoint)
            let replayed = try await database.pool.run { try $0.replayDeadLetters(first, reason: nil) }
            #expect(replayed == 1)
            // The one in flight ends first; then the replayed one, which is older than what still
            // waits.
            isHeld.isSet = false
            let isThrough = try await eventually { try await database.deliveries("delivered") == 3 }
            #expect(isThrough)
        }
        #expect(ledger.eventIDs == [1, 2, 1, 3])
        try await healthy(database)
        ledger.receiver.stop()
    }

    @Test func `changing from block to skip lets blocked keys go, and giving order up lets everything go`() async throws
    {
        let database = try await TestCluster.database()
        let ledger = try Ledger { request, _ in
            Receiver.Response(String(decoding: request.body, as: UTF8.self).contains("bad") ? 500 : 200)
        }
        let endpoint = try await database.endpoint("e", url: ledger.url, retries: [.seconds(600)]) {
            $0.isOrdered = true
        }
        .id
        func change(_ body: @escaping @Sendable (inout EndpointConfiguration) -> Void) async throws {
            try await database.pool.run { try $0.updateEndpoint(endpoint, keyring: TestWorker.keyring, body) }
        }
        try await TestWorker.run(database) {
            try await database.script(
                """
                SELECT outbox.publish('t', '"bad"', ordering_key => 'a'); SELECT outbox.publish('t', '2', ordering_key => 'a');
                SELECT outbox.publish('t', '"bad"', ordering_key => 'a'); SELECT outbox.publish('t', '4', ordering_key => 'a')
                """)
            let hasFailed = try await eventually {
                try await database.number("SELECT count(*) FROM outbox.delivery WHERE attempts = 1") == 1
            }
            #expect(hasFailed)
            try await change { $0.retrySchedule = [] }
            let first = try await database.deliveryID(1, endpoint)
            try await database.pool.run { try $0.retryDelivery(first, reason: nil) }
            let isDead = try await eventually { try await database.deliveries("dead") == 1 }
            #expect(isDead)
            try await change {
                $0.onDead = .skip
                $0.retrySchedule = [.seconds(600)]
            }
            let goesOn = try await eventually {
                try await database.number("SELECT count(*) FROM outbox.delivery WHERE attempts = 1") == 1
            }
            #expect(goesOn)
            #expect(ledger.eventIDs == [1, 1, 2, 3])
            try await change { $0.isOrdered = false }
            let isThrough = await eventually { ledger.counts[4] == 1 }
            #expect(isThrough)
        }
        try await healthy(database)
        ledger.receiver.stop()
    }

    @Test func `a late commit goes behind what was committed before it, also behind a retry`() async throws {
        let database = try await TestCluster.database()
        let isWell = Flag(false)
        let ledger = try Ledger { _, _ in Receiver.Response(isWell.isSet ? 200 : 500) }
        try await database.endpoint("e", url: ledger.url, retries: Array(repeating: .milliseconds(50), count: 100)) {
            $0.isOrdered = true
        }
        let late = try database.newPool()
        try await TestWorker.run(database) {
            try await late.run { try $0.script("BEGIN; SELECT outbox.publish('t', '1', ordering_key => 'a')") }
            try await database.script("SELECT outbox.publish('t', '2', ordering_key => 'a')")
            let isTried = await eventually { ledger.counts[2] ?? 0 > 1 }
            #expect(isTried)
            try await late.run { try $0.script("COMMIT") }
            let isRouted = try await eventually {
                try await database.number("SELECT count(*) FROM outbox.delivery WHERE due_at = 'infinity'") == 1
            }
            #expect(isRouted)
            isWell.isSet = true
            let isThrough = try await eventually { try await database.deliveries("delivered") == 2 }
            #expect(isThrough)
        }
        await late.close()
        #expect(Array(ledger.eventIDs.suffix(2)) == [2, 1])
        ledger.receiver.stop()
    }

    @Test func `a scan of several cuts lets nothing go before its end, and keeps the order of publishing`()
        async throws
    {
        let database = try await TestCluster.database()
        try await database.endpoint("e", url: "https://example.com/") { $0.isOrdered = true }
        // The first transaction to begin publishes last, as one does that waits for a row lock.
        let (early, other) = (try database.newPool(), try database.newPool())
        try await early.run { try $0.script("BEGIN; SELECT outbox.publish('t', '0', ordering_key => 'other')") }
        try await other.run {
            try $0.script("BEGIN; SELECT outbox.publish('t', '1', ordering_key => 'a'); COMMIT")
        }
        try await early.run { try $0.script("SELECT outbox.publish('t', '2', ordering_key => 'a'); COMMIT") }
        await early.close()
        await other.close()
        func due() async throws -> [String?] {
            try await database.column("SELECT event_id::text FROM outbox.delivery WHERE due_at < 'infinity' ORDER BY 1")
        }
        var routed = 0
        while routed < 3 {
            _ = try await database.pool.run { try $0.cut(batchSize: 1, budget: 1) }
            routed = try await database.number("SELECT count(*) FROM outbox.delivery")
            // A line that moves meanwhile does not let them go either.
            try await database.script(
                "SELECT outbox.advance(array_agg(endpoint_id), array_agg(ordering_key), false) FROM outbox.delivery")
            if routed < 3 {
                let early = try await due()
                #expect(early == [])
                let held = try await database.pool.run { connection in
                    let endpoint = try connection.endpointID("e")
                    let first =
                        try connection.query("SELECT min(event_id) FROM outbox.delivery")
                        .one(EventID?.self)
                    return try first.map {
                        try connection.explain(
                            DeliveryID(event: try connection.eventKey("\($0)"), endpoint: endpoint))
                    }
                }
                #expect(held?.first.map { $0.reason == .order } ?? true)
            }
            try await healthy(database)
        }
        while try await database.pool.run({ try $0.cut(batchSize: 1, budget: 1) }) != .events(0) {}
        #expect(try await due() == ["1", "2"])
        #expect(try await database.column("SELECT unreleased::text FROM outbox.cut ORDER BY id DESC LIMIT 1") == [nil])
        try await healthy(database)
    }

    @Test func `order that begins while a large transaction waits lets everything go at its end`() async throws {
        let database = try await TestCluster.database()
        // A hundred batches wait, so that the large transaction does, too, with others behind it.
        try await database.publish(100, type: "other")
        #expect(try await database.pool.run { try $0.cut(batchSize: 1, budget: 100) } == .events(100))
        try await database.script(
            "INSERT INTO outbox.event (type, ordering_key) SELECT 't', 'k' || n % 10 FROM generate_series(1, 60) n")
        try await database.publish(150, type: "other")
        _ = try await database.pool.run { try $0.cut(batchSize: 1, budget: 100) }
        #expect(try await database.number("SELECT cardinality(large) FROM outbox.cut ORDER BY id DESC LIMIT 1") >= 1)
        try await database.endpoint("e", url: "https://example.com/") {
            $0.isOrdered = true
            $0.eventTypes = ["t"]
        }
        while try await database.pool.run({ try $0.cut(batchSize: 1, budget: 100) }) != .events(0) {}
        let lines = try await database.column(
            "SELECT count(*) || ' ' || count(*) FILTER (WHERE due_at < 'infinity') FROM outbox.delivery")
        #expect(lines == ["60 10"])
        #expect(
            try await database.column("SELECT detail FROM outbox.problems WHERE problem = 'delivery_in_limbo'") == [])
    }

    @Test func `what is held is let go in steps, every line once`() async throws {
        let database = try await TestCluster.database()
        try await database.endpoint("e", url: "https://example.com/") { $0.isOrdered = true }
        try await database.script(
            "INSERT INTO outbox.event (type, ordering_key) SELECT 't', 'k' || n % 25 FROM generate_series(1, 100) n")
        _ = try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) }
        try await database.script(
            """
            UPDATE outbox.delivery SET due_at = 'infinity';
            DO $$ DECLARE k outbox.cut; steps int := 0; BEGIN
                SELECT * INTO k FROM outbox.cut ORDER BY id DESC LIMIT 1;
                k.unreleased := 0;
                WHILE k.unreleased IS NOT NULL LOOP k := outbox.release_order(k, k.id, 4); steps := steps + 1; END LOOP;
                IF steps <> 7 THEN RAISE EXCEPTION '% steps', steps; END IF;
            END $$
            """)
        let first = try await database.column(
            "SELECT event_id::text FROM outbox.delivery d WHERE due_at < 'infinity' ORDER BY d.event_id")
        #expect(first == (1...25).map { "\($0)" })
        try await healthy(database)
    }

    @Test func `order can be given up with thousands in line`() async throws {
        let database = try await TestCluster.database()
        let endpoint = try await database.endpoint("e", url: "https://example.com/") { $0.isOrdered = true }.id
        try await database.script(
            "INSERT INTO outbox.event (type, ordering_key) SELECT 't', 'k' || n % 7 FROM generate_series(1, 4900) n")
        _ = try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) }
        try await database.pool.run {
            try $0.updateEndpoint(endpoint, keyring: TestWorker.keyring) { $0.isOrdered = false }
        }
        let counts = try await database.column(
            "SELECT concat_ws(' ', count(*), count(*) FILTER (WHERE due_at <= clock_timestamp()), count(ordering_key)) FROM outbox.delivery"
        )
        #expect(counts == ["4900 4900 0"])
        try await healthy(database)
    }

    @Test func `a success under a lost lease lets the next go only when a second request has timed out`() async throws {
        let database = try await TestCluster.database()
        let id = try await database.endpoint("e", url: "https://example.com/") {
            $0.isOrdered = true
            $0.timeout = .seconds(60)
        }.id
        try await database.script(
            "SELECT outbox.publish('t', '1', ordering_key => 'a'); SELECT outbox.publish('t', '2', ordering_key => 'a')"
        )
        _ = try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) }
        let lease = LeaseID.random()
        let page = try await database.pool.run { connection in
            let claim = try connection.claimLanes(lease: lease, worker: "w", for: .seconds(60), excluding: [])
            #expect(claim.lanes.count == 1)
            return try connection.lanePage(of: id, after: .start(.none), recoveredAt: nil).deliveries
        }
        #expect(page.map(\.event.id.rawValue) == [1])
        let first = try #require(page.first)
        try await database.script("UPDATE outbox.lane SET lease_id = gen_random_uuid()")
        var outcome = Outcome(
            delivery: DeliveryID(event: first.event, endpoint: id), holder: .lane(id, lease),
            mayBeShared: true, attempt: nil, attempts: 1, resolution: .delivered)
        outcome.isOrdered = first.isOrdered
        var group = RecordGroup()
        group.outcomes = [outcome]
        let receipt = try await database.pool.run { [group] in try $0.record(group, worker: "w") }
        #expect(receipt.lost.count == 1)
        let wait = try await database.number(
            "SELECT extract(epoch FROM due_at - clock_timestamp())::int FROM outbox.delivery WHERE event_id = 2")
        #expect((50...61).contains(wait))
    }

    @Test func `a request that hangs holds up its own key and nothing else of its lane`() async throws {
        let database = try await TestCluster.database()
        let isHeld = Flag(true)
        let ledger = try Ledger { request, _ in
            if String(decoding: request.body, as: UTF8.self).contains("slow") { isHeld.waitUntilCleared() }
            return Receiver.Response()
        }
        try await database.endpoint("e", url: ledger.url) {
            $0.isOrdered = true
            $0.timeout = .seconds(300)
        }
        try await TestWorker.run(database) {
            try await database.script("SELECT outbox.publish('t', '\"slow\"', ordering_key => 'a')")
            let hangs = await eventually { ledger.counts[1] == 1 }
            #expect(hangs)
            for number in 2...6 {
                try await database.script(
                    "SELECT outbox.publish('t', '\(number)', ordering_key => 'b'); SELECT outbox.publish('t', '0')")
                let isThrough = try await eventually { try await database.deliveries("delivered") == (number - 1) * 2 }
                #expect(isThrough)
            }
            isHeld.isSet = false
            let isDrained = try await eventually { try await database.isDrained() }
            #expect(isDrained)
        }
        #expect(ledger.counts.values.allSatisfy { $0 == 1 })
        ledger.receiver.stop()
    }

    @Test func `events without a key are not held up by one another`() async throws {
        let database = try await TestCluster.database()
        let isHeld = Flag(true)
        let ledger = try Ledger { request, _ in
            if String(decoding: request.body, as: UTF8.self).contains("slow") {
                isHeld.waitUntilCleared()
            }
            return Receiver.Response()
        }
        try await database.endpoint("e", url: ledger.url) {
            $0.isOrdered = true
            $0.timeout = .seconds(300)
        }
        try await TestWorker.run(database) {
            try await database.script(
                "SELECT outbox.publish('t', '\"slow\"'); SELECT outbox.publish('t', '2'), outbox.publish('t', '3', ordering_key => '')"
            )
            let areThrough = try await eventually { try await database.deliveries("delivered") == 2 }
            #expect(areThrough)
            isHeld.isSet = false
            let isDrained = try await eventually { try await database.isDrained() }
            #expect(isDrained)
        }
        ledger.receiver.stop()
    }
}
