import Foundation
import Logging
import Outbox
import Postgres
import StandardWebhooks
import TestSupport
import Testing

@testable import Scheduler

/// What a worker knows of the endpoints, and what it reads to know it.
@Suite(.timeLimit(.minutes(15))) struct EndpointDirectoryTests {
    private func directory(_ database: TestDatabase) throws -> EndpointDirectory {
        EndpointDirectory(pool: database.pool, keyring: TestWorker.keyring, logger: Logger(label: "test"))
    }

    /// Asks as a claim does.
    private func refresh(_ directory: EndpointDirectory, _ database: TestDatabase) async throws
        -> EndpointDirectory.Snapshot
    {
        let hasNews = try await database.pool.run { [seen = directory.current.seen] in
            try $0.hasEndpointNews(since: seen)
        }
        return try await directory.refreshed(hasNews: hasNews)
    }

    @Test func `a lane that rests is read alone, and the endpoints stay as they were read`() async throws {
        let database = try await TestCluster.database()
        for number in 1...20 { try await database.endpoint("e\(number)", url: "https://example.com/") }
        let directory = try directory(database)
        let known = try await directory.read()
        let resting = try #require(known.byID.values.first)
        try await database.script(
            "UPDATE outbox.lane SET resting_until = 'infinity' WHERE endpoint_id = '\(resting.id)'")
        let fresh = try await refresh(directory, database)
        #expect(fresh.seen != known.seen)
        // The very same objects: neither read, decoded nor decrypted again.
        #expect(fresh.byID.allSatisfy { $0.value === known.byID[$0.key] })
        #expect(resting.state.restingUntil == .distantFuture)
        // With nothing new, nothing is read.
        #expect(try await refresh(directory, database).seen == fresh.seen)
        // Leases and due times are no news.
        try await database.script(
            "UPDATE outbox.lane SET due_at = clock_timestamp(), lease_until = clock_timestamp(), claims = 1")
        #expect(try await refresh(directory, database).seen == fresh.seen)
    }

    @Test func `of endpoints that change only those are read again, secrets included, and one that is deleted is gone`()
        async throws
    {
        let database = try await TestCluster.database()
        var made: [EndpointID] = []
        for number in 1...3 { made.append(try await database.endpoint("e\(number)", url: "https://example.com/").id) }
        let ids = made
        let directory = try directory(database)
        let known = try await directory.read()
        func same(_ snapshot: EndpointDirectory.Snapshot) -> [Bool] {
            ids.map { snapshot.byID[$0] != nil && snapshot.byID[$0] === known.byID[$0] }
        }
        try await database.script("UPDATE outbox.endpoint SET description = 'x' WHERE id = '\(ids[0])'")
        #expect(same(try await refresh(directory, database)) == [false, true, true])
        try await database.pool.run {
            try $0.rotateSecret(
                ids[1], to: .generate(), overlap: .seconds(60), keyring: TestWorker.keyring, reason: nil)
        }
        let rotated = try await refresh(directory, database)
        #expect(same(rotated) == [false, false, true] && rotated.byID[ids[1]]?.signingSecrets.count == 2)
        try await database.pool.run { try $0.deleteEndpoint(ids[2], reason: nil) }
        #expect(try await refresh(directory, database).byID[ids[2]] == nil)
        let added = try await database.endpoint("new", url: "https://example.com/").id
        #expect(try await refresh(directory, database).byID[added] != nil)
    }

    @Test(arguments: [
        "method = 'FETCH'", "format = 'binary'", "template = 'x', template_kind = 'yaml'",
        #"event_types = '[{"kind": "suffix", "text": "x"}]'"#, #"response_rules = '{"latency": 1}'"#,
    ])
    func `a value that this binary does not know closes its endpoint, and no other`(change: String) async throws {
        let database = try await TestCluster.database()
        let odd = try await database.endpoint("odd", url: "https://example.com/").id
        let other = try await database.endpoint("other", url: "https://example.com/").id
        // As a later version may have it.
        try await database.script(
            """
            DO $$ DECLARE c record; BEGIN
                FOR c IN SELECT conname FROM pg_constraint WHERE conrelid = 'outbox.endpoint'::regclass AND contype = 'c' LOOP
                    EXECUTE format('ALTER TABLE outbox.endpoint DROP CONSTRAINT %I', c.conname);
                END LOOP;
            END $$;
            UPDATE outbox.endpoint SET \(change) WHERE id = '\(odd)'
            """)
        let snapshot = try await directory(database).read()
        #expect(snapshot.byID[odd]?.defect?.contains("cannot be read") == true)
        #expect(snapshot.byID[odd]?.accepts(.laneOwner, at: .distantFuture) == false)
        #expect(snapshot.byID[other]?.defect == nil)
    }

    @Test(arguments: [
        ("DELETE FROM outbox.secret WHERE kind = 'credentials'", "credentials are missing"),
        (
            """
            UPDATE outbox.endpoint SET headers = jsonb_build_array(headers -> 1, headers -> 0)
            """, "credentials are missing"
        ),
        ("UPDATE outbox.endpoint SET headers = headers || headers", "credentials are missing"),
        ("DELETE FROM outbox.secret WHERE kind <> 'credentials'", "no secret to sign with"),
    ])
    func `an endpoint whose secrets are gone or another's is not called`(change: String, defect: String) async throws {
        let database = try await TestCluster.database()
        let other = try await database.endpoint("other", url: "https://example.com/").id
        // As a restore in part leaves it, or a hand.
        let id = try await database.endpoint("e", url: "https://example.com/") {
            $0.headers = [
                EndpointConfiguration.Header(name: "A", value: "1", isSecret: true),
                EndpointConfiguration.Header(name: "B", value: "2", isSecret: true),
            ]
        }.id
        let table = change.contains("outbox.secret") ? "AND endpoint_id = '\(id)'" : "WHERE id = '\(id)'"
        try await database.script("\(change) \(table)")
        let snapshot = try await directory(database).read()
        #expect(snapshot.byID[id]?.defect?.contains(defect) == true, "\(snapshot.byID[id]?.defect ?? "none")")
        #expect(snapshot.byID[id]?.accepts(.laneOwner, at: .distantFuture) == false)
        #expect(snapshot.byID[other]?.defect == nil)
    }

    @Test func `changes are seen in whatever order they commit, and nobody waits for another's`() async throws {
        let database = try await TestCluster.database()
        let one = try await database.endpoint("one", url: "https://example.com/").id
        let two = try await database.endpoint("two", url: "https://example.com/").id
        let directory = try directory(database)
        try await directory.read()
        let (first, second) = (try database.newPool(), try database.newPool())
        try await first.run { connection in
            try connection.script("BEGIN; UPDATE outbox.lane SET trips = 1 WHERE endpoint_id = '\(one)'")
            try connection.script("UPDATE outbox.endpoint SET description = 'late' WHERE id = '\(one)'")
        }
        // The later one commits first.
        try await second.run {
            try $0.script("SET lock_timeout = '50ms'; UPDATE outbox.endpoint SET description = 'x' WHERE id = '\(two)'")
        }
        try await second.run { try $0.script("UPDATE outbox.lane SET trips = 2 WHERE endpoint_id = '\(two)'") }
        let early = try await refresh(directory, database)
        #expect(early.byID[two]?.state.breaker.failing?.trips == 2)
        #expect(early.byID[one]?.state.breaker == .closed)
        #expect(try await refresh(directory, database).seen == early.seen)
        try await first.run { try $0.script("COMMIT") }
        let late = try await refresh(directory, database)
        #expect(late.byID[one]?.state.breaker.failing?.trips == 1)
        #expect(late.byID[one] !== early.byID[one])
        await first.close()
        await second.close()
    }

    /// Transaction ids that were never written are given out again by a server that has crashed and
    /// not been stopped.
    @Test(.heavy)
    func `after a crash of the server all is read, since what comes then may have the number of what was seen`()
        async throws
    {
        let server = try await TestServer.make(settings: ["wal_writer_delay=10s"])
        let database = try TestDatabase(connectionString: server.connectionString)
        try await database.pool.run { _ = try Migrator.migrate(&$0) }
        let id = try await database.endpoint("e", url: "https://example.com/").id
        let directory = try directory(database)
        try await database.script("CHECKPOINT")
        let victim = try database.newPool()
        let pid = try await victim.run { connection in
            for _ in 0..<200 { try connection.script("BEGIN; SELECT pg_current_xact_id(); ROLLBACK") }
            return try connection.query("SELECT pg_backend_pid()").first(Int.self)
        }
        let known = try await directory.read()
        let began = try await database.column("SELECT pg_postmaster_start_time()::text")
        kill(pid_t(try #require(pid)), SIGKILL)
        // What is connected is told to go away.
        let isBack = await eventually {
            do {
                return try await database.number(
                    "SELECT 1 FROM (SELECT count(*) AS n FROM outbox.boot) b WHERE b.n = 0") == 1
            } catch { return false }
        }
        #expect(isBack)
        try await database.script("UPDATE outbox.lane SET paused_until = 'infinity' WHERE endpoint_id = '\(id)'")
        #expect(try await database.column("SELECT pg_postmaster_start_time()::text") == began)
        let fresh = try await refresh(directory, database)
        #expect(fresh.byID[id] !== known.byID[id])
        #expect(fresh.byID[id]?.state.pause.until == .distantFuture)
        #expect(try await refresh(directory, database).seen == fresh.seen)
        await victim.close()
        await database.pool.close()
        try await server.stop()
    }

    @Test func `what a response said holds here until it is recorded, and then what the database says`() async throws {
        let database = try await TestCluster.database()
        let id = try await database.endpoint("e", url: "https://example.com/").id
        let directory = try directory(database)
        let endpoint = try #require(try await directory.read().byID[id])
        let now = Timestamp(microseconds: 1_800_000_000_000_000)
        let first = endpoint.known.say(.trip(atLeast: .zero), at: now)
        #expect(!endpoint.accepts(.laneOwner, at: now))
        #expect(try await refresh(directory, database).byID[id]?.state.breaker.failing != nil)
        // Neither a change of its lane nor of its settings undoes it, and both count.
        try await database.script("UPDATE outbox.lane SET paused_until = 'infinity'")
        #expect(try await refresh(directory, database).byID[id]?.state.breaker.failing != nil)
        try await database.script(
            "UPDATE outbox.endpoint SET description = 'x'; UPDATE outbox.lane SET paused_until = '-infinity', drain_rate = '1/1s'"
        )
        let changed = try #require(try await refresh(directory, database).byID[id])
        #expect(changed !== endpoint && changed.state.breaker.failing != nil && changed.state.pause.drainRate != nil)
        #expect(changed.state.pause.until == .distantPast)
        // What was said before is recorded, and not what was said since.
        let second = changed.known.say(.gone(reason: "410"), at: now)
        directory.recorded([id: first])
        #expect(try await refresh(directory, database).byID[id]?.state.isDisabled == true)
        // Recorded, or lost in a failover.
        directory.recorded([id: second])
        let fresh = try await refresh(directory, database).byID[id]
        #expect(fresh?.state.isDisabled == false && fresh?.state.breaker == .closed)
    }

    @Test func `an event finds its endpoints by customer and type`() async throws {
        let database = try await TestCluster.database()
        for customer in ["a", "b", "*"] {
            for type in ["x", "y", "*"] {
                try await database.endpoint(
                    "\(customer)\(type)".replacing("*", with: "any"), url: "https://example.com/"
                ) {
                    $0.customerID = customer
                    $0.eventTypes = [try EventPattern(type)]
                }
            }
        }
        let snapshot = try await directory(database).read()
        for (customer, type, expected) in [
            ("a", "x", ["aany", "ax", "anyany", "anyx"]), ("b", "y", ["bany", "by", "anyany", "anyy"]),
            ("c", "z", ["anyany"]), ("*", "x", ["anyany", "anyx"]),
        ] {
            try await database.script("INSERT INTO outbox.event (type, customer_id) VALUES ('\(type)', '\(customer)')")
            _ = try await database.pool.run { try $0.cut(batchSize: 10, budget: 10) }
            let claim = try await database.pool.run {
                try $0.claimBatch(lease: .random(), worker: "w", for: .seconds(60))
            }
            let event = try #require(claim.batch?.events.first)
            var names: [String] = []
            snapshot.forEach(wanting: event) { names.append($0.name) }
            #expect(names.sorted() == expected.sorted(), "\(customer) \(type)")
        }
    }
}
