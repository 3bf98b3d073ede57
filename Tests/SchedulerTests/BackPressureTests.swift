import Outbox
import Postgres
import Receiver
import Scheduler
import TestSupport
import Testing

/// What a process takes is bounded by its configuration, not by what waits.
@Suite(.timeLimit(.minutes(15))) struct BackPressureTests {
    @Test(.heavy) func `a receiver that stops answering is given no more than its share of memory`() async throws {
        let database = try await TestCluster.database()
        let silent = try Ledger { _, _ in Receiver.Response(manner: .silence) }
        let healthy = try Ledger()
        for (name, ledger, type) in [("silent", silent, "large"), ("healthy", healthy, "small")] {
            try await database.endpoint(name, url: ledger.url, retries: [.seconds(60)]) { change in
                change.eventTypes = [try EventPattern(type)]
                change.timeout = .seconds(300)
            }
        }
        // 50 events of 1,000 bytes as stored, and as many of 100,000 that do not compress.
        try await database.script(
            """
            INSERT INTO outbox.event (type, after)
            SELECT 'large', to_json((SELECT string_agg(md5(n::text || i::text), '') FROM generate_series(1, 3125) n))
              FROM generate_series(1, 50) i
            """)
        try await TestWorker.run(
            database,
            configure: { configuration in
                configuration.maxBytes = 1_600_000
                configuration.softDeadline = .milliseconds(200)
                configuration.grace = .milliseconds(100)
            }
        ) {
            // An endpoint has an eighth: two of these events, which together first exceed it.
            #expect(try await eventually { try await database.number("SELECT count(*) FROM outbox.delivery") >= 45 })
            #expect(silent.all.count <= 3)
            // Everybody else goes on.
            try await database.publish(500, type: "small")
            #expect(await eventually { healthy.all.count == 500 })
            #expect(silent.all.count <= 3)
        }
        #expect(healthy.counts.values.allSatisfy { $0 == 1 })
        for ledger in [silent, healthy] { ledger.receiver.stop() }
    }

    @Test func `a batch ends at a mebibyte, whatever the number of its events`() async throws {
        let database = try await TestCluster.database()
        try await database.script(
            """
            INSERT INTO outbox.event (type, after)
            SELECT 'large', to_json((SELECT string_agg(md5(n::text || i::text), '') FROM generate_series(1, 9375) n))
              FROM generate_series(1, 40) i
            """)
        #expect(try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) } == .events(40))
        #expect(try await database.number("SELECT max(size) FROM outbox.batch") <= 4)
        #expect(try await database.number("SELECT sum(size)::int8 FROM outbox.batch") == 40)
    }

    @Test(.heavy) func `while the database takes no records, no more is claimed, and nothing is lost or sent twice`()
        async throws
    {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        // All of a batch starts at once: what waits too long, on a busy machine, would go into the
        // lane; and a thousand answers at a time take longer there than a request may otherwise.
        try await database.endpoint("e", url: ledger.url) {
            $0.maxInFlight = 1000
            $0.timeout = .seconds(60)
        }
        let blocker = try database.newPool(
            session: SessionSetUp(settings: [("idle_in_transaction_session_timeout", "0")]))
        // No lease ends while nothing is recorded, however busy the machine is.
        try await TestWorker.run(
            database,
            configure: {
                $0.maxUnrecorded = 1000
                $0.lease = .seconds(120)
            }
        ) {
            try await blocker.run { try $0.script("BEGIN; LOCK TABLE outbox.attempt IN SHARE MODE") }
            try await database.script("INSERT INTO outbox.event (type) SELECT 'test' FROM generate_series(1, 10000)")
            // What was claimed before the bound was reached still goes out: at most two batches and
            // what was pending.
            #expect(await eventually { ledger.all.count >= 1000 })
            var seen = -1
            while seen != ledger.all.count {
                seen = ledger.all.count
                try await Task.sleep(for: .milliseconds(500))
            }
            #expect(ledger.all.count <= 4000)
            try await blocker.run { try $0.script("COMMIT") }
            #expect(try await eventually { try await database.isDrained() })
        }
        #expect(ledger.counts.count == 10_000)
        #expect(ledger.all.count == 10_000)
        let attempts = try await database.column(
            "SELECT concat_ws(' ', outcome, trigger, status, error_class, error, count(*)) FROM outbox.attempt GROUP BY outcome, trigger, status, error_class, error"
        )
        #expect(attempts == ["success first 200 10000"])
        await blocker.close()
        ledger.receiver.stop()
    }
}
