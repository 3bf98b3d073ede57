import Foundation
import Outbox
import Postgres
import Receiver
import StandardWebhooks
import TestSupport
import Testing
import Transport

@testable import Scheduler

/// The main job on a real database and real sockets, in this process.
@Suite(.timeLimit(.minutes(15))) struct DeliveryTests {
    @Test func `a committed event arrives signed at every endpoint that matches, and a rolled-back one nowhere`()
        async throws
    {
        let database = try await TestCluster.database()
        let (one, two, other) = (try Ledger(), try Ledger(), try Ledger())
        let secret = try await database.endpoint("one", url: one.url + "/hook?x=1").secret
        try await database.endpoint("two", url: two.url) { $0.format = .citrix }
        try await database.endpoint("other", url: other.url) { $0.eventTypes = ["elsewhere"] }
        try await TestWorker.run(database) {
            let ids = try await database.publish(3, after: #"{"a": 1}"#)
            try await database.script("BEGIN; SELECT outbox.publish('test'); ROLLBACK")
            #expect(try await eventually { try await database.deliveries("delivered") == 6 })
            #expect(one.eventIDs.sorted() == ids)
            #expect(two.eventIDs.sorted() == ids)
        }
        #expect(other.all.isEmpty)
        for request in one.all {
            #expect(request.target == "/hook?x=1")
            let id = try #require(request["webhook-id"])
            let time = try #require(request["webhook-timestamp"].flatMap { Int64($0) })
            #expect(
                secret.verifies(try #require(request["webhook-signature"]), id: id, timestamp: time, body: request.body)
            )
            #expect(abs(time - Int64(Date().timeIntervalSince1970)) < 60)
        }
        // I6: as many attempt rows as requests; and nothing is left.
        #expect(try await database.number("SELECT count(*) FROM outbox.attempt") == 6)
        #expect(try await database.isDrained())
        #expect(try await database.column("SELECT problem FROM outbox.problems") == [])
        for ledger in [one, two, other] { ledger.receiver.stop() }
    }

    @Test func `a failure is tried again with the same webhook-id until it succeeds`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { _, before in Receiver.Response(before < 2 ? 500 : 200) }
        try await database.endpoint("flaky", url: ledger.url)
        try await TestWorker.run(database) {
            try await database.publish()
            #expect(try await eventually { try await database.deliveries("delivered") == 1 })
        }
        #expect(Set(ledger.all.map { $0["webhook-id"] }).count == 1)
        #expect(ledger.all.map { $0["Outbox-Attempt"] } == ["1/3", "2/3", "3/3"])
        let rows = try await database.column(
            "SELECT concat_ws(' ', number, trigger, outcome, status, error_class) FROM outbox.attempt ORDER BY number")
        #expect(rows == ["1 first failure 500 http_5xx", "2 retry failure 500 http_5xx", "3 retry success 200"])
        #expect(
            try await database.column("SELECT encode(response, 'escape') FROM outbox.attempt ORDER BY number") == [
                "ok", "ok", nil,
            ])
        ledger.receiver.stop()
    }

    @Test func `an exhausted delivery is parked, and a replay delivers it with the same webhook-id`() async throws {
        let database = try await TestCluster.database()
        let isHealthy = Flag(false)
        let ledger = try Ledger { _, _ in Receiver.Response(isHealthy.isSet ? 200 : 503) }
        try await database.endpoint("down", url: ledger.url)
        try await TestWorker.run(database) {
            try await database.publish(2)
            #expect(try await eventually { try await database.deliveries("dead") == 2 })
            #expect(
                try await database.column(
                    "SELECT DISTINCT concat_ws(' ', reason, attempts, status, error_class) FROM outbox.dead_letter")
                    == ["exhausted 3 503 http_5xx"])
            #expect(try await database.column("SELECT DISTINCT fingerprint FROM outbox.dead_letter").count == 1)
            #expect(try await database.isDrained())
            isHealthy.isSet = true
            #expect(try await database.pool.run { try $0.replayDeadLetters(nil, reason: "test") } == 2)
            #expect(try await eventually { try await database.deliveries("delivered") == 2 })
        }
        #expect(ledger.counts.values.allSatisfy { $0 == 4 })
        #expect(Set(ledger.all.compactMap { $0["webhook-id"] }).count == 2)
        #expect(try await database.number("SELECT count(*) FROM outbox.attempt WHERE trigger = 'replay'") == 2)
        #expect(try await database.number("SELECT count(*) FROM outbox.audit WHERE action = 'dead.replay'") == 1)
        ledger.receiver.stop()
    }

    @Test func `a hanging endpoint delays nobody else`() async throws {
        let database = try await TestCluster.database()
        let isHanging = Flag(true)
        let hanging = try Ledger { _, _ in
            while isHanging.isSet { usleep(10_000) }
            return Receiver.Response()
        }
        let healthy = try Ledger()
        try await database.endpoint("hanging", url: hanging.url, retries: [.seconds(60)]) { change in
            change.maxInFlight = 2
            change.timeout = .seconds(300)
        }
        try await database.endpoint("healthy", url: healthy.url)
        try await TestWorker.run(database, configure: { $0.softDeadline = .milliseconds(300) }) {
            try await database.publish(300)
            #expect(await eventually { healthy.all.count == 300 })
            // The healthy endpoint is through while the other's requests still hang.
            #expect(hanging.all.count <= 2)
            // What could not start in time waits in the lane, and the batch does not stay open for
            // it.
            #expect(try await eventually { try await database.number("SELECT count(*) FROM outbox.delivery") >= 298 })
            isHanging.isSet = false
            #expect(try await eventually { try await database.number("SELECT count(*) FROM outbox.batch") == 0 })
        }
        #expect(healthy.counts.values.allSatisfy { $0 == 1 })
        for ledger in [hanging, healthy] { ledger.receiver.stop() }
    }

    @Test func `a paused endpoint loses nothing and gets everything when it resumes`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        let id = try await database.endpoint("paused", url: ledger.url).id
        try await database.pool.run { try $0.pauseEndpoint(id, until: nil, reason: "maintenance") }
        try await TestWorker.run(database) {
            let ids = try await database.publish(600)
            #expect(try await eventually { try await database.deliveries("paused") == 600 })
            #expect(ledger.all.isEmpty)
            try await database.pool.run { try $0.resumeEndpoint(id) }
            #expect(try await eventually { try await database.deliveries("delivered") == 600 })
            #expect(ledger.counts == Dictionary(uniqueKeysWithValues: ids.map { ($0, 1) }))
        }
        ledger.receiver.stop()
    }

    @Test func `a disabled endpoint gets no new events, keeps what waits, and goes on when enabled`() async throws {
        let database = try await TestCluster.database()
        let isGone = Flag(true)
        let ledger = try Ledger { _, _ in Receiver.Response(isGone.isSet ? 410 : 200) }
        let id = try await database.endpoint("gone", url: ledger.url).id
        try await TestWorker.run(database) {
            try await database.publish()
            #expect(
                try await eventually {
                    try await database.number("SELECT count(*) FROM outbox.endpoint WHERE disabled_reason LIKE 'gone%'")
                        == 1
                })
            #expect(try await database.deliveries("paused") == 1)
            try await database.publish()
            #expect(
                try await eventually {
                    try await database.number(
                        "SELECT coalesce(sum(waiting), 0)::bigint FROM outbox.backlog WHERE stage <> 'lane'") == 0
                })
            #expect(ledger.all.count == 1)
            isGone.isSet = false
            try await database.pool.run { try $0.enableEndpoint(id) }
            #expect(try await eventually { try await database.deliveries("delivered") == 1 })
        }
        #expect(ledger.all.count == 2)
        #expect(try await database.number("SELECT count(*) FROM outbox.audit WHERE action = 'endpoint.disable'") == 1)
        ledger.receiver.stop()
    }

    /// As in a failover that loses the commit before anybody has read it: the database says
    /// afterwards what it said before.
    @Test func `an event is left out only where the database says that the endpoint is disabled`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { _, _ in Receiver.Response(410) }
        try await database.endpoint("gone", url: ledger.url)
        // So that nobody can record what the response says.
        let holder = try database.newPool()
        try await holder.run {
            try $0.script(
                "SET idle_in_transaction_session_timeout = 0; BEGIN; UPDATE outbox.endpoint SET description = 'x'")
        }
        try await TestWorker.run(database) {
            for number in 1...5 {
                try await database.publish()
                let waits = try await eventually {
                    try await database.number("SELECT count(*) FROM outbox.delivery") == number
                }
                try #require(waits)
            }
            #expect(ledger.all.count == 1)
            try await holder.run { try $0.script("ROLLBACK") }
            let isDisabled = try await eventually {
                try await database.number("SELECT count(*) FROM outbox.endpoint WHERE disabled_at IS NOT NULL") == 1
            }
            #expect(isDisabled)
        }
        await holder.close()
        ledger.receiver.stop()
    }

    @Test func `an endpoint that was closed is open again when the record of it is lost`() async throws {
        let database = try await TestCluster.database()
        let isGone = Flag(true)
        let ledger = try Ledger { _, _ in Receiver.Response(isGone.isSet ? 410 : 200) }
        try await database.endpoint("gone", url: ledger.url)
        try await database.script(
            """
            CREATE FUNCTION public.lose() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
            CREATE TRIGGER lose BEFORE UPDATE ON outbox.endpoint FOR EACH ROW EXECUTE FUNCTION public.lose()
            """)
        try await TestWorker.run(database) {
            try await database.publish()
            #expect(
                try await eventually { try await database.number("SELECT count(*) FROM outbox.delivery") == 1 })
            isGone.isSet = false
            try await database.publish()
            #expect(try await eventually { try await database.deliveries("delivered") == 2 })
        }
        ledger.receiver.stop()
    }

    @Test func `Retry-After rests the whole endpoint, and the others do not notice`() async throws {
        let database = try await TestCluster.database()
        let resting = try Ledger { _, before in
            before == 0 ? Receiver.Response(429, headers: [("Retry-After", "3600")]) : Receiver.Response()
        }
        let other = try Ledger()
        try await database.endpoint("resting", url: resting.url)
        try await database.endpoint("other", url: other.url)
        try await TestWorker.run(database) {
            try await database.publish()
            #expect(
                try await eventually {
                    try await database.number(
                        "SELECT count(*) FROM outbox.lane WHERE resting_until > now() + interval '50 min'") == 1
                })
            try await database.publish(20)
            #expect(await eventually { other.all.count == 21 })
            #expect(try await eventually { try await database.deliveries("waiting") == 21 })
            #expect(resting.all.count == 1)
        }
        for ledger in [resting, other] { ledger.receiver.stop() }
    }

    @Test func `what is queued when its endpoint gets a rate goes through the lane`() async throws {
        let database = try await TestCluster.database()
        let isHeld = Flag(true)
        let ledger = try Ledger { _, _ in
            isHeld.waitUntilCleared()
            return Receiver.Response()
        }
        let endpoint = try await database.endpoint("e", url: ledger.url) {
            $0.maxInFlight = 1
            $0.timeout = .seconds(300)
        }.id
        try await TestWorker.run(database, configure: { $0.softDeadline = .seconds(60) }) {
            try await database.publish(20)
            let isQueued = await eventually { ledger.all.count == 1 }
            #expect(isQueued)
            try await database.pool.run {
                try $0.updateEndpoint(endpoint, keyring: TestWorker.keyring) { $0.rates = [try RateLimit("100/s")] }
            }
            isHeld.isSet = false
            let isThrough = try await eventually { try await database.deliveries("delivered") == 20 }
            #expect(isThrough)
        }
        #expect(ledger.counts.values.allSatisfy { $0 == 1 })
        ledger.receiver.stop()
    }

    @Test func `after a rest the requests begin with one, and a receiver that refuses again gets no more`() async throws
    {
        let database = try await TestCluster.database()
        let isOpen = Flag(false)
        let ledger = try Ledger { _, _ in
            isOpen.isSet
                ? Receiver.Response(delay: .milliseconds(2)) : Receiver.Response(429, headers: [("Retry-After", "20")])
        }
        try await database.endpoint("e", url: ledger.url, retries: [.milliseconds(10), .milliseconds(10)])
        try await TestWorker.run(database) {
            try await database.publish(100)
            // What is sent before the first response; then one request whenever the rest ends.
            let isResting = try await eventually {
                try await database.number("SELECT count(*) FROM outbox.delivery") == 100
            }
            #expect(isResting)
            for _ in 0..<2 {
                let before = ledger.all.count
                try await database.script(
                    "UPDATE outbox.lane SET resting_until = clock_timestamp(), due_at = least(due_at, clock_timestamp())"
                )
                let isTried = await eventually { ledger.all.count > before }
                #expect(isTried)
                let isHeld = try await eventually {
                    try await database.number(
                        "SELECT count(*) FROM outbox.lane WHERE resting_until > clock_timestamp()")
                        == 1
                }
                #expect(isHeld)
                #expect(ledger.all.count == before + 1)
            }
            isOpen.isSet = true
            try await database.script(
                "UPDATE outbox.lane SET resting_until = clock_timestamp(), due_at = least(due_at, clock_timestamp())")
            let isThrough = try await eventually { try await database.deliveries("delivered") == 100 }
            #expect(isThrough)
        }
        ledger.receiver.stop()
    }

    @Test func `an event for later waits in the lane and leaves when it is time`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        try await database.endpoint("later", url: ledger.url)
        try await TestWorker.run(database) {
            try await database.script(
                "SELECT outbox.publish('test', deliver_at => now() + interval '1 hour'), outbox.publish('test', deliver_at => now() + interval '700 ms')"
            )
            #expect(try await eventually { try await database.deliveries("delivered") == 1 })
            #expect(try await database.deliveries("waiting") == 1)
        }
        let isOnTime = try await database.column(
            "SELECT (a.started_at >= e.deliver_at)::text FROM outbox.attempt a JOIN outbox.event e ON e.id = a.event_id"
        )
        #expect(isOnTime == ["true"])
        ledger.receiver.stop()
    }

    @Test func `413 is parked at once, a redirect is not followed, a forbidden address is not called`() async throws {
        let database = try await TestCluster.database()
        let canary = try Ledger()
        let large = try Ledger { _, _ in Receiver.Response(413) }
        let moved = try Ledger { _, _ in Receiver.Response(307, headers: [("Location", canary.url)]) }
        try await database.endpoint("large", url: large.url)
        try await database.endpoint("moved", url: moved.url, retries: [])
        try await database.endpoint("forbidden", url: "http://169.254.169.254/latest/meta-data/", retries: [])
        try await TestWorker.run(database) {
            try await database.publish()
            #expect(try await eventually { try await database.deliveries("dead") == 3 })
        }
        let dead = try await database.column(
            "SELECT concat_ws(' ', endpoint, reason, attempts, status, error_class) FROM outbox.dead_letters ORDER BY endpoint"
        )
        #expect(
            dead == [
                "forbidden exhausted 1 blocked_address", "large permanent 1 413 http_4xx",
                "moved exhausted 1 307 redirect",
            ])
        #expect(canary.all.isEmpty)
        for ledger in [canary, large, moved] { ledger.receiver.stop() }
    }

    @Test(.heavy) func `two workers share the work and send nothing twice`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { _, _ in Receiver.Response(delay: .milliseconds(2)) }
        try await database.endpoint("shared", url: ledger.url)
        let ids = try await database.publish(4000)
        // No lease ends, however busy the machine is.
        func worker(_ name: String) async throws -> TestWorker {
            var configuration = try TestWorker.configuration(database)
            configuration.worker = name
            configuration.lease = .seconds(120)
            return try await TestWorker(configuration)
        }
        let first = try await worker("first")
        let second = try await worker("second")
        #expect(try await eventually { try await database.isDrained() })
        try await first.stop()
        try await second.stop()
        #expect(ledger.counts == Dictionary(uniqueKeysWithValues: ids.map { ($0, 1) }))
        #expect(try await database.number("SELECT count(DISTINCT worker) FROM outbox.attempt") == 2)
        ledger.receiver.stop()
    }

    @Test func `a graceful stop lets requests end, and hands over what had not started`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { _, _ in Receiver.Response(delay: .milliseconds(400)) }
        try await database.endpoint("slow", url: ledger.url) { $0.maxInFlight = 4 }
        let ids = try await database.publish(12)
        let worker = try await TestWorker(database)
        #expect(await eventually { ledger.all.count == 4 })
        try await worker.stop()
        // I7: nothing that was in flight at the stop is sent again.
        #expect(
            try await database.number("SELECT count(*) FROM outbox.attempt WHERE outcome = 'success'")
                == ledger.all.count)
        #expect(try await database.number("SELECT count(*) FROM outbox.batch") == 0)
        #expect(try await database.number("SELECT count(*) FROM outbox.worker") == 0)
        #expect(try await database.number("SELECT count(*) FROM outbox.lane WHERE lease_id IS NOT NULL") == 0)
        try await TestWorker.run(database) {
            let isThrough = try await eventually { try await database.deliveries("delivered") == 12 }
            #expect(isThrough)
        }
        #expect(ledger.counts == Dictionary(uniqueKeysWithValues: ids.map { ($0, 1) }))
        ledger.receiver.stop()
    }

    @Test func `requests that outlast the grace period are stopped, recorded and sent again later`() async throws {
        let database = try await TestCluster.database()
        let isHealthy = Flag(false)
        let ledger = try Ledger { _, _ in isHealthy.isSet ? Receiver.Response() : Receiver.Response(manner: .silence) }
        try await database.endpoint("stuck", url: ledger.url) { $0.timeout = .seconds(60) }
        var configuration = try TestWorker.configuration(database)
        configuration.grace = .milliseconds(100)
        let worker = try await TestWorker(configuration)
        try await database.publish()
        #expect(await eventually { ledger.all.count == 1 })
        try await worker.stop()
        #expect(try await database.column("SELECT error_class FROM outbox.attempt") == ["cancelled"])
        isHealthy.isSet = true
        try await TestWorker.run(database) {
            let isThrough = try await eventually { try await database.deliveries("delivered") == 1 }
            #expect(isThrough)
        }
        ledger.receiver.stop()
    }

    @Test func `an endpoint whose secret cannot be opened waits, and the others do not`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        try await database.endpoint("foreign", url: ledger.url)
        try await database.endpoint("own", url: ledger.url)
        try await database.script(
            """
            UPDATE outbox.secret SET key_id = '00000000'
             WHERE endpoint_id = (SELECT id FROM outbox.endpoint WHERE name = 'foreign');
            UPDATE outbox.endpoint SET description = 'read it again'
            """)
        try await TestWorker.run(database) {
            try await database.publish(5)
            #expect(try await eventually { try await database.deliveries("delivered") == 5 })
            #expect(try await eventually { try await database.deliveries("waiting") == 5 })
        }
        #expect(ledger.all.allSatisfy { $0["webhook-signature"] != nil })
        ledger.receiver.stop()
    }

    @Test func `a header that an event spoils is a dead letter, not a crash and not a request`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        try await database.endpoint("e", url: ledger.url) {
            $0.headers = [EndpointConfiguration.Header(name: "X-Value", value: "%after.v%")]
        }
        try await TestWorker.run(database) {
            try await database.script(#"SELECT outbox.publish('test', '{"v":"bell \u0007"}')"#)
            #expect(try await eventually { try await database.deliveries("dead") == 1 })
            #expect(ledger.all.isEmpty)
            // A trace context that is none is left out, whatever it would do to a header.
            try await database.script(
                #"SELECT outbox.publish('test', '{"v":"x"}', headers => '{"traceparent": "a\r\nX-Evil: 1"}')"#)
            #expect(await eventually { ledger.all.count == 1 })
        }
        #expect(try await database.column("SELECT reason FROM outbox.dead_letter") == ["render_error"])
        #expect(ledger.all[0]["traceparent"] == nil && ledger.all[0]["x-evil"] == nil)
        ledger.receiver.stop()
    }

    @Test func `a sleeping worker is woken by a commit, and works by polling when it does not listen`() async throws {
        for listens in [true, false] {
            let database = try await TestCluster.database()
            let ledger = try Ledger()
            try await database.endpoint("e", url: ledger.url)
            try await TestWorker.run(database, configure: { $0.listens = listens }) {
                if listens {
                    #expect(
                        try await eventually {
                            try await database.number(
                                "SELECT (coalesce(pg_sequence_last_value('outbox.asleep_until'), 0) > date_part('epoch', clock_timestamp()))::int::bigint"
                            ) == 1
                        })
                }
                try await database.publish()
                #expect(await eventually { ledger.all.count == 1 })
            }
            ledger.receiver.stop()
        }
    }

    @Test func `everything works as the role outbox_worker`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { _, before in Receiver.Response(before == 0 ? 500 : before == 1 ? 410 : 200) }
        try await database.endpoint("e", url: ledger.url)
        var configuration = try TestWorker.configuration(database)
        configuration.database = try ConnectionTarget(database.connectionString + " options='-c role=outbox_worker'")
        let worker = try await TestWorker(configuration)
        try await database.publish()
        #expect(
            try await eventually {
                try await database.number("SELECT count(*) FROM outbox.endpoint WHERE disabled_at IS NOT NULL") == 1
            })
        try await worker.stop()
        #expect(ledger.all.count == 2)
        ledger.receiver.stop()
    }

    @Test func `no transaction is open while a request is`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { _, _ in Receiver.Response(delay: .milliseconds(500)) }
        try await database.endpoint("e", url: ledger.url)
        try await TestWorker.run(database) {
            try await database.publish(20)
            #expect(await eventually { ledger.all.count == 20 })
            let open = try await database.number(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"
            )
            #expect(open == 0)
            #expect(try await eventually { try await database.deliveries("delivered") == 20 })
        }
        ledger.receiver.stop()
    }

    @Test func `a worker whose every connection is cut finds its way back`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { _, _ in Receiver.Response(delay: .milliseconds(5)) }
        try await database.endpoint("e", url: ledger.url) { $0.maxInFlight = 8 }
        try await TestWorker.run(database) {
            var ids: [Int64] = []
            for _ in 0..<5 {
                ids += try await database.publish(100)
                try await database.pool.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'outbox/test%'"
                )
            }
            #expect(try await eventually { try await database.isDrained() })
            #expect(Set(ledger.eventIDs) == Set(ids))
        }
        #expect(try await database.number("SELECT count(*) FROM outbox.attempt") == ledger.all.count)
        ledger.receiver.stop()
    }

    @Test func `an endpoint that is deleted with requests in flight leaves nothing waiting`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { _, _ in Receiver.Response(500, delay: .milliseconds(700)) }
        let id = try await database.endpoint("e", url: ledger.url, retries: [.seconds(3600)]).id
        try await TestWorker.run(database) {
            try await database.publish(5)
            #expect(await eventually { ledger.all.count == 5 })
            try await database.pool.run { try $0.deleteEndpoint(id, reason: nil) }
            #expect(try await eventually { try await database.deliveries("cancelled") == 5 })
        }
        #expect(try await database.isDrained())
        #expect(try await database.column("SELECT problem FROM outbox.problems") == [])
        ledger.receiver.stop()
    }

    @Test func `a retry of a delivery in flight does not send it twice`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { request, _ in
            request["Outbox-Attempt"]?.hasPrefix("1/") == true
                ? Receiver.Response(500) : Receiver.Response(delay: .milliseconds(700))
        }
        let id = try await database.endpoint("e", url: ledger.url).id
        try await TestWorker.run(database) {
            let delivery = try await database.deliveryID(try await database.publish()[0], id)
            #expect(await eventually { ledger.all.count == 2 })
            try await database.pool.run { try $0.retryDelivery(delivery, reason: nil) }
            #expect(try await eventually { try await database.deliveries("delivered") == 1 })
        }
        #expect(ledger.all.count == 2)
        ledger.receiver.stop()
    }

    @Test func `a probe goes alone, after what was read before it`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        let id = try await database.endpoint("e", url: ledger.url).id
        // As after a crash: a lane with due rows, one of which took its worker along before.
        let ids = try await database.publish(6)
        try await database.script(
            """
            INSERT INTO outbox.delivery (event_id, endpoint_id, event_at, due_at, trigger, crashes)
            SELECT id, '\(id)', created_at, now() - interval '1 min', 'retry', CASE WHEN id = \(ids[3]) THEN 1 ELSE 0 END FROM outbox.event;
            UPDATE outbox.lane SET due_at = '-infinity'; INSERT INTO outbox.cut (done) SELECT pg_current_snapshot()
            """)
        try await TestWorker.run(database) {
            let isThrough = try await eventually { try await database.deliveries("delivered") == 6 }
            #expect(isThrough)
        }
        #expect(ledger.counts == Dictionary(uniqueKeysWithValues: ids.map { ($0, 1) }))
        ledger.receiver.stop()
    }
}
