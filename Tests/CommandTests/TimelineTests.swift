import EmbeddedPostgres
import Foundation
import Outbox
import Postgres
import Receiver
import Synchronization
import TestSupport
import Testing

/// The database goes back: to a standby that lacks the last commits, or to an older copy of its
/// files. What was lost was sent already, and its numbers are given out again.
@Suite(.serialized, .timeLimit(.minutes(15))) struct TimelineTests {
    enum Way: CaseIterable { case standbyPromoted, olderCopy }

    private static let endpoints = ["free", "paused", "limited", "ordered"]

    /// What receivers got: per endpoint and webhook-id, the bodies.
    private final class Got: Sendable {
        let bodies = Mutex<[String: [String: Set<String>]]>([:])

        func take(_ request: Receiver.Request) {
            let body = String(decoding: request.body, as: UTF8.self)
            let id = request["webhook-id"] ?? ""
            bodies.withLock { _ = $0[request.target, default: [:]][id, default: []].insert(body) }
        }

        func distinct(_ endpoint: String, _ kind: String) -> Int {
            bodies.withLock { bodies in
                Set((bodies["/" + endpoint] ?? [:]).values.flatMap { $0 }).count { $0.contains("\"\(kind)\"") }
            }
        }

        /// Ids that stood for two events.
        var shared: Int { bodies.withLock { $0.values.flatMap(\.values).count { $0.count > 1 } } }
    }

    private func publish(_ kind: String, _ count: Int, _ pool: ConnectionPool) async throws {
        try await pool.execute(
            """
            INSERT INTO outbox.event (type, ordering_key, after)
            SELECT 't', 'k' || n % 20, json_build_object('kind', \(kind), 'n', n) FROM generate_series(1, \(Int32(count))) n
            """)
    }

    @Test(arguments: Way.allCases)
    func `events that take the numbers of lost ones are all sent, under ids of their own`(
        way: Way
    ) async throws {
        let got = Got()
        let isSlow = Flag(true)
        let ledger = try Ledger { request, _ in
            got.take(request)
            return Receiver.Response(delay: isSlow.isSet ? .seconds(2) : .zero)
        }
        defer { ledger.receiver.stop() }
        let primary = try await TestServer.make()
        let key = try Daemon.keyFile()
        let database = try TestDatabase(connectionString: primary.connectionString)
        try await database.pool.run { _ = try Migrator.migrate(&$0) }
        for name in Self.endpoints {
            try await database.endpoint(name, url: ledger.url + "/" + name) { change in
                change.format = .raw
                change.timeout = .seconds(20)
                if name == "limited" { change.maxConcurrency = 16 }
                change.isOrdered = name == "ordered"
            }
        }
        try await database.pool.run {
            try $0.pauseEndpoint(try $0.endpointID("paused"), until: nil, reason: "a test")
        }
        let hosts = "host='\(primary.host)'"
        let copy: TestServer
        let worker: ChildProcess
        let connectionString: String
        switch way {
        case .standbyPromoted:
            copy = try await primary.standby()
            connectionString =
                "host='\(primary.host),\(copy.host)' user=outbox dbname=outbox target_session_attrs=read-write"
            worker = try await Daemon.start(connectionString, keyFile: key)
            #expect(await worker.waitUntilReady())
        case .olderCopy:
            connectionString = "\(hosts) user=outbox dbname=outbox"
            worker = try await Daemon.start(connectionString, keyFile: key, lease: "60s")
            #expect(await worker.waitUntilReady())
            // The copy has deliveries in a lane that is held, and that were made due one after the
            // other.
            try await publish("before", 60, database.pool)
            #expect(await eventually { got.distinct("limited", "before") >= 16 })
            copy = try await primary.standby()
            isSlow.isSet = false
            #expect(
                await eventually {
                    Self.endpoints.filter { $0 != "paused" }.allSatisfy { got.distinct($0, "before") == 60 }
                })
            isSlow.isSet = true
        }
        try await publish("lost", 400, database.pool)
        // In flight when the server dies, and answered after it.
        #expect(await eventually { got.distinct("free", "lost") >= 100 && got.distinct("limited", "lost") >= 10 })
        let lostIDs = try await database.pool.query(
            "SELECT id FROM outbox.event WHERE after ->> 'kind' = 'lost'", of: Int64.self)
        try await primary.kill()
        let server: TestServer
        switch way {
        case .standbyPromoted:
            server = copy
            try await server.startAndPromote()
        case .olderCopy:
            server = primary
            try await server.restore(copy)
            try await server.start()
        }
        let after = try TestDatabase(connectionString: server.connectionString)
        // The worker records what it was answered for events that are not here.
        #expect(
            try await eventually {
                try await after.number(
                    "SELECT count(*) FROM outbox.attempt a WHERE NOT EXISTS (SELECT FROM outbox.event e WHERE (e.id, e.created_at) = (a.event_id, a.event_at))"
                ) >= 100
            })
        try await publish("new", 400, after.pool)
        let newIDs = try await after.pool.query(
            "SELECT id FROM outbox.event WHERE after ->> 'kind' = 'new'", of: Int64.self)
        #expect(Set(newIDs).intersection(lostIDs).count > 300, "the numbers do not come again: this test shows nothing")

        // One ordinary crash: whoever takes over must not take the ghosts' attempts for those of
        // the new events.
        #expect(await eventually { got.distinct("free", "new") >= 50 })
        worker.signal(SIGKILL)
        #expect(await worker.wait() == .signal(SIGKILL))
        isSlow.isSet = false
        try await after.pool.run { try $0.resumeEndpoint(try $0.endpointID("paused")) }
        // Long leases of the killed worker end; this is not what is tested.
        try await after.script(
            "UPDATE outbox.batch SET lease_until = '-infinity'; UPDATE outbox.lane SET lease_until = '-infinity'")
        let second = try await Daemon.start(connectionString, keyFile: key)
        #expect(await second.waitUntilReady())
        for name in Self.endpoints {
            #expect(await eventually { got.distinct(name, "new") == 400 }, "\(name)")
        }
        #expect(try await eventually { try await after.isDrained() })
        #expect(got.shared == 0)
        // Only events of this database count as delivered.
        let here = try await after.number("SELECT count(*) FROM outbox.event")
        #expect(try await after.number("SELECT count(*) FROM outbox.deliveries WHERE state = 'delivered'") == here * 4)
        let doctor = try await ChildProcess.run(["doctor"], environment: ["DATABASE_URL": server.connectionString])
        #expect(doctor.output.contains("ghosts"), "\(doctor.output)")
        #expect(!doctor.output.contains("limbo"), "\(doctor.output)")
        if way == .standbyPromoted {
            #expect(doctor.output.contains("timeline_changed"), "\(doctor.output)")
            #expect(
                try await after.column("SELECT timeline::text FROM outbox.timeline ORDER BY timeline") == ["1", "2"])
        }
        second.signal(SIGTERM)
        #expect(await second.wait() == .exit(0))
        await after.pool.close()
        await database.pool.close()
        try await server.kill()
    }

    /// The claim of a batch was replicated, and what became of some of its events was not: the same
    /// lease is good on both servers.
    @Test(.heavy) func `a batch is not finished on a server that lacks what was recorded of it`() async throws {
        // Nobody answers before the standby is cut off, however busy the machine is.
        let isCutOff = Flag(false)
        let ledger = try Ledger { request, _ in
            if request.target == "/slow" { return Receiver.Response(delay: .seconds(6)) }
            while !isCutOff.isSet { usleep(10_000) }
            return Receiver.Response(request.target == "/bad" ? 500 : 413)
        }
        defer { ledger.receiver.stop() }
        let primary = try await TestServer.make()
        let database = try TestDatabase(connectionString: primary.connectionString)
        try await database.pool.run { _ = try Migrator.migrate(&$0) }
        for name in ["bad", "refused", "slow"] {
            try await database.endpoint(
                name, url: ledger.url + "/" + name, retries: Array(repeating: .seconds(3600), count: 5)
            ) {
                $0.timeout = .seconds(30)
            }
        }
        let standby = try await primary.standby()
        try await standby.start()
        let replica = try TestDatabase(connectionString: standby.connectionString)
        let worker = try await Daemon.start(
            "host='\(primary.host),\(standby.host)' user=outbox dbname=outbox target_session_attrs=read-write",
            keyFile: try Daemon.keyFile(), lease: "40s")
        #expect(await worker.waitUntilReady())
        // As many as the first cut of a worker takes: one batch.
        try await database.publish(16)
        // Claimed here and there; from now on the standby gets nothing.
        #expect(
            try await eventually { try await replica.number("SELECT count(*) FROM outbox.batch WHERE claims = 1") == 1 }
        )
        try await replica.script("ALTER SYSTEM SET primary_conninfo = ''")
        try await replica.script("SELECT pg_reload_conf()")
        #expect(
            try await eventually { try await replica.number("SELECT count(*) FROM pg_stat_wal_receiver") == 0 })
        isCutOff.isSet = true
        #expect(
            try await eventually {
                try await database.number(
                    "SELECT (SELECT count(*) FROM outbox.delivery) + (SELECT count(*) FROM outbox.dead_letter)") == 32
            })
        #expect(
            try await replica.number("SELECT count(*) FROM outbox.delivery") == 0,
            "it was replicated: this test shows nothing")
        try await primary.kill()
        try await standby.promote()
        // The slow ones end under the lease that both have; then somebody claims the batch and asks
        // what is true here.
        #expect(try await eventually { try await replica.deliveries("delivered") == 16 })
        try await replica.script("UPDATE outbox.batch SET lease_until = '-infinity'")
        let isSentAgain = try await eventually(within: .seconds(30)) { try await replica.deliveries("waiting") == 16 }
        let states = try await replica.column(
            "SELECT concat_ws(' ', endpoint, state, count(*)) FROM outbox.deliveries GROUP BY endpoint, state")
        let rows = try await replica.column("SELECT b::text FROM outbox.batch b")
        #expect(isSentAgain, "\(states) \(rows) \(worker.errors.suffix(1500))")
        #expect(try await replica.deliveries("dead") == 16)
        #expect(try await replica.number("SELECT count(*) FROM outbox.batch") == 0)
        worker.signal(SIGTERM)
        #expect(await worker.wait() == .exit(0))
        for pool in [database.pool, replica.pool] { await pool.close() }
        try await standby.kill()
    }

    @Test(.heavy) func `a worker is not ready on a standby, and is when that is promoted`() async throws {
        let ledger = try Ledger()
        defer { ledger.receiver.stop() }
        let primary = try await TestServer.make()
        let database = try TestDatabase(connectionString: primary.connectionString)
        try await database.pool.run { _ = try Migrator.migrate(&$0) }
        try await database.endpoint("e", url: ledger.url)
        let standby = try await primary.standby()
        try await standby.start()
        let worker = try await Daemon.start(standby.connectionString, keyFile: try Daemon.keyFile(), lease: "5s")
        #expect(await eventually { worker.errors.contains("is a standby") })
        #expect(!worker.output.contains("outbox: ready"))
        await database.pool.close()
        try await primary.kill()
        try await standby.promote()
        #expect(await worker.waitUntilReady())
        let promoted = try TestDatabase(connectionString: standby.connectionString)
        try await promoted.publish(3)
        #expect(await eventually { ledger.counts.count == 3 })
        worker.signal(SIGTERM)
        #expect(await worker.wait() == .exit(0))
        await promoted.pool.close()
        try await standby.kill()
    }

    /// The worker lives on: what it remembers of the place where it was in a lane, in the queue of
    /// batches and of the endpoints is of another server.
    @Test func `a worker that lives through a restore forgets where it was`() async throws {
        let got = Got()
        let ledger = try Ledger { request, _ in
            got.take(request)
            return Receiver.Response()
        }
        defer { ledger.receiver.stop() }
        let server = try await TestServer.make()
        let database = try TestDatabase(connectionString: server.connectionString)
        try await database.pool.run { _ = try Migrator.migrate(&$0) }
        for name in ["free", "limited"] {
            try await database.endpoint(name, url: ledger.url + "/" + name) { change in
                change.format = .raw
                if name == "limited" { change.maxConcurrency = 4 }
            }
        }
        let worker = try await Daemon.start(server.connectionString, keyFile: try Daemon.keyFile(), lease: "5s")
        #expect(await worker.waitUntilReady())
        try await publish("before", 10, database.pool)
        #expect(await eventually { got.distinct("limited", "before") == 10 && got.distinct("free", "before") == 10 })
        let copy = try await server.standby()
        // Its numbers of batches and of generations go far ahead of the copy's.
        for round in 1...30 {
            try await publish("lost", 1, database.pool)
            #expect(await eventually { ledger.all.count >= 20 + round * 2 })
        }
        try await database.pool.run { connection in
            for _ in 0..<5 {
                try connection.pauseEndpoint(try connection.endpointID("free"), until: nil, reason: "lost")
            }
        }
        await database.pool.close()
        try await server.kill()
        try await server.restore(copy)
        try await server.start()
        let after = try TestDatabase(connectionString: server.connectionString)
        // The pause was lost. One batch an event, so that they are those that lie before where the
        // worker was.
        for _ in 0..<10 { try await publish("new", 1, after.pool) }
        #expect(await eventually { got.distinct("free", "new") >= 1 && got.distinct("limited", "new") >= 1 })
        #expect(try await eventually { try await after.isDrained() })
        #expect(got.shared == 0)
        worker.signal(SIGTERM)
        #expect(await worker.wait() == .exit(0))
        await after.pool.close()
        try await server.kill()
    }
}
