import Glibc
import Outbox
import Postgres
import Receiver
import Scheduler
import StandardWebhooks
import TestSupport
import Testing

/// What `outboxctl doctor` says: each of these makes the cause, reads what is said of it, and does
/// what is advised. Where a cause has to last before it is said, its beginning is put back.
@Suite(.timeLimit(.minutes(15))) struct ProblemTests {
    private struct Problem: Equatable {
        let name: String
        let detail: String
        let fix: String
    }

    private func problems(_ database: TestDatabase, _ name: String, keyring: Keyring = .empty) async throws -> [Problem]
    {
        try await database.pool.run { try $0.problems(keyring: keyring) }.rows
            .map { Problem(name: $0[0] ?? "", detail: $0[1] ?? "", fix: $0[2] ?? "") }
            .filter { $0.name == name }
    }

    @Test func `an endpoint that fails is named, with since when and how many wait, until it answers again`()
        async throws
    {
        let database = try await TestCluster.database()
        let isWell = Flag(false)
        let ledger = try Ledger { _, _ in Receiver.Response(isWell.isSet ? 200 : 500) }
        let id = try await database.endpoint(
            "acme", url: ledger.url, retries: Array(repeating: .milliseconds(200), count: 100)
        ).id
        try await TestWorker.run(database) {
            try await database.publish(30)
            #expect(
                try await eventually {
                    try await database.number("SELECT count(*) FROM outbox.lane WHERE trips > 0") == 1
                })
            try await database.script("UPDATE outbox.lane SET failing_since = '2020-02-03 04:05:06+00'")
            let found = try await problems(database, "endpoint_failing")
            #expect(found.count == 1)
            #expect(found.first?.detail.contains("acme") == true, "\(found)")
            // Whose attempt is just being recorded still waits.
            #expect(
                (1...30).contains {
                    found.first?.detail.contains("fails since 2020-02-03T04:05:06Z, and \($0) deliveries") == true
                },
                "\(found)")
            #expect(found.first?.fix.contains("{endpoint.resume \(id)}") == true, "\(found)")
            isWell.isSet = true
            try await database.pool.run { try $0.resumeEndpoint(id, rate: nil) }
            #expect(try await eventually { try await problems(database, "endpoint_failing").isEmpty })
        }
        ledger.receiver.stop()
    }

    @Test func `an endpoint that is gone is named, with how many events passed it by`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { _, _ in Receiver.Response(410) }
        let id = try await database.endpoint("acme", url: ledger.url).id
        try await TestWorker.run(database) {
            try await database.publish()
            #expect(
                try await eventually {
                    try await database.number("SELECT count(*) FROM outbox.endpoint WHERE disabled_at IS NOT NULL") == 1
                })
        }
        #expect(try await problems(database, "endpoint_disabled").first?.detail.contains("410") == true)
        try await database.publish(7)
        let found = try await problems(database, "endpoint_disabled")
        // The event that says so passes it by, too: `outbox.*` goes only to who asked for it by
        // name.
        #expect(found.first?.detail.contains("7 of the newest") == true, "\(found)")
        #expect(found.first?.fix.contains("{endpoint.enable \(id)}") == true, "\(found)")
        ledger.receiver.stop()
    }

    @Test func `an endpoint whose secret no key opens is named`() async throws {
        let database = try await TestCluster.database()
        try await database.endpoint("acme", url: "https://example.com/")
        #expect(try await problems(database, "endpoint_unusable", keyring: TestWorker.keyring).isEmpty)
        let other = try Keyring(text: Keyring.newKeyLine())
        let found = try await problems(database, "endpoint_unusable", keyring: other)
        #expect(found.count == 1)
        #expect(found.first?.detail.contains("acme") == true, "\(found)")
        #expect(found.first?.fix.contains("OUTBOX_SECRET_KEY_FILE") == true, "\(found)")
    }

    @Test func `an endpoint without a signing secret is named, until it has one`() async throws {
        let database = try await TestCluster.database()
        let id = try await database.endpoint("acme", url: "https://example.com/").id
        #expect(try await problems(database, "endpoint_unsigned").isEmpty)
        try await database.script("UPDATE outbox.secret SET expires_at = clock_timestamp() - interval '1 s'")
        let found = try await problems(database, "endpoint_unsigned")
        #expect(found.count == 1 && found.first?.detail.contains("acme") == true, "\(found)")
        #expect(found.first?.fix == "{endpoint.secret.rotate \(id)}")
        try await database.pool.run {
            try $0.rotateSecret(id, to: .generate(), overlap: .seconds(60), keyring: TestWorker.keyring, reason: nil)
        }
        #expect(try await problems(database, "endpoint_unsigned").isEmpty)
    }

    @Test func `events that nobody cuts are said, with how many and where to look`() async throws {
        let database = try await TestCluster.database()
        let holder = try database.newPool()
        try await holder.run {
            try $0.script(
                "SET idle_in_transaction_session_timeout = 0; BEGIN; LOCK TABLE outbox.cutting IN SHARE UPDATE EXCLUSIVE MODE"
            )
        }
        try await TestWorker.run(database) {
            #expect(try await eventually { try await database.number("SELECT count(*) FROM outbox.worker") == 1 })
            try await database.publish(3)
            #expect(try await problems(database, "stream_stands").isEmpty)
            try await database.script("UPDATE outbox.event SET created_at = created_at - interval '2 min'")
            let found = try await problems(database, "stream_stands")
            #expect(found.first?.detail.hasPrefix("3 events wait to be cut") == true, "\(found)")
            #expect(found.first?.fix.contains("outbox.cutting") == true, "\(found)")
            try await holder.run { try $0.script("ROLLBACK") }
            #expect(try await eventually { try await problems(database, "stream_stands").isEmpty })
        }
        await holder.close()
    }

    @Test func `a worker that has all in flight that it may is named, with who has most of it`() async throws {
        let database = try await TestCluster.database()
        let mayAnswer = Flag(false)
        let ledger = try Ledger { _, _ in
            while !mayAnswer.isSet { usleep(20_000) }
            return Receiver.Response()
        }
        for number in 1...8 {
            try await database.endpoint("slow\(number)", url: ledger.url) { $0.timeout = .seconds(200) }
        }
        try await TestWorker.run(
            database,
            configure: {
                $0.maxInFlight = 8
                $0.lease = .seconds(300)
            }
        ) {
            try await database.publish(2)
            let isSaid = try await eventually { try await !problems(database, "requests_full").isEmpty }
            #expect(isSaid)
            let found = try await problems(database, "requests_full")
            #expect(found.first?.detail.contains("worker test uses 8 of 8 requests in flight") == true, "\(found)")
            #expect(found.first?.detail.contains(": 1 requests, ") == true, "\(found)")
            mayAnswer.isSet = true
            #expect(try await eventually { try await problems(database, "requests_full").isEmpty })
        }
        ledger.receiver.stop()
    }

    @Test func `a batch without a worker is named`() async throws {
        let database = try await TestCluster.database()
        try await database.publish()
        _ = try await database.pool.run { try $0.cut(batchSize: 10, budget: 10) }
        _ = try await database.pool.run { try $0.claimBatch(lease: .random(), worker: "gone", for: .seconds(-400)) }
        #expect(try await problems(database, "lease_not_taken_over").count == 1)
    }

    @Test func `a partition that should be gone is named, with what keeps it, and goes when that is dropped`()
        async throws
    {
        let database = try await TestCluster.database()
        let endpoint = try await database.endpoint("acme", url: "https://example.com/").id
        try await database.script(
            """
            CREATE TABLE outbox.event_old PARTITION OF outbox.event FOR VALUES FROM ('2020-01-01') TO ('2020-01-02');
            INSERT INTO outbox.event (type, created_at) VALUES ('old', '2020-01-01 12:00');
            INSERT INTO outbox.dead_letter (event_id, event_at, endpoint_id, reason, attempts, fingerprint)
            SELECT id, created_at, '\(endpoint)', 'exhausted', 1, 'x' FROM outbox.event
            """)
        _ = try await database.pool.run { try $0.cut(batchSize: 10, budget: 10) }
        try await database.script("DELETE FROM outbox.batch")
        #expect(try await database.pool.run { $0.keepHouse() }.dropped == [])
        let found = try await problems(database, "partition_kept")
        #expect(
            found.first?.detail.contains("event_old") == true
                && found.first?.detail.contains("1 dead letters of acme") == true, "\(found)")
        try await database.script("DELETE FROM outbox.dead_letter")
        #expect(try await database.pool.run { $0.keepHouse() }.dropped == ["event_old"])
        #expect(try await problems(database, "partition_kept").isEmpty)
    }

    @Test func `each right that somebody takes from a role is named, and what is advised gives it back`() async throws {
        let database = try await TestCluster.database()
        let rights = try await database.column(
            "SELECT DISTINCT concat_ws(' ', kind, object, 'FROM', role) FROM outbox.granted")
        #expect(rights.count > 100)
        for right in rights.compactMap(\.self) {
            try await database.script("REVOKE ALL ON \(right)")
            let found = try await problems(database, "grant_missing")
            #expect(found.count == 1, "\(right)")
            for problem in found { try await database.script(problem.fix) }
            #expect(try await problems(database, "grant_missing").isEmpty, "\(right)")
        }
    }

    @Test func `a dead letter that holds up its ordering key is said, until others may pass`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { request, _ in
            Receiver.Response(String(decoding: request.body, as: UTF8.self).contains("bad") ? 400 : 200)
        }
        let id = try await database.endpoint("acme", url: ledger.url, retries: []) { $0.isOrdered = true }.id
        try await TestWorker.run(database) {
            try await database.script(
                "SELECT outbox.publish('t', '\"bad\"', ordering_key => 'a'), outbox.publish('t', '1', ordering_key => 'a')"
            )
            let isSaid = try await eventually { try await problems(database, "order_blocked").count == 1 }
            #expect(isSaid)
            let found = try await problems(database, "order_blocked")
            #expect(found.first?.detail.hasPrefix("1 dead letters of acme") == true)
            #expect(found.first?.fix.contains("{endpoint.update \(id) on_dead=skip}") == true)
            try await database.pool.run {
                try $0.updateEndpoint(id, keyring: TestWorker.keyring) { $0.onDead = .skip }
            }
            #expect(try await eventually { try await problems(database, "order_blocked").isEmpty })
        }
        ledger.receiver.stop()
    }

    @Test func `what only a worker knows it says: that it cannot call an endpoint, and that it cannot record`()
        async throws
    {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        try await database.endpoint("sealed", url: ledger.url)
        try await database.endpoint("well", url: ledger.url) { $0.eventTypes = ["well"] }
        try await database.script(
            """
            UPDATE outbox.secret SET key_id = '00000000'
             WHERE endpoint_id = (SELECT id FROM outbox.endpoint WHERE name = 'sealed');
            UPDATE outbox.endpoint SET description = 'read it again'
            """)
        try await TestWorker.run(database) {
            // Whoever asks has no key at all.
            #expect(try await eventually { try await problems(database, "endpoint_unusable").count == 1 })
            let found = try await problems(database, "endpoint_unusable")
            #expect(found.first?.detail.contains("cannot call 1 endpoints, among them sealed") == true, "\(found)")
            try await database.script(
                """
                CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION USING errcode = '53100', message = 'no space left'; END $$;
                CREATE TRIGGER full_disk BEFORE INSERT ON outbox.attempt FOR EACH ROW EXECUTE FUNCTION full_disk()
                """)
            try await database.publish(1, type: "well")
            #expect(try await eventually { try await problems(database, "records_stand").count == 1 })
            try await database.script("DROP TRIGGER full_disk ON outbox.attempt")
            #expect(try await eventually { try await problems(database, "records_stand").isEmpty })
        }
        ledger.receiver.stop()
    }
}
