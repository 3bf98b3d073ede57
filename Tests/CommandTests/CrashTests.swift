import EmbeddedPostgres
import Foundation
import Outbox
import Postgres
import Receiver
import Scheduler
import TestSupport
import Testing

/// Worker processes that are killed, stopped and cut off; the total-queue checker says what became
/// of every event.
@Suite(.timeLimit(.minutes(15))) struct CrashTests {
    /// Nothing lost, nothing unexpected; returns the duplicates.
    private func check(_ published: [Int64], _ ledger: Ledger, _ database: TestDatabase) async throws -> Int {
        let counts = ledger.counts
        let lost = Set(published).subtracting(counts.keys)
        let unexpected = Set(counts.keys).subtracting(published)
        #expect(lost.isEmpty, "lost")
        #expect(unexpected.isEmpty, "unexpected")
        #expect(try await database.deliveries("delivered") == published.count)
        #expect(try await database.isDrained())
        #expect(
            try await database.column("SELECT problem || detail FROM outbox.problems WHERE problem <> 'no_worker'")
                == [])
        return counts.values.reduce(0) { $0 + $1 - 1 }
    }

    /// (fail point, whether anything was sent before): duplicates are at most what the killed
    /// process had sent.
    @Test(
        .heavy,
        arguments: [
            ("claim.before=kill", false), ("claim.after=kill", false), ("send.before=kill", false),
            ("send.before@20=kill", true), ("send.after=kill", true), ("send.after@20=kill", true),
            ("record.before=kill", true), ("record.after=kill", true),
        ])
    func `a worker killed between claim and record loses nothing`(failPoint: String, hasSent: Bool) async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        let inFlight = 8
        try await database.endpoint("e", url: ledger.url) { $0.maxInFlight = inFlight }
        let key = try Daemon.keyFile()
        let published = try await database.publish(400)
        let first = try await Daemon.start(database.connectionString, keyFile: key, failPoint: failPoint)
        #expect(await first.wait() == .signal(SIGKILL))
        // What was in flight may still arrive.
        let sent = ledger.all.count
        #expect(sent < 200)
        let second = try await Daemon.start(database.connectionString, keyFile: key)
        #expect(await second.waitUntilReady())
        #expect(try await eventually { try await database.isDrained() })
        second.signal(SIGTERM)
        #expect(await second.wait() == .exit(0))
        let duplicates = try await check(published, ledger, database)
        #expect(duplicates <= (hasSent ? sent + inFlight : 0))
        // I6: a request without an attempt row is one that the killed process had made.
        let attempts = try await database.number("SELECT count(*) FROM outbox.attempt")
        #expect(attempts == ledger.all.count - duplicates)
        ledger.receiver.stop()
    }

    @Test func `kill -9 in the middle of 10,000 events loses none`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        try await database.endpoint("e", url: ledger.url) { $0.maxInFlight = 64 }
        let key = try Daemon.keyFile()
        let published = try await database.publish(10_000)
        // I7: what was in flight at each kill, or answered and not recorded yet: one group commit
        // under way, and the one that gathers meanwhile.
        let most = 64 + 2 * 1000
        var duplicatesBefore = 0
        for target in [1000, 3000, 6000] {
            let worker = try await Daemon.start(database.connectionString, keyFile: key)
            #expect(await eventually { ledger.all.count >= target })
            worker.signal(SIGKILL)
            #expect(await worker.wait() == .signal(SIGKILL))
            let duplicates = ledger.all.count - ledger.counts.count
            #expect(duplicates - duplicatesBefore <= most)
            duplicatesBefore = duplicates
        }
        let last = try await Daemon.start(database.connectionString, keyFile: key)
        #expect(await last.waitUntilReady())
        #expect(try await eventually(within: .seconds(120)) { try await database.isDrained() })
        last.signal(SIGTERM)
        #expect(await last.wait() == .exit(0))
        let duplicates = try await check(published, ledger, database)
        #expect(duplicates - duplicatesBefore <= most)
        ledger.receiver.stop()
    }

    @Test(.heavy) func `order holds while workers are killed, and nothing is lost`() async throws {
        let database = try await TestCluster.database()
        let lines = Lines()
        let ledger = try Ledger { request, _ in
            lines.take(request) { key, _, before in
                Receiver.Response((key.hashValue &+ before).isMultiple(of: 11) ? 500 : 200)
            }
        }
        try await database.endpoint("e", url: ledger.url, retries: Array(repeating: .milliseconds(20), count: 30)) {
            $0.isOrdered = true
            $0.format = .raw
        }
        let key = try Daemon.keyFile()
        let (keys, rounds) = (30, 40)
        var workers = [try await Daemon.start(database.connectionString, keyFile: key)]
        async let published: Void = database.publishLines(keys: keys, rounds: rounds)
        for target in [100, 400, 700] {
            // The lane's owner is one of the two; the other takes over when it was that one.
            workers.append(try await Daemon.start(database.connectionString, keyFile: key))
            #expect(await eventually { lines.delivered >= target })
            let victim = workers.removeFirst()
            victim.signal(SIGKILL)
            #expect(await victim.wait() == .signal(SIGKILL))
        }
        try await published
        #expect(await eventually { lines.delivered == keys * rounds })
        #expect(try await eventually { try await database.isDrained() })
        for worker in workers {
            // Before, a signal ends it at once.
            #expect(await worker.waitUntilReady())
            worker.signal(SIGTERM)
            let end = await worker.wait()
            #expect(end == .exit(0), "\(worker.errors)")
        }
        #expect(lines.wrong == [])
        _ = try await check((1...Int64(keys * rounds)).map { $0 }, ledger, database)
        ledger.receiver.stop()
    }

    @Test func `a stopped worker that wakes after its lease writes no state, and its attempts are kept`() async throws {
        let database = try await TestCluster.database()
        // What the first worker gets is a failure; whoever takes over is answered 200.
        let isTakenOver = Flag(false)
        let ledger = try Ledger { _, _ in Receiver.Response(isTakenOver.isSet ? 200 : 500) }
        try await database.endpoint("e", url: ledger.url, retries: [.seconds(3600)])
        let key = try Daemon.keyFile()
        let published = try await database.publish(10)
        let sleeper = try await Daemon.start(database.connectionString, keyFile: key, failPoint: "record.before=stop")
        #expect(await eventually { sleeper.isStopped })
        isTakenOver.isSet = true
        let other = try await Daemon.start(database.connectionString, keyFile: key)
        #expect(try await eventually { try await database.deliveries("delivered") == 10 })
        sleeper.signal(SIGCONT)
        #expect(
            try await eventually {
                try await database.number("SELECT count(*) FROM outbox.attempt WHERE outcome = 'failure'") > 0
            })
        for worker in [sleeper, other] {
            #expect(await worker.waitUntilReady())
            worker.signal(SIGTERM)
            #expect(await worker.wait() == .exit(0))
        }
        // The failures are in the log, and moved nothing: no delivery waits an hour for a retry.
        #expect(try await check(published, ledger, database) == ledger.all.count - 10)
        #expect(try await database.number("SELECT count(*) FROM outbox.delivery") == 0)
        #expect(try await database.number("SELECT count(DISTINCT worker) FROM outbox.attempt") == 2)
        // I4: every request has its attempt. (A connection that timed out over the stop has one
        // without a request.)
        #expect(try await database.number("SELECT count(*) FROM outbox.attempt") >= ledger.all.count)
        ledger.receiver.stop()
    }

    @Test func `a late success of a worker that lost its lease clears what its successor left waiting`() async throws {
        let database = try await TestCluster.database()
        let isTakenOver = Flag(false)
        let ledger = try Ledger { _, _ in Receiver.Response(isTakenOver.isSet ? 500 : 200) }
        try await database.endpoint("e", url: ledger.url, retries: [.seconds(3600), .seconds(3600), .seconds(3600)]) {
            // What was answered before the stop must not time out over it.
            $0.timeout = .seconds(60)
        }
        let key = try Daemon.keyFile()
        let published = try await database.publish(1)
        let sleeper = try await Daemon.start(database.connectionString, keyFile: key, failPoint: "record.before=stop")
        #expect(await eventually { sleeper.isStopped && ledger.all.count == 1 })
        isTakenOver.isSet = true
        let other = try await Daemon.start(database.connectionString, keyFile: key)
        #expect(try await eventually { try await database.deliveries("waiting") == 1 }, "\(other.errors)")
        sleeper.signal(SIGCONT)
        // I5: a recorded 2xx resolves the delivery, whoever recorded it.
        #expect(try await eventually { try await database.deliveries("delivered") == 1 })
        for worker in [sleeper, other] {
            #expect(await worker.waitUntilReady())
            worker.signal(SIGTERM)
            #expect(await worker.wait() == .exit(0))
        }
        #expect(try await check(published, ledger, database) == ledger.all.count - 1)
        ledger.receiver.stop()
    }

    @Test func `a payload that kills its worker ends as a dead letter and takes nobody along`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        try await database.endpoint(
            "e", url: ledger.url,
            retries: [
                .milliseconds(100), .milliseconds(100), .milliseconds(100), .milliseconds(100), .milliseconds(100),
            ])
        let key = try Daemon.keyFile()
        let before = try await database.publish(5)
        let poison = try await database.publish(1, type: "poison")
        let after = try await database.publish(5)
        var deaths = 0
        while try await database.deliveries("dead") == 0, deaths < 12 {
            let worker = try await Daemon.start(
                database.connectionString, keyFile: key, failPoint: "send.before/poison=kill", lease: "1s")
            let isDone = try await eventually {
                if try await database.deliveries("dead") == 1 { return true }
                return kill(worker.pid, 0) != 0
            }
            #expect(isDone)
            worker.signal(SIGTERM)
            if await worker.wait() == .signal(SIGKILL) { deaths += 1 }
        }
        #expect(
            try await database.column("SELECT event_id || ' ' || reason FROM outbox.dead_letter") == [
                "\(poison[0]) worker_crashed"
            ])
        #expect(Set(ledger.eventIDs) == Set(before + after))
        #expect(try await database.deliveries("delivered") == 10)
        #expect(try await database.isDrained())
        ledger.receiver.stop()
    }

    @Test func `SIGTERM with slow requests in flight lets them end, records and exits 0`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { _, _ in Receiver.Response(delay: .milliseconds(600)) }
        try await database.endpoint("e", url: ledger.url) { $0.maxInFlight = 8 }
        let key = try Daemon.keyFile()
        let published = try await database.publish(8)
        let worker = try await Daemon.start(database.connectionString, keyFile: key)
        #expect(await eventually { ledger.all.count == 8 })
        #expect(await worker.waitUntilReady())
        worker.signal(SIGTERM)
        #expect(await worker.wait() == .exit(0))
        #expect(try await check(published, ledger, database) == 0)
        ledger.receiver.stop()
    }

    @Test func `a statement of a worker that is killed ends on the server, however long it would take`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        try await database.endpoint("e", url: ledger.url) {
            $0.filter = #"$.after.t like_regex "^(.*)(.*)(.*)(.*)\\2\\1$""#
        }
        let worker = try await Daemon.start(database.connectionString, keyFile: try Daemon.keyFile())
        #expect(await worker.waitUntilReady())
        try await database.script(
            "SELECT outbox.publish('t', json_build_object('t', repeat('a', 4000) || '!')) FROM generate_series(1, 20)")
        @Sendable func asking() async throws -> Int {
            try await database.number(
                """
                SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'
                   AND query LIKE '%ask_filters%' AND pid <> pg_backend_pid()
                """)
        }
        // Stopped in the middle of one, so that nobody cancels it.
        #expect(
            try await eventually {
                worker.signal(SIGSTOP)
                if try await asking() > 0 { return true }
                worker.signal(SIGCONT)
                return false
            })
        worker.signal(SIGKILL)
        #expect(await worker.wait() == .signal(SIGKILL))
        #expect(try await eventually { try await asking() == 0 })
        ledger.receiver.stop()
    }

    @Test func `two SIGTERMs at a time are one, and a later one ends the process at once`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { _, _ in Receiver.Response(manner: .silence) }
        try await database.endpoint("e", url: ledger.url) { $0.timeout = .seconds(300) }
        try await database.publish()
        let worker = try await Daemon.start(database.connectionString, keyFile: try Daemon.keyFile(), grace: "1h")
        #expect(await eventually { ledger.all.count == 1 })
        #expect(await worker.waitUntilReady())
        worker.signal(SIGHUP)
        worker.signal(SIGTERM)
        worker.signal(SIGTERM)
        #expect(try await eventually { try await database.number("SELECT count(*) FROM outbox.worker") == 0 })
        // From a second after the first.
        let end = Task { await worker.wait() }
        let isOver = Flag(false)
        Task {
            _ = await end.value
            isOver.isSet = true
        }
        #expect(
            await eventually {
                worker.signal(SIGTERM)
                return isOver.isSet
            })
        #expect(await end.value == .exit(143))
        ledger.receiver.stop()
    }

    @Test func `two SIGTERMs at a time let the process end well`() async throws {
        let database = try await TestCluster.database()
        let worker = try await Daemon.start(database.connectionString, keyFile: try Daemon.keyFile())
        #expect(await worker.waitUntilReady())
        for _ in 0..<2 { worker.signal(SIGTERM) }
        #expect(await worker.wait() == .exit(0))
    }

    @Test func `a worker that is started first waits for its database`() async throws {
        let server = try await TestServer.make()
        try await server.stop()
        var environment = ["OUTBOX_SECRET_KEY_FILE": try Daemon.keyFile(), "DATABASE_URL": server.connectionString]
        let worker = try ChildProcess(ChildProcess.outboxctl, ["run", "--migrate"], environment: environment)
        #expect(await eventually { worker.errors.contains("the database is not there yet") })
        try await server.start()
        #expect(await worker.waitUntilReady())
        worker.signal(SIGTERM)
        #expect(await worker.wait() == .exit(0))
        // Asked to end while it waits, it does.
        try await server.stop()
        environment["DATABASE_URL"] = server.connectionString
        let second = try ChildProcess(ChildProcess.outboxctl, ["run"], environment: environment)
        #expect(await eventually { second.errors.contains("the database is not there yet") })
        second.signal(SIGTERM)
        #expect(await second.wait() == .exit(0))
    }

    @Test func `of several databases, one that is away holds up no other`() async throws {
        let setting = try await Setting()
        let away = try await TestServer.make()
        try await away.stop()
        let ledger = try Ledger { _, _ in Receiver.Response() }
        try await setting.database.endpoint("e", url: ledger.url)
        try await setting.database.publish(3)
        var environment = setting.environment
        environment["DATABASE_URL"] = nil
        environment["OUTBOX_DATABASES"] = "\(away.connectionString),\(setting.database.connectionString)"
        let worker = try ChildProcess(ChildProcess.outboxctl, ["run", "--migrate"], environment: environment)
        #expect(try await eventually { try await setting.database.deliveries("delivered") == 3 })
        #expect(await eventually { worker.errors.contains("the database is not there yet") })
        #expect(!worker.output.contains("outbox: ready"))
        try await away.start()
        #expect(await worker.waitUntilReady())
        worker.signal(SIGTERM)
        #expect(await worker.wait() == .exit(0))
        try await away.stop()
        ledger.receiver.stop()
    }

    /// The limit counts all threads of a user, and root has none.
    @Test(.enabled(if: getuid() == 0)) func `a process that gets no more threads says so, and what to do`() async throws
    {
        let setting = try await Setting()
        let socket = try #require(setting.database.connectionString.split(separator: "'").dropFirst().first)
        let name = try #require(setting.database.connectionString.split(separator: "=").last)
        let proxy = try CuttingProxy(socketPath: "\(socket)/.s.PGSQL.5432", plan: [])
        let environment = [
            "DATABASE_URL":
                "host=127.0.0.1 port=\(proxy.port) user=outbox dbname=\(name) sslmode=disable gssencmode=disable"
        ]
        let child = try ChildProcess(
            "/usr/bin/setpriv",
            [
                "--reuid=54321", "--clear-groups", "/bin/bash", "-c", "ulimit -u 9; exec \"$0\" run",
                ChildProcess.outboxctl,
            ],
            environment: environment)
        #expect(await child.wait() == .exit(69))
        #expect(child.errors.contains("no more threads") && child.errors.contains("ulimit -u"), "\(child.errors)")
        proxy.stop()
    }

    @Test(.heavy) func `a standby that does not answer: commits are waited for, and nothing is written twice`()
        async throws
    {
        let server = try await TestServer.make()
        let pool = try ConnectionPool(try ConnectionTarget(server.connectionString), size: 1)
        try await pool.run { _ = try Migrator.migrate(&$0) }
        let database = try TestDatabase(connectionString: server.connectionString)
        // The first attempt of some fails: the record is a transaction, whose commit is never
        // cancelled.
        let mayAnswer = Flag(false)
        let ledger = try Ledger { request, _ in
            guard request["outbox-attempt"]?.hasPrefix("1/") == true else { return Receiver.Response() }
            while !mayAnswer.isSet { usleep(10_000) }
            return Receiver.Response(request["webhook-id"]?.hasSuffix("3") == true ? 500 : 200)
        }
        try await database.endpoint("e", url: ledger.url, retries: Array(repeating: .milliseconds(50), count: 5)) {
            $0.timeout = .seconds(60)
        }
        // No lease ends meanwhile: the record holds the rows that would be renewed.
        let worker = try await Daemon.start(database.connectionString, keyFile: try Daemon.keyFile(), lease: "120s")
        #expect(await worker.waitUntilReady())
        try await pool.run { try $0.query("SELECT outbox.publish('t') FROM generate_series(1, 25)") }
        #expect(await eventually { ledger.all.count == 25 })
        try await pool.run { try $0.script("SET synchronous_commit = local") }
        try await pool.run { try $0.query("ALTER SYSTEM SET synchronous_standby_names = 'nobody'") }
        try await pool.run { try $0.query("SELECT pg_reload_conf()") }
        mayAnswer.isSet = true
        @Sendable func waiting() async throws -> Int {
            try await database.number(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name LIKE '%/record'"
            )
        }
        #expect(try await eventually { try await waiting() == 1 })
        // Longer than the deadline of a statement.
        for _ in 0..<12 {
            #expect(try await waiting() == 1)
            try await Task.sleep(for: .seconds(1))
        }
        try await pool.run { try $0.query("ALTER SYSTEM RESET synchronous_standby_names") }
        try await pool.run { try $0.query("SELECT pg_reload_conf()") }
        #expect(try await eventually { try await database.deliveries("delivered") == 25 })
        #expect(try await database.number("SELECT count(*) FROM outbox.attempt WHERE number = 1") == 25)
        #expect(try await database.number("SELECT count(*) FROM outbox.attempt") == ledger.all.count)
        worker.signal(SIGTERM)
        #expect(await worker.wait() == .exit(0))
        await pool.close()
        await database.pool.close()
        try await server.stop()
        ledger.receiver.stop()
    }

    @Test(.heavy) func `with few descriptors everything is delivered and recorded`() async throws {
        let setting = try await Setting(["OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8,::1/128"])
        let database = setting.database
        let ledger = try Ledger { _, _ in Receiver.Response(delay: .milliseconds(50)) }
        // Each name is a connection of its own, which would be kept.
        for number in 1...150 {
            let url = ledger.url.replacing("127.0.0.1", with: "n\(number).localhost")
            try await database.endpoint(
                "e\(number)", url: url, retries: Array(repeating: .milliseconds(200), count: 50))
        }
        let child = try ChildProcess(
            "/bin/sh", ["-c", "ulimit -n 256; exec \"$0\" run", ChildProcess.outboxctl],
            environment: setting.environment)
        #expect(await child.waitUntilReady())
        for _ in 0..<3 { try await database.publish(2) }
        #expect(try await eventually(within: .seconds(60)) { try await database.deliveries("delivered") == 900 })
        #expect(child.errors.contains("fewer requests are in flight"))
        child.signal(SIGTERM)
        #expect(await child.wait() == .exit(0), "\(child.errors.suffix(500))")
        ledger.receiver.stop()
    }

    @Test(arguments: ["2>/dev/full", "2>&-", "2>&1 >/dev/full", "<&- >&- 2>&-"])
    func `an error that cannot be told ends the command all the same`(redirection: String) async throws {
        let setting = try await Setting()
        let child = try ChildProcess(
            "/bin/sh", ["-c", "\"$0\" endpoint get nosuch \(redirection)", ChildProcess.outboxctl],
            environment: setting.environment)
        #expect(await child.wait() == .exit(4))
    }

    @Test(.heavy) func `a log that nobody reads holds up no delivery`() async throws {
        let setting = try await Setting(["OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8", "OUTBOX_LOG_LEVEL": "debug"])
        let ledger = try Ledger()
        try await setting.database.endpoint("e", url: ledger.url)
        // Somebody has the pipe open, and never reads.
        let fifo = TestFolder.path("fifo")
        #expect(mkfifo(fifo, 0o600) == 0)
        let reader = open(fifo, O_RDWR)
        let worker = try ChildProcess(
            "/bin/sh", ["-c", "exec \"$0\" run 2>\"$1\"", ChildProcess.outboxctl, fifo],
            environment: setting.environment)
        #expect(await worker.waitUntilReady())
        for _ in 0..<20 { try await setting.database.publish(100) }
        #expect(await eventually { ledger.counts.count == 2000 })
        worker.signal(SIGTERM)
        #expect(await worker.wait() == .exit(0))
        close(reader)
        ledger.receiver.stop()
    }

    @Test(.heavy) func `PostgreSQL killed and restarted under load: every committed event arrives`() async throws {
        let folder = TestFolder.path("crash")
        let cluster = try await EmbeddedCluster(folder: folder)
        // One connection: the wait for the server below then renews the very connection that
        // publishes next.
        let database = try TestDatabase(connectionString: cluster.connectionString, connections: 1)
        try await database.pool.run { _ = try Migrator.migrate(&$0) }
        let ledger = try Ledger { _, _ in Receiver.Response(delay: .milliseconds(2)) }
        try await database.endpoint("e", url: ledger.url) { $0.maxInFlight = 16 }
        let worker = try await Daemon.start(cluster.connectionString, keyFile: try Daemon.keyFile())
        #expect(await worker.waitUntilReady())
        var published: [Int64] = []
        for round in 1...3 {
            for _ in 0..<5 { published += try await database.publish(100) }
            let enough = published.count - 400
            #expect(await eventually { ledger.all.count >= enough })
            let pid = try #require(cluster.serverPID)
            kill(pid, SIGKILL)
            #expect(await eventually { kill(pid, 0) != 0 })
            // Joining again starts the server that is gone; recovery brings back every acknowledged
            // commit.
            let joined = try await EmbeddedCluster(folder: folder)
            try joined.leave()
            #expect(await eventually { (try? await database.number("SELECT 1")) == 1 }, "round \(round)")
        }
        #expect(try await eventually { try await database.isDrained() })
        worker.signal(SIGTERM)
        #expect(await worker.wait() == .exit(0))
        let duplicates = try await check(published, ledger, database)
        // The worker lives on with what it has to record; only requests under a lease that ended
        // meanwhile are repeated.
        #expect(duplicates <= 3 * 16, "\(duplicates)")
        await database.pool.close()
        try cluster.leave()
        try FileManager.default.removeItem(atPath: folder)
        ledger.receiver.stop()
    }

    @Test(arguments: [[CuttingProxy.Cut.beforeCommit], [.afterCommit], [.beforeCommit, .afterCommit, .afterCommit]])
    func `a connection cut around COMMIT: outcomes are recorded once, requests are sent once`(plan: [CuttingProxy.Cut])
        async throws
    {
        let database = try await TestCluster.database()
        // The first attempt of some events fails, so that waiting rows are written in the
        // transactions, too.
        let ledger = try Ledger { request, _ in
            let isFirst = request["Outbox-Attempt"]?.hasPrefix("1/") == true
            return Receiver.Response(isFirst && request["webhook-id"]?.hasSuffix("5") == true ? 500 : 200)
        }
        try await database.endpoint("e", url: ledger.url) { $0.maxInFlight = 4 }
        let socket = try #require(database.connectionString.split(separator: "'").dropFirst().first)
        let name = try #require(database.connectionString.split(separator: "=").last)
        let proxy = try CuttingProxy(socketPath: "\(socket)/.s.PGSQL.5432", plan: plan)
        var configuration = try TestWorker.configuration(database)
        configuration.database = try ConnectionTarget(
            "host=127.0.0.1 port=\(proxy.port) user=outbox dbname=\(name) sslmode=disable gssencmode=disable")
        let worker = try await TestWorker(configuration)
        let published = try await database.publish(60)
        #expect(try await eventually { try await database.isDrained() })
        try await worker.stop()
        #expect(proxy.cutCount == plan.count)
        // No request was repeated for the cut's sake: every request has exactly one attempt row.
        #expect(try await database.number("SELECT count(*) FROM outbox.attempt") == ledger.all.count)
        #expect(
            try await database.number(
                "SELECT count(*) FROM (SELECT FROM outbox.attempt GROUP BY event_id, number HAVING count(*) > 1) x")
                == 0)
        #expect(
            try await database.number("SELECT count(DISTINCT event_id) FROM outbox.attempt WHERE outcome = 'success'")
                == published.count)
        proxy.stop()
        ledger.receiver.stop()
    }

    private func proxied(_ database: TestDatabase) throws -> (CuttingProxy, String) {
        let socket = try #require(database.connectionString.split(separator: "'").dropFirst().first)
        let name = try #require(database.connectionString.split(separator: "=").last)
        let proxy = try CuttingProxy(socketPath: "\(socket)/.s.PGSQL.5432", plan: [])
        return (
            proxy,
            "host=127.0.0.1 port=\(proxy.port) user=outbox dbname=\(name) sslmode=disable gssencmode=disable connect_timeout=2"
        )
    }

    @Test(.heavy, arguments: [true, false])
    func `connections that are never answered again are given up, and the work goes on`(newPass: Bool) async throws {
        let database = try await TestCluster.database()
        let (proxy, target) = try proxied(database)
        let ledger = try Ledger()
        try await database.endpoint("e", url: ledger.url)
        let worker = try await Daemon.start(target, keyFile: try Daemon.keyFile(), lease: "6s")
        #expect(await worker.waitUntilReady())
        try await database.publish(3)
        #expect(try await eventually { try await database.deliveries("delivered") == 3 })
        proxy.freeze(new: newPass)
        try await database.publish(3)
        // Longer than the deadline of a statement, and the wait for its cancel.
        try await Task.sleep(for: .seconds(14))
        proxy.thaw()
        try await database.publish(3)
        #expect(try await eventually { try await database.deliveries("delivered") == 9 })
        let isRecorded = try await eventually {
            try await database.number("SELECT count(*) FROM outbox.attempt") == ledger.all.count
        }
        #expect(isRecorded)
        worker.signal(SIGTERM)
        #expect(await worker.wait() == .exit(0))
        proxy.stop()
        ledger.receiver.stop()
    }

    @Test func `a worker for which the server has too few connections sends nothing that it could not record`()
        async throws
    {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        try await database.endpoint("e", url: ledger.url)
        let name = "few_\(UInt32.random(in: 0...UInt32.max))"
        try await database.script("CREATE ROLE \(name) LOGIN CONNECTION LIMIT 1; GRANT outbox_worker TO \(name)")
        let target = database.connectionString.replacing("user=outbox", with: "user=\(name)")
        let worker = try ChildProcess(
            ChildProcess.outboxctl, ["run", "--lease", "3s"],
            environment: [
                "DATABASE_URL": target, "OUTBOX_SECRET_KEY_FILE": try Daemon.keyFile(),
                "OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8",
            ])
        try await database.publish(5)
        #expect(await eventually { worker.errors.contains("too many connections") })
        try await Task.sleep(for: .seconds(3))
        #expect(ledger.all.isEmpty)
        try await database.script("ALTER ROLE \(name) CONNECTION LIMIT -1")
        #expect(try await eventually { try await database.deliveries("delivered") == 5 })
        #expect(ledger.all.count == 5)
        worker.signal(SIGTERM)
        #expect(await worker.wait() == .exit(0))
        ledger.receiver.stop()
    }
}
