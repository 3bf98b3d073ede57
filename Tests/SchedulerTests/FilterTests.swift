import Logging
import Outbox
import Postgres
import Receiver
import Synchronization
import Templates
import TestSupport
import Testing

@testable import Scheduler

extension TestDatabase {
    /// Waits until a statement returns a number.
    fileprivate func reaches(_ count: Int, _ sql: SQL) async throws {
        let isReached = try await eventually { try await number(sql) == count }
        #expect(isReached)
    }
}

/// A payload filter lets through what it holds for. One that cannot be answered is that delivery's
/// own matter.
@Suite(.timeLimit(.minutes(15))) struct FilterTests {
    /// What a filter that takes for ever looks like: the text is in the event.
    private static let endless = #"$.after.t like_regex "^(.*)(.*)(.*)(.*)\\2\\1$""#
    private static let bait = String(repeating: "a", count: 3000) + "!"

    private func received(_ ledger: Ledger) -> [String] {
        ledger.all.map { String(decoding: $0.body, as: UTF8.self) }.sorted()
    }

    @Test(arguments: [
        ("$.after.n > 1", ["2", "3"]), ("$.after.n", ["1", "2", "3"]), ("$.after ? (@.n == 2)", ["2"]),
        ("$.before.n == 1", ["1"]), (#"$.type == "a.x""#, ["1"]), (#"$.change_type == "Update""#, ["2"]),
        (#"$.customer_id == "acme""#, ["3"]), (#"$.identity == "me""#, ["2"]), (#"$.ordering_key == "k""#, ["3"]),
        (#"$.headers.h == 1"#, ["1"]), (#"$.context.h == 1"#, ["1"]), ("$.after.flag", ["3"]), ("$.nothing", []),
        ("null", []), ("true", ["1", "2", "3"]),
    ])
    func `the event goes out when the path's first item is neither false nor null`(filter: String, expected: [String])
        async throws
    {
        for isOrdered in [false, true] {
            let database = try await TestCluster.database()
            let ledger = try Ledger()
            let other = try Ledger()
            try await database.endpoint("filtered", url: ledger.url) {
                $0.filter = filter
                $0.format = .template
                $0.template = try .init("%after.n%", kind: .text)
                $0.isOrdered = isOrdered
            }
            try await database.endpoint("other", url: other.url)
            try await database.script(
                """
                SELECT outbox.publish('a.x', '{"n":1,"flag":false}', before => '{"n":1}', headers => '{"h":1}');
                SELECT outbox.publish('b', '{"n":2,"flag":null}', change_type => 'Update', identity => 'me');
                SELECT outbox.publish('c', '{"n":3,"flag":0}', customer_id => 'acme', ordering_key => 'k');
                """)
            try await TestWorker.run(database) {
                #expect(await eventually { other.all.count == 3 })
                #expect(await eventually { ledger.all.count >= expected.count })
                let isDrained = try await eventually { try await database.isDrained() }
                #expect(isDrained)
            }
            #expect(received(ledger) == expected, "\(isOrdered)")
            // What it does not hold for leaves nothing behind.
            #expect(
                try await database.number(
                    "SELECT (SELECT count(*) FROM outbox.delivery) + (SELECT count(*) FROM outbox.dead_letter)") == 0)
            for ledger in [ledger, other] { ledger.receiver.stop() }
        }
    }

    @Test(arguments: [false, true])
    func `an event that jsonb does not take, or a path that raises, is a dead letter of that delivery only`(
        isOrdered: Bool
    ) async throws {
        let database = try await TestCluster.database()
        let (strict, plain) = (try Ledger(), try Ledger())
        try await database.endpoint("strict", url: strict.url) {
            $0.filter = "strict $.after.n"
            $0.isOrdered = isOrdered
        }
        try await database.endpoint("plain", url: plain.url)
        // The last one is fine.
        try await database.script(
            #"""
            SELECT outbox.publish('t', '{"t":"\u0000"}'); SELECT outbox.publish('t', '{"t":"\ud800"}');
            SELECT outbox.publish('t', '{"n":1e999999}'); SELECT outbox.publish('t', '{"m":"canary"}');
            SELECT outbox.publish('t', '{"n":2}');
            """#)
        try await TestWorker.run(database) {
            #expect(await eventually { plain.all.count == 5 && strict.all.count == 1 })
            try await database.reaches(4, "SELECT count(*) FROM outbox.dead_letter WHERE reason = 'filter_error'")
        }
        #expect(try await database.column("SELECT DISTINCT error_class FROM outbox.dead_letter") == ["filter_error"])
        #expect(try await database.number("SELECT count(*) FROM outbox.dead_letter WHERE error LIKE '%canary%'") == 0)
        #expect(
            try await database.number(
                "SELECT count(*) FROM outbox.attempt WHERE endpoint_id = (SELECT id FROM outbox.endpoint WHERE name = 'strict')"
            ) == 1)

        // Mended, they are asked again when they are replayed.
        let id = try await database.pool.run { try $0.endpointID("strict") }
        try await database.pool.run {
            try $0.updateEndpoint(id, keyring: TestWorker.keyring) { $0.filter = #"$.after.m == "canary""# }
            _ = try $0.replayDeadLetters(nil, endpoint: id, reason: "mended")
        }
        try await TestWorker.run(database) {
            #expect(await eventually { strict.all.count == 2 })
            try await database.reaches(3, "SELECT count(*) FROM outbox.dead_letter WHERE reason = 'filter_error'")
        }
        for ledger in [strict, plain] { ledger.receiver.stop() }
    }

    @Test(arguments: [false, true])
    func `a path that takes for ever costs its own deliveries and nobody else's`(isOrdered: Bool) async throws {
        let database = try await TestCluster.database()
        let (slow, quick) = (try Ledger(), try Ledger())
        try await database.endpoint("slow", url: slow.url) {
            $0.filter = Self.endless
            $0.isOrdered = isOrdered
        }
        try await database.endpoint("quick", url: quick.url) { $0.filter = "$.after.n > 0" }
        try await TestWorker.run(database) {
            try await database.script(
                """
                SELECT outbox.publish('t', json_build_object('n', n, 't', CASE WHEN n % 2 = 0 THEN '\(Self.bait)' ELSE 'aab' END))
                  FROM generate_series(1, 10) n
                """)
            #expect(await eventually { quick.all.count == 10 && slow.all.count == 5 })
            try await database.reaches(
                5,
                "SELECT count(*) FROM outbox.dead_letter WHERE reason = 'filter_error' AND error LIKE '%took longer%'")
        }
        #expect(quick.counts.values.allSatisfy { $0 == 1 })
        for ledger in [slow, quick] { ledger.receiver.stop() }
    }

    @Test func `slow filters of one customer take turns with those of another`() async throws {
        let database = try await TestCluster.database()
        let (slow, quick) = (try Ledger(), try Ledger())
        for number in 1...12 {
            try await database.endpoint("slow\(number)", url: slow.url) {
                $0.customerID = "a"
                $0.filter = Self.endless
                $0.isOrdered = true
            }
        }
        try await database.endpoint("quick", url: quick.url) {
            $0.customerID = "b"
            $0.filter = "$.after.n > 0"
            $0.isOrdered = true
        }
        try await TestWorker.run(database) {
            // Each of these is asked about for a quarter of a second in its lane, and for more than
            // one alone.
            try await database.script(
                "SELECT outbox.publish('t', json_build_object('t', '\(Self.bait)'), customer_id => 'a')")
            try await database.reaches(12, "SELECT count(*) FROM outbox.delivery")
            try await database.script(
                "SELECT outbox.publish('t', json_build_object('n', 1), customer_id => 'b') FROM generate_series(1, 5)")
            #expect(await eventually { quick.all.count == 5 })
            // First come, first served would have looked at all of theirs before.
            #expect(try await database.number("SELECT count(*) FROM outbox.dead_letter") < 6)
        }
        for ledger in [slow, quick] { ledger.receiver.stop() }
    }

    @Test func `a stall of the server is not a slow filter`() async throws {
        let database = try await TestCluster.database()
        let id = try await database.endpoint("e", url: "https://example.com/") { $0.filter = "$.after.n == 1" }.id
        let endpoint = try await database.pool.run { try $0.endpoint(id, keyring: TestWorker.keyring) }
        try await database.script("SELECT outbox.publish('t', '{\"n\":1}')")
        let event = try await database.pool.run { try $0.eventKey("1") }
        let (asking, holder) = (try database.newPool(), try database.newPool())
        let gate = FilterGate(batches: asking, lanes: asking, slow: asking, logger: Logger(label: "test"))
        try await holder.run { connection in
            try connection.script("BEGIN; LOCK TABLE outbox.event IN ACCESS EXCLUSIVE MODE")
        }
        let asked = Task { try await gate.ask([event], of: endpoint, "$.after.n == 1") }
        // In the lane, alone, and then for as long as the lock is held.
        var seen: Set<String> = []
        while seen.count < 3 {
            let waiting = try await database.pool.query(
                """
                SELECT query_start::text FROM pg_stat_activity
                 WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%ask_filters%'
                """, of: String.self)
            seen.formUnion(waiting)
        }
        try await holder.run { try $0.script("COMMIT") }
        let verdicts = try await asked.value
        #expect(verdicts == [.holds])
        await asking.close()
        await holder.close()
    }

    @Test func `lanes without filters do not wait for the connections of those with`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        for number in 1...4 {
            try await database.endpoint("slow\(number)", url: ledger.url) {
                $0.filter = Self.endless
                $0.isOrdered = true
            }
        }
        let watcher = try database.newPool()
        let asking = Mutex<Set<String>>([])
        try await TestWorker.run(database) {
            try await database.script(
                "SELECT outbox.publish('t', json_build_object('t', '\(Self.bait)')) FROM generate_series(1, 2)")
            // Each of them is asked for a quarter of a second in its lane, and longer alone.
            let isThrough = try await eventually {
                let names = try await watcher.query(
                    """
                    SELECT DISTINCT substring(application_name FROM '/[^/]*$') FROM pg_stat_activity
                     WHERE datname = current_database() AND state = 'active' AND query LIKE '%outbox.ask_filters(%'
                       AND pid <> pg_backend_pid()
                    """, of: String?.self
                )
                asking.withLock { $0.formUnion(names.compactMap(\.self)) }
                return try await database.number("SELECT count(*) FROM outbox.dead_letter") == 8
            }
            #expect(isThrough)
        }
        #expect(asking.withLock(\.self) == ["/filter", "/slow-filter"])
        await watcher.close()
        ledger.receiver.stop()
    }

    @Test func `what is cancelled while a slow filter is asked about events before it is not sent`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        let id = try await database.endpoint("e", url: ledger.url) {
            $0.filter = Self.endless
            $0.isOrdered = true
        }.id
        try await TestWorker.run(database) {
            try await database.script(
                """
                SELECT outbox.publish('t', json_build_object('t', CASE WHEN n < 5 THEN '\(Self.bait)' ELSE 'aab' END))
                  FROM generate_series(1, 5) n
                """)
            // Each of the first four takes more than a second.
            try await database.reaches(1, "SELECT count(*) FROM outbox.delivery WHERE event_id = 5")
            try await database.reaches(
                1,
                """
                SELECT least(count(*), 1) FROM pg_stat_activity
                 WHERE datname = current_database() AND state = 'active' AND query LIKE '%ask_filters%' AND pid <> pg_backend_pid()
                """)
            let last = try await database.deliveryID(5, id)
            try await database.pool.run { try $0.cancelDelivery(last, reason: nil) }
            try await database.reaches(4, "SELECT count(*) FROM outbox.dead_letter WHERE reason = 'filter_error'")
            try await database.reaches(0, "SELECT count(*) FROM outbox.delivery")
        }
        #expect(ledger.all.count == 0)
        ledger.receiver.stop()
    }

    @Test func `what was asked about before is not asked again: a retry and a replay go out`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { _, before in Receiver.Response(before < 3 ? 500 : 200) }
        let id = try await database.endpoint("e", url: ledger.url, retries: [.milliseconds(50)]) {
            $0.filter = "$.after.n == 1"
        }.id
        try await TestWorker.run(database) {
            try await database.publish()
            try await database.reaches(1, "SELECT count(*) FROM outbox.dead_letter")
            try await database.pool.run {
                try $0.updateEndpoint(id, keyring: TestWorker.keyring) { $0.filter = "false" }
                _ = try $0.replayDeadLetters(nil, endpoint: id, reason: nil)
            }
            #expect(await eventually { ledger.all.count == 4 })
        }
        ledger.receiver.stop()
    }

    @Test func `a filter that is no path is refused when it is saved`() async throws {
        let database = try await TestCluster.database()
        let long = "$." + String(repeating: "a", count: 5000)
        for filter in ["", "after.n > 1", "$.a ? (", #"$.a like_regex "(""#, "$x > 1", long] {
            let refusal = await #expect(throws: Problem.self) {
                try await database.endpoint("e", url: "https://example.com/") { $0.filter = filter }
            }
            #expect(refusal?.message.contains("filter") == true)
        }
        try await database.endpoint("e", url: "https://example.com/") { $0.filter = "$.a" }
    }
}
