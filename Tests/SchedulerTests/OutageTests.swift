import Outbox
import Postgres
import Receiver
import TestSupport
import Testing

@testable import Scheduler

/// When a breaker trips.
@Suite(.timeLimit(.minutes(15))) struct FailureCounterTests {
    private let endpoint = EndpointID(rawValue: .random())

    @Test func `ten failures in a row open it, and a success in between begins anew`() {
        let counter = FailureCounter()
        for _ in 0..<9 { #expect(!counter.count(endpoint, isFailure: true)) }
        #expect(!counter.count(endpoint, isFailure: false))
        for _ in 0..<9 { #expect(!counter.count(endpoint, isFailure: true)) }
        #expect(counter.count(endpoint, isFailure: true))
    }

    @Test func `half of a hundred outcomes within half a minute open it, and not over a longer time`() {
        let counter = FailureCounter()
        let start = ContinuousClock.now
        var opened: [Int] = []
        for number in 1...200 where counter.count(endpoint, isFailure: number.isMultiple(of: 2), at: start) {
            opened.append(number)
        }
        #expect(opened.first.map { $0 >= 100 } == true)
        let slow = FailureCounter()
        for number in 1...400 {
            let trips = slow.count(endpoint, isFailure: number.isMultiple(of: 2), at: start + .seconds(number))
            #expect(!trips)
        }
    }

    @Test func `a share of failures that is less than half never opens it, however many there are`() {
        let counter = FailureCounter()
        let start = ContinuousClock.now
        for number in 1...10_000 {
            let trips = counter.count(endpoint, isFailure: number.isMultiple(of: 3), at: start + .milliseconds(number))
            #expect(!trips)
        }
    }

    @Test func `endpoints do not count for each other`() {
        let counter = FailureCounter()
        let other = EndpointID(rawValue: .random())
        for _ in 0..<9 {
            #expect(!counter.count(endpoint, isFailure: true))
            #expect(!counter.count(other, isFailure: true))
        }
        #expect(counter.count(endpoint, isFailure: true))
    }
}

/// The breaker on a real database with a receiver that goes and comes back.
@Suite(.timeLimit(.minutes(15))) struct OutageTests {
    /// Moves the next probe to now.
    private func probeNow(_ database: TestDatabase) async throws {
        try await database.script("UPDATE outbox.lane SET resting_until = clock_timestamp() WHERE trips > 0")
    }

    @Test func `while it is open one delivery at a time is tried, none is given up, and all go out when it answers`()
        async throws
    {
        let database = try await TestCluster.database()
        let isUp = Flag(false)
        let ledger = try Ledger { _, _ in Receiver.Response(isUp.isSet ? 200 : 500) }
        // A schedule so long that only the recovery can explain that everything goes out, and so
        // short in steps that the outage would use it up.
        try await database.endpoint("down", url: ledger.url, retries: [.seconds(3600)]) { $0.maxInFlight = 8 }
        try await TestWorker.run(database) {
            try await database.publish(100)
            let isOpen = try await eventually {
                try await database.number("SELECT count(*) FROM outbox.lane WHERE trips = 1") == 1
            }
            #expect(isOpen)
            let allWait = try await eventually { try await database.deliveries("waiting") == 100 }
            #expect(allWait)
            // In flight when it opened, and no more.
            let tried = ledger.all.count
            #expect((10...18).contains(tried))
            // New events go into the lane without a try.
            try await database.publish(50)
            let moreWait = try await eventually { try await database.deliveries("waiting") == 150 }
            #expect(moreWait)
            #expect(ledger.all.count == tried)
            for probe in 1...3 {
                try await probeNow(database)
                let isProbed = try await eventually {
                    try await database.number("SELECT trips FROM outbox.lane") == 1 + probe
                }
                #expect(isProbed)
                #expect(ledger.all.count == tried + probe)
            }
            #expect(try await database.number("SELECT count(*) FROM outbox.dead_letter") == 0)
            isUp.isSet = true
            try await probeNow(database)
            let isThrough = try await eventually { try await database.deliveries("delivered") == 150 }
            #expect(isThrough)
            let isClosed = try await eventually {
                try await database.number(
                    "SELECT count(*) FROM outbox.lane WHERE trips = 0 AND recovered_at IS NULL AND failing_since IS NULL"
                )
                    == 1
            }
            #expect(isClosed)
            // Closed again means the fast path again.
            try await database.publish()
            let isFast = try await eventually { try await database.deliveries("delivered") == 151 }
            #expect(isFast)
        }
        #expect(try await database.column("SELECT problem FROM outbox.problems") == [])
        ledger.receiver.stop()
    }

    @Test func `a receiver that comes back is not run over: the requests double from one`() async throws {
        let database = try await TestCluster.database()
        let isUp = Flag(false)
        let ledger = try Ledger { _, _ in Receiver.Response(isUp.isSet ? 200 : 500, delay: .milliseconds(2)) }
        try await database.endpoint("down", url: ledger.url, retries: [.seconds(3600)]) { $0.maxInFlight = 16 }
        try await TestWorker.run(database) {
            try await database.publish(100)
            let isOpen = try await eventually {
                try await database.number("SELECT count(*) FROM outbox.lane WHERE trips > 0") == 1
            }
            let allWait = try await eventually { try await database.deliveries("waiting") == 100 }
            #expect(isOpen && allWait)
            isUp.isSet = true
            try await probeNow(database)
            let isThrough = try await eventually { try await database.deliveries("delivered") == 100 }
            #expect(isThrough)
        }
        // By the attempt log: at the start of the n-th success of the first rounds no more than the
        // round were under way.
        let overlaps = try await database.column(
            """
            SELECT count(b.*)::text FROM (SELECT * FROM outbox.attempt WHERE outcome = 'success' ORDER BY started_at LIMIT 15) a
              LEFT JOIN outbox.attempt b ON b.outcome = 'success' AND b.started_at <= a.started_at
                    AND b.started_at + b.total_us * interval '1 us' > a.started_at
             GROUP BY a.started_at, a.event_id ORDER BY a.started_at
            """
        ).compactMap { $0.flatMap { Int($0) } }
        for (index, count) in overlaps.enumerated() {
            let round = [1, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8, 8, 8, 8, 8][index]
            #expect(count <= round, "\(index) \(overlaps)")
        }
        ledger.receiver.stop()
    }

    @Test func `a worker that dies while it is open or recovering loses nothing`() async throws {
        let database = try await TestCluster.database()
        let isUp = Flag(false)
        let ledger = try Ledger { _, _ in Receiver.Response(isUp.isSet ? 200 : 500, delay: .milliseconds(5)) }
        try await database.endpoint("down", url: ledger.url, retries: [.seconds(3600)]) { $0.maxInFlight = 4 }
        try await TestWorker.run(database, configure: { $0.lease = .seconds(2) }) {
            try await database.publish(100)
            let isOpen = try await eventually { try await database.deliveries("waiting") == 100 }
            #expect(isOpen)
        }
        isUp.isSet = true
        // Stopped in the middle of the recovery, several times.
        for round in 0..<20 {
            try await TestWorker.run(
                database,
                configure: {
                    $0.worker = "w\(round)"; $0.lease = .seconds(2)
                }
            ) {
                try await probeNow(database)
                let before = ledger.all.count
                _ = await eventually(within: .seconds(5)) { ledger.all.count > before + 20 }
            }
            if try await database.deliveries("delivered") == 100 { break }
        }
        #expect(try await database.deliveries("delivered") == 100)
        ledger.receiver.stop()
    }

    @Test func `what is scheduled for later is not sent early because the endpoint recovered`() async throws {
        let database = try await TestCluster.database()
        let isUp = Flag(false)
        let ledger = try Ledger { _, _ in Receiver.Response(isUp.isSet ? 200 : 500) }
        try await database.endpoint("down", url: ledger.url, retries: [.seconds(3600)])
        try await database.script(
            "SELECT outbox.publish('test', deliver_at => now() + interval '1 hour') FROM generate_series(1, 5)")
        try await TestWorker.run(database) {
            try await database.publish(20)
            let allWait = try await eventually { try await database.deliveries("waiting") == 25 }
            #expect(allWait)
            isUp.isSet = true
            try await probeNow(database)
            let isThrough = try await eventually { try await database.deliveries("delivered") == 20 }
            #expect(isThrough)
            let isClosed = try await eventually {
                try await database.number("SELECT count(*) FROM outbox.lane WHERE trips = 0") == 1
            }
            #expect(isClosed)
        }
        #expect(try await database.deliveries("waiting") == 5)
        ledger.receiver.stop()
    }

    @Test func `a pause that is announced begins and ends by itself, and nothing is lost`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        let id = try await database.endpoint("partner", url: ledger.url).id
        try await TestWorker.run(database) {
            // Each time is moved when what comes before it has been seen: a machine may take longer
            // for that than a pause lasts.
            func announce(from: Duration, until: Duration) async throws {
                try await database.pool.run { connection in
                    let now = try connection.query("SELECT clock_timestamp()").first(Timestamp.self)
                    let time = now ?? .distantPast
                    try connection.pauseEndpoint(id, from: time + from, until: time + until, reason: "maintenance")
                }
            }
            try await announce(from: .seconds(600), until: .seconds(1200))
            #expect(try await database.column("SELECT state FROM outbox.endpoint_health") == ["active"])
            try await database.publish()
            let goesBefore = await eventually { ledger.all.count == 1 }
            #expect(goesBefore)
            try await announce(from: .seconds(1), until: .seconds(600))
            let begins = try await eventually {
                try await database.column("SELECT state || ' ' || state_reason FROM outbox.endpoint_health") == [
                    "paused maintenance"
                ]
            }
            #expect(begins)
            let ids = try await database.publish(10)
            let waits = try await eventually { try await database.deliveries("paused") == 10 }
            #expect(waits)
            #expect(ledger.all.count == 1)
            try await announce(from: .zero, until: .seconds(1))
            let isThrough = try await eventually { try await database.deliveries("delivered") == 11 }
            #expect(isThrough)
            #expect(ledger.eventIDs.suffix(10).sorted() == ids)
        }
        ledger.receiver.stop()
    }

    @Test func `two workers send one probe at a time between them, and each delivery once when it answers`()
        async throws
    {
        let database = try await TestCluster.database()
        let isUp = Flag(false)
        let ledger = try Ledger { _, _ in Receiver.Response(isUp.isSet ? 200 : 500) }
        try await database.endpoint("down", url: ledger.url, retries: [.seconds(3600)])
        try await TestWorker.run(database, configure: { $0.worker = "one" }) {
            let other = try await TestWorker(database, name: "two")
            try await database.publish(200)
            let isOpen = try await eventually {
                try await database.number(
                    "SELECT count(*) FROM outbox.delivery JOIN outbox.lane USING (endpoint_id) WHERE trips > 0") == 200
            }
            #expect(isOpen)
            for probe in 1...3 {
                let before = ledger.all.count
                let opens = try await database.number("SELECT trips FROM outbox.lane")
                try await probeNow(database)
                let isOpenAgain = try await eventually {
                    try await database.number("SELECT trips FROM outbox.lane") == opens + 1
                }
                #expect(isOpenAgain, "probe \(probe)")
                #expect(ledger.all.count == before + 1, "probe \(probe)")
            }
            isUp.isSet = true
            let failed = ledger.all.count
            try await probeNow(database)
            let isThrough = try await eventually { try await database.deliveries("delivered") == 200 }
            #expect(isThrough)
            #expect(ledger.all.count == failed + 200)
            let isClosed = try await eventually { try await database.number("SELECT trips FROM outbox.lane") == 0 }
            #expect(isClosed)
            try await other.stop()
        }
        #expect(try await database.column("SELECT problem FROM outbox.problems WHERE problem <> 'no_worker'") == [])
        ledger.receiver.stop()
    }

    @Test
    func `after five days and twenty probes it is disabled, with an event and an audit row, and keeps what waits`()
        async throws
    {
        let database = try await TestCluster.database()
        let ledger = try Ledger { _, _ in Receiver.Response(500) }
        let (operations, everything) = (try Ledger(), try Ledger())
        try await database.endpoint("down", url: ledger.url, retries: [.seconds(3600)])
        try await database.endpoint("operations", url: operations.url) { $0.eventTypes = ["outbox.endpoint.disabled"] }
        try await database.endpoint("everything", url: everything.url)
        try await TestWorker.run(database) {
            try await database.publish(20)
            let isOpen = try await eventually { try await database.deliveries("waiting") == 20 }
            #expect(isOpen)
            try await database.script(
                "UPDATE outbox.lane SET trips = 20, failing_since = now() - interval '6 days', resting_until = clock_timestamp() WHERE trips > 0"
            )
            let isDisabled = try await eventually {
                try await database.column("SELECT state FROM outbox.endpoint_health WHERE endpoint = 'down'") == [
                    "disabled"
                ]
            }
            #expect(isDisabled)
        }
        #expect(
            try await database.column("SELECT reason FROM outbox.audit WHERE action = 'endpoint.disable'") == [
                "failing for five days"
            ])
        #expect(try await database.deliveries("paused") == 20)
        // Who asked for it is told; what the service says about itself is no part of "everything".
        try await TestWorker.run(database) {
            let isTold = await eventually { operations.all.count == 1 }
            #expect(isTold)
        }
        let body = operations.all.first.map { String(decoding: $0.body, as: UTF8.self) } ?? ""
        #expect(body.contains(#""endpoint" : "down""#) && body.contains("failing for five days"), "\(body)")
        #expect(everything.all.count == 20)
        for ledger in [ledger, operations, everything] { ledger.receiver.stop() }
    }
}
