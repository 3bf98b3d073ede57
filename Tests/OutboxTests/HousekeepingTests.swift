import Foundation
import Outbox
import Postgres
import StandardWebhooks
import TestSupport
import Testing

@Suite(.timeLimit(.minutes(15))) struct HousekeepingTests {
    private func partitions(_ database: TestDatabase, _ parent: String) async throws -> Int {
        try await database.number(
            "SELECT count(*) FROM outbox.partitions WHERE parent = \(parent) AND lower IS NOT NULL")
    }

    /// An old partition with so many events in it, as if it had been made long ago.
    private func makeOld(_ database: TestDatabase, events: Int) async throws {
        try await database.script(
            """
            CREATE TABLE outbox.event_old PARTITION OF outbox.event FOR VALUES FROM ('2020-01-01') TO ('2020-01-02');
            INSERT INTO outbox.event (type, created_at) SELECT 'old', '2020-01-01 12:00' FROM generate_series(1, \(events))
            """)
    }

    @Test func `partitions are made ahead, by many at once, for days and for hours`() async throws {
        let database = try await TestCluster.database()
        #expect(try await partitions(database, "event") == 4)
        #expect(try await partitions(database, "attempt") == 4)
        try await database.script("UPDATE outbox.setting SET partition_unit = 'hour'")
        // The day's partitions cover the next hours already; nothing breaks, and nothing is made
        // twice.
        let pool = try database.newPool(size: 4)
        try await withThrowingTaskGroup(of: Void.self) { group in
            for _ in 0..<4 { group.addTask { _ = try await pool.run { $0.keepHouse() } } }
            try await group.waitForAll()
        }
        #expect(try await partitions(database, "event") >= 4)
        try await database.publish()
        await pool.close()
    }

    @Test func `what nobody prepared for lands in the DEFAULT partition, is cut, and is reported`() async throws {
        let database = try await TestCluster.database()
        try await database.script(
            "DO $$ DECLARE p text; BEGIN FOR p IN SELECT name FROM outbox.partitions WHERE parent = 'event' AND lower IS NOT NULL LOOP EXECUTE format('DROP TABLE outbox.%I', p); END LOOP; END $$"
        )
        try await database.publish(3)
        #expect(try await database.number("SELECT count(*) FROM outbox.event_default") == 3)
        #expect(try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) } == .events(3))
        #expect(
            try await database.column("SELECT problem FROM outbox.problems WHERE problem LIKE 'default%'") == [
                "default_partition_used"
            ])
        // While they are under way they stay where they are.
        #expect(try await database.pool.run { $0.keepHouse() }.failures.isEmpty)
        #expect(try await database.number("SELECT count(*) FROM outbox.event_default") == 3)
        try await database.script("DELETE FROM outbox.batch")
        // Then they move into a partition of their own, as they are.
        let before = try await database.column("SELECT e::text FROM outbox.event e ORDER BY id")
        let house = try await database.pool.run { $0.keepHouse() }
        #expect(house.failures.isEmpty)
        #expect(try await database.column("SELECT e::text FROM outbox.event e ORDER BY id") == before)
        try await database.publish()
        #expect(try await partitions(database, "event") == 4)
        #expect(try await database.number("SELECT count(*) FROM outbox.event_default") == 0)
        #expect(try await database.column("SELECT problem FROM outbox.problems WHERE problem LIKE 'default%'") == [])
        #expect(try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) } == .events(1))
    }

    @Test func `an open producer transaction neither fails the upkeep nor is stopped by it`() async throws {
        let database = try await TestCluster.database()
        try await database.script("UPDATE outbox.setting SET event_retention = '1 hour'")
        try await makeOld(database, events: 0)
        let producer = try database.newPool()
        try await producer.run { try $0.script("BEGIN; INSERT INTO outbox.event (type) VALUES ('open')") }
        let dropped = try await database.pool.run { $0.keepHouse().dropped }
        #expect(dropped == [] || dropped == ["event_old"])
        try await producer.run { try $0.script("INSERT INTO outbox.event (type) VALUES ('more'); COMMIT") }
        #expect(try await database.number("SELECT count(*) FROM outbox.event") == 2)
        await producer.close()
    }

    /// Old partitions with an event in each, of which nothing is needed any more.
    private func makeExpired(_ database: TestDatabase, _ days: ClosedRange<Int>) async throws {
        try await database.script(
            """
            UPDATE outbox.setting SET event_retention = '1 hour';
            DO $$ BEGIN
                FOR n IN \(days.lowerBound)..\(days.upperBound) LOOP
                    EXECUTE format('CREATE TABLE outbox.event_%s PARTITION OF outbox.event FOR VALUES FROM (%L) TO (%L)', n,
                                   '2020-01-01'::timestamptz + n * interval '1 day', '2020-01-01'::timestamptz + (n + 1) * interval '1 day');
                END LOOP;
            END $$;
            INSERT INTO outbox.event (type, created_at)
            SELECT 'old', '2020-01-01 12:00'::timestamptz + n * interval '1 day' FROM generate_series(\(days.lowerBound), \(days.upperBound)) n
            """)
        while try await database.pool.run({ try $0.cut(batchSize: 500, budget: 5000) }) != .events(0) {}
        try await database.script("DELETE FROM outbox.batch")
    }

    @Test func `several keep house at once, and none is in another's way`() async throws {
        let database = try await TestCluster.database()
        try await makeExpired(database, 1...30)
        let pools = try (0..<4).map { _ in try database.newPool() }
        let dropped = try await withThrowingTaskGroup(of: [String].self) { group in
            for pool in pools {
                group.addTask {
                    var dropped: [String] = []
                    for _ in 0..<8 { dropped += try await pool.run { $0.keepHouse().dropped } }
                    return dropped
                }
            }
            return try await group.reduce(into: []) { $0 += $1 }
        }
        let rest = try await database.pool.run { $0.keepHouse().dropped }
        #expect(Set(dropped + rest) == Set((1...30).map { "event_\($0)" }))
        #expect(dropped.count + rest.count == 30)
        for pool in pools { await pool.close() }
    }

    @Test func `however many are locked, the others go, and nobody waits for it`() async throws {
        let database = try await TestCluster.database()
        try await makeExpired(database, 1...60)
        let holder = try database.newPool()
        try await holder.run { connection in
            try connection.script("SET idle_in_transaction_session_timeout = 0; BEGIN")
            // The oldest ones: a wait for each of them, however short, would be the statement's
            // deadline.
            for n in 1...58 { try connection.script("LOCK TABLE outbox.event_\(n) IN ROW EXCLUSIVE MODE") }
        }
        // A wait for one lock would be an error here.
        try await database.pool.run { try $0.script("SET lock_timeout = '1ms'; SET statement_timeout = '5s'") }
        #expect(
            try await database.pool.run {
                try $0.query("SELECT outbox.empty_expired_partition()").one(String.self)
            } == "event_59")
        #expect(try await database.pool.run { $0.keepHouse().dropped } == ["event_59", "event_60"])
        try await holder.run { try $0.script("ROLLBACK") }
        #expect(try await database.pool.run { $0.keepHouse().dropped }.count == 58)
        await holder.close()
    }

    @Test func `a partition that somebody holds, or has made something of, keeps no other`() async throws {
        let database = try await TestCluster.database()
        try await database.script("UPDATE outbox.setting SET event_retention = '1 hour'")
        for day in 1...4 {
            try await database.script(
                "CREATE TABLE outbox.event_\(day) PARTITION OF outbox.event FOR VALUES FROM ('2020-01-0\(day)') TO ('2020-01-0\(day + 1)')"
            )
        }
        try await database.script(
            "INSERT INTO outbox.event (type, created_at) SELECT 'old', '2020-01-01 12:00'::timestamptz + n * interval '1 day' FROM generate_series(0, 3) n"
        )
        #expect(try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) } == .events(4))
        try await database.script("DELETE FROM outbox.batch")
        let holder = try database.newPool()
        try await database.script(
            "CREATE VIEW public.v AS SELECT id FROM outbox.event_1; CREATE TABLE public.t (e outbox.event_2)")
        try await holder.run { try $0.script("BEGIN; LOCK TABLE outbox.event_3 IN ACCESS SHARE MODE") }
        #expect(try await database.pool.run { $0.keepHouse().dropped } == ["event_4"])
        // What was to go is gone, but for what somebody has locked.
        #expect(try await database.column("SELECT tableoid::regclass::text FROM outbox.event") == ["outbox.event_3"])
        try await holder.run { try $0.script("COMMIT") }
        try await database.script("DROP VIEW public.v; DROP TABLE public.t")
        #expect(try await database.pool.run { $0.keepHouse().dropped } == ["event_1", "event_2", "event_3"])
        await holder.close()
    }

    @Test func `an expired partition is dropped only when nothing of it is outstanding`() async throws {
        let database = try await TestCluster.database()
        let id = try await database.endpoint("e", url: "https://example.com/").id
        try await makeOld(database, events: 1)
        let event = try await database.number("SELECT id FROM outbox.event WHERE type = 'old'")
        func dropped() async throws -> [String] { try await database.pool.run { $0.keepHouse().dropped } }
        // Not cut yet.
        #expect(try await dropped() == [])
        #expect(try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) } == .events(1))
        // In a batch.
        #expect(try await dropped() == [])
        try await database.script("DELETE FROM outbox.batch")
        // Waiting in a lane.
        try await database.script(
            "INSERT INTO outbox.delivery (event_id, endpoint_id, event_at, due_at, trigger) VALUES (\(event), '\(id)', '2020-01-01 12:00', now(), 'first')"
        )
        #expect(try await dropped() == [])
        // Among the dead letters.
        try await database.script(
            """
            DELETE FROM outbox.delivery;
            INSERT INTO outbox.dead_letter (event_id, endpoint_id, event_at, reason, attempts, fingerprint)
            VALUES (\(event), '\(id)', '2020-01-01 12:00', 'exhausted', 1, 'x')
            """)
        #expect(try await dropped() == [])
        try await database.script("DELETE FROM outbox.dead_letter")
        #expect(try await dropped() == ["event_old"])
        #expect(try await database.number("SELECT count(*) FROM outbox.event") == 0)
    }

    @Test func `an expired partition is not emptied of what is cut while it is looked at`() async throws {
        let database = try await TestCluster.database()
        try await database.script(
            """
            UPDATE outbox.setting SET event_retention = '1 hour';
            SELECT outbox.make_partition('event', 'event_old', '2020-01-01Z', '2020-01-02Z');
            INSERT INTO outbox.event (type, created_at) VALUES ('test', '2020-01-01 12:00Z');
            ALTER FUNCTION outbox.has_uncut(oid, timestamptz) RENAME TO has_uncut_really;
            CREATE FUNCTION outbox.has_uncut(partition oid, before timestamptz DEFAULT NULL) RETURNS boolean
            LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS
            $$ BEGIN PERFORM pg_advisory_xact_lock(77); RETURN outbox.has_uncut_really(partition, before); END $$
            """)
        let (gate, house) = (try database.newPool(), try database.newPool())
        try await gate.run { try $0.script("BEGIN; SELECT pg_advisory_xact_lock(77)") }
        let emptied = Task {
            try await house.run {
                try $0.query("SELECT outbox.empty_expired_partition()").one(String?.self)
            }
        }
        let isLooking = try await database.someoneWaitsForALock()
        #expect(isLooking)
        #expect(try await database.pool.run { try $0.cut(batchSize: 10, budget: 10) } == .events(1))
        try await gate.run { try $0.script("COMMIT") }
        let name: String? = try await emptied.value ?? nil
        #expect(name == nil)
        #expect(try await database.number("SELECT count(*) FROM outbox.event") == 1)
        await gate.close()
        await house.close()
    }

    @Test func `old cuts are forgotten`() async throws {
        let database = try await TestCluster.database()
        try await database.script(
            "INSERT INTO outbox.cut (done, turn, last_turn, first_turn, first_id) SELECT done, turn, last_turn, first_turn, first_id FROM outbox.cut, generate_series(1, 1500)"
        )
        _ = try await database.pool.run { $0.keepHouse() }
        #expect(try await database.number("SELECT count(*) FROM outbox.cut") == 1001)
    }
}

@Suite(.timeLimit(.minutes(15))) struct EndpointSecretTests {
    private func defects(_ database: TestDatabase, _ keyring: Keyring) async throws -> [String?] {
        try await database.pool.run { try $0.endpointNews(since: .nothing, keyring: keyring).endpoints.map(\.defect) }
    }

    @Test func `a secret is sealed at rest, opens after a key rotation, and not in another endpoint's row`()
        async throws
    {
        let database = try await TestCluster.database()
        let (old, new) = (Keyring.newKeyLine(), Keyring.newKeyLine())
        let secret = SigningSecret.generate()
        for name in ["one", "two"] {
            let keyring = try Keyring(text: old)
            try await database.pool.run {
                let configuration = EndpointConfiguration(name: name, url: "https://example.com/")
                _ = try $0.createEndpoint(configuration, secret: secret, keyring: keyring)
            }
        }
        // The database holds neither the secret nor the key.
        let bytes = try #require(Data(base64Encoded: String(secret.revealed.dropFirst(6))))
        let inClear = try await database.number(
            "SELECT count(*) FROM outbox.secret WHERE position(\(Bytes(Array(bytes))) IN sealed) > 0")
        #expect(inClear == 0)
        let rotated = try Keyring(text: "# newest first\n" + new + old)
        #expect(try await defects(database, rotated) == [nil, nil])
        let opened = try await database.pool.run {
            try $0.endpointNews(since: .nothing, keyring: rotated).endpoints.flatMap(\.signingSecrets).map(\.secret)
                .map(\.revealed)
        }
        #expect(opened == [secret.revealed, secret.revealed])
        // Without the old key they cannot be opened, and the reason names the key's id.
        let missing = try await defects(database, try Keyring(text: new))
        #expect(missing.allSatisfy { $0?.contains("OUTBOX_SECRET_KEY_FILE") == true })
        // Moved to the other endpoint, or changed by one bit, they do not open.
        try await database.script(
            "UPDATE outbox.secret SET endpoint_id = (SELECT id FROM outbox.endpoint n WHERE n.id <> secret.endpoint_id)"
        )
        #expect(try await defects(database, rotated).allSatisfy { $0?.contains("another endpoint") == true })
    }

    @Test func `a deletion that did not get to its end is finished by the workers`() async throws {
        let database = try await TestCluster.database()
        let id = try await database.endpoint("e", url: "https://example.com/").id
        try await database.publish(5000)
        try await database.script(
            """
            INSERT INTO outbox.delivery (event_id, endpoint_id, event_at, due_at, trigger)
            SELECT id, '\(id)', created_at, clock_timestamp(), 'first' FROM outbox.event;
            UPDATE outbox.endpoint SET deleted_at = clock_timestamp()
            """)
        _ = try await database.pool.run { $0.keepHouse() }
        #expect(try await database.number("SELECT count(*) FROM outbox.delivery") == 0)
        #expect(try await database.number("SELECT count(*) FROM outbox.dead_letter WHERE reason = 'cancelled'") == 5000)
    }

    @Test func `what becomes needed while a partition is looked at is not lost with it`() async throws {
        let database = try await TestCluster.database()
        let endpoint = try await database.endpoint("e", url: "https://example.com/").id
        try await database.script(
            """
            CREATE TABLE outbox.event_old PARTITION OF outbox.event FOR VALUES FROM ('2020-01-01') TO ('2020-01-02');
            INSERT INTO outbox.event (type, created_at) VALUES ('old', '2020-01-01 12:00')
            """)
        _ = try await database.pool.run { try $0.cut(batchSize: 10, budget: 10) }
        try await database.script("DELETE FROM outbox.batch")
        // Who looks has read everything, and waits for the last of it, when a delivery of the event
        // begins to wait.
        let holder = try database.newPool()
        try await holder.run { try $0.script("BEGIN; LOCK TABLE outbox.batch IN ACCESS EXCLUSIVE MODE") }
        let looking = Task { try await database.column("SELECT outbox.empty_expired_partition()") }
        let isWaiting = try await eventually {
            try await database.number(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'outbox.batch'::regclass") == 1
        }
        #expect(isWaiting)
        try await holder.run {
            try $0.script(
                """
                INSERT INTO outbox.delivery (event_id, endpoint_id, event_at, due_at, trigger)
                SELECT id, '\(endpoint)', created_at, clock_timestamp(), 'retry' FROM outbox.event_old;
                COMMIT
                """)
        }
        #expect(try await looking.value == [nil])
        #expect(try await database.number("SELECT count(*) FROM outbox.event_old") == 1)
        await holder.close()
    }

    @Test func `a change of the unit leaves no gap`() async throws {
        let database = try await TestCluster.database()
        for unit in ["hour", "day", "hour", "day"] {
            try await database.script("UPDATE outbox.setting SET partition_unit = '\(unit)'")
            _ = try await database.pool.run { $0.keepHouse() }
            let gaps = try await database.number(
                """
                SELECT count(*) FROM (SELECT lower, lag(upper) OVER (PARTITION BY parent ORDER BY lower) AS before FROM outbox.partitions
                                       WHERE lower IS NOT NULL) p WHERE before <> lower
                """)
            #expect(gaps == 0, "\(unit)")
        }
        // From hours to days when only hours are there.
        try await database.script(
            """
            DO $$ DECLARE p text; BEGIN FOR p IN SELECT name FROM outbox.partitions WHERE lower IS NOT NULL LOOP
                EXECUTE format('DROP TABLE outbox.%I', p); END LOOP; END $$;
            UPDATE outbox.setting SET partition_unit = 'hour'; SELECT outbox.make_partitions();
            UPDATE outbox.setting SET partition_unit = 'day'; SELECT outbox.make_partitions()
            """)
        let ahead = try await database.number(
            """
            SELECT count(*) FROM generate_series(now(), now() + interval '3 days', interval '1 hour') t
             WHERE NOT EXISTS (SELECT FROM outbox.partitions p WHERE p.parent = 'event' AND p.lower <= t AND p.upper > t)
            """)
        #expect(ahead == 0)
    }
}
