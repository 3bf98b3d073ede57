import Outbox
import Postgres
import Receiver
import Synchronization
import TestSupport
import Testing
import Threads

@testable import Scheduler

@Suite(.timeLimit(.minutes(15))) struct RateLimiterTests {
    private let start = ContinuousClock.now

    private func times(_ limits: [String], count: Int, pauseAfter: Int? = nil, pause: Duration = .zero) throws
        -> [Duration]
    {
        var limiter = RateLimiter(try limits.map { try RateLimit($0) })
        var now = start
        return (0..<count).map { index in
            if index == pauseAfter { now += pause }
            now = max(now, limiter.earliest() ?? now)
            limiter.take(at: now)
            return now - start
        }
    }

    @Test func `a window never holds more than its count`() throws {
        #expect(try times(["2/1s"], count: 5) == [.zero, .zero, .seconds(1), .seconds(1), .seconds(2)])
    }

    @Test func `a burst is what a pause has saved up, at most its size`() throws {
        #expect(
            try times(["1/s burst 3"], count: 5) == [.zero, .zero, .zero, .seconds(1), .seconds(2)])
        // After ten seconds three may go at once again, not ten.
        #expect(
            try times(["1/s burst 3"], count: 8, pauseAfter: 4, pause: .seconds(10)).suffix(4)
                == [.seconds(11), .seconds(11), .seconds(11), .seconds(12)])
    }

    @Test func `several limits all hold`() throws {
        let times = try times(["4/1s", "60/30s", "100/h"], count: 250)
        for (count, period) in [(4, Duration.seconds(1)), (60, .seconds(30)), (100, .seconds(3600))] {
            for index in times.indices where index >= count {
                #expect(times[index] - times[index - count] >= period, "\(index)")
            }
        }
        // And no slower than they must be: the first hundred are through when two windows of 60
        // allow it.
        #expect(times[99] < .seconds(45))
    }

    /// Whatever the limits and the pauses: in any window at most its count, in any stretch at most
    /// the bucket and its refill.
    @Test func `random limits are kept at random times`() throws {
        for _ in 0..<200 {
            let (window, period) = (Int.random(in: 1...5), Int.random(in: 1...10))
            let (refill, burst) = (Int.random(in: 1...4), Int.random(in: 1...6))
            var limiter = RateLimiter([
                try RateLimit("\(window)/\(period)s"), try RateLimit("\(refill)/s burst \(burst)"),
            ])
            var now = start
            var taken: [ContinuousClock.Instant] = []
            for _ in 0..<60 {
                now += .milliseconds(Int.random(in: 0...1500))
                now = max(now, limiter.earliest() ?? now)
                limiter.take(at: now)
                taken.append(now)
            }
            for (first, from) in taken.enumerated() {
                for last in first..<taken.count {
                    let (count, time) = (last - first + 1, taken[last] - from)
                    #expect(time >= .seconds(period) * ((count - 1) / window))
                    #expect(Double(count) <= Double(burst) + time / .seconds(1) * Double(refill) + 0.001)
                }
            }
        }
    }

    /// The lane changes hands after every single request, as it does when events come one by one.
    @Test func `a bucket that is taken over again and again gives no more than one that is kept`() throws {
        let limits = [try RateLimit("1/s burst 3")]
        var taken: [ContinuousClock.Instant] = []
        var now = start
        while taken.count < 40 {
            let memory = RateLimiter.memory(of: limits)
            let known = taken.filter { now - $0 < memory.period }.suffix(memory.count)
            let limiter = RateLimiter(limits, starts: Array(known), now: now)
            if let time = limiter.earliest(), time > now { now += .milliseconds(100) } else { taken.append(now) }
        }
        for (first, from) in taken.enumerated() {
            for last in first..<taken.count {
                let count = Double(last - first + 1)
                #expect(count <= 3.001 + (taken[last] - from) / .seconds(1), "\(first) \(last)")
            }
        }
        // And not much less: it never stands still.
        #expect(taken[39] - taken[0] < .seconds(130))
    }

    @Test(arguments: [
        "", "1", "1/", "/s", "0/s", "-1/s", "1/x", "1/25h", "1/s burst", "1/s burst 0", "1/s max 3", "1.5/s", "1/0s",
    ])
    func `what is no rate is refused`(text: String) {
        #expect(throws: Problem.self) { try RateLimit(text) }
    }

    @Test(arguments: [
        ("1/s", "1/1s"), ("60/30s", "60/30s"), ("100/h", "100/3600s"), ("1/s burst 3", "1/1s burst 3"),
        ("5/250ms", "5/250ms"),
    ])
    func `a rate reads back as it is written`(text: String, written: String) throws {
        #expect(try RateLimit(text).description == written)
        #expect(try RateLimit(written) == RateLimit(text))
    }
}

/// Limits on a real database, with real receivers and several workers.
@Suite(.timeLimit(.minutes(15))) struct LimitTests {
    @Test func `no more requests than the limit are ever in flight, however many workers there are`() async throws {
        let database = try await TestCluster.database()
        let gauge = Gauge()
        let ledger = try Ledger { _, _ in
            gauge.enter()
            Thread.pause(.milliseconds(5))
            gauge.leave()
            return Receiver.Response()
        }
        try await database.endpoint("limited", url: ledger.url) { $0.maxConcurrency = 3 }
        let second = try await TestWorker(database, name: "second")
        try await TestWorker.run(database) {
            let ids = try await database.publish(200)
            let isDone = try await eventually { try await database.deliveries("delivered") == 200 }
            #expect(isDone)
            #expect(ledger.eventIDs.sorted() == ids)
        }
        try await second.stop()
        #expect(gauge.most <= 3)
        #expect(try await database.isDrained())
        ledger.receiver.stop()
    }

    @Test func `a rate holds across workers and takeovers, and nothing is lost or repeated`() async throws {
        let database = try await TestCluster.database()
        let arrivals = Arrivals()
        let ledger = try Ledger { _, _ in
            arrivals.add()
            return Receiver.Response()
        }
        try await database.endpoint("limited", url: ledger.url) { $0.rates = [try RateLimit("20/2s")] }
        // Workers come and go while it drains; each goes on where the last one stopped.
        let ids = try await database.publish(60)
        for round in 0..<20 {
            try await TestWorker.run(database, configure: { $0.worker = "w\(round)" }) {
                let seen = ledger.all.count
                _ = await eventually(within: .seconds(5)) { ledger.all.count >= min(seen + 25, 60) }
            }
            if ledger.all.count >= 60 { break }
        }
        #expect(ledger.eventIDs.sorted() == ids)
        let times = arrivals.all
        for index in times.indices where index >= 20 {
            // What arrives is seen a while after it was sent, on a busy machine: a fifth of leeway,
            // where without the limit there would be nothing of the two seconds.
            #expect(times[index] - times[index - 20] > .milliseconds(1600), "\(index)")
        }
        ledger.receiver.stop()
    }

    @Test func `an endpoint at its limit hinders no other`() async throws {
        let database = try await TestCluster.database()
        let (slow, fast) = (try Ledger(), try Ledger())
        try await database.endpoint("slow", url: slow.url) { $0.rates = [try RateLimit("1/h")] }
        try await database.endpoint("fast", url: fast.url)
        try await TestWorker.run(database) {
            try await database.publish(300)
            let isDone = try await eventually { try await database.deliveries("delivered") >= 301 }
            #expect(isDone)
        }
        #expect(fast.all.count == 300)
        #expect(slow.all.count == 1)
        // What waits is still there.
        #expect(try await database.deliveries("waiting") == 299)
        slow.receiver.stop()
        fast.receiver.stop()
    }

    @Test func `a limit that is taken away or changed counts from the next request on`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        let id = try await database.endpoint("limited", url: ledger.url) { $0.rates = [try RateLimit("2/h")] }.id
        try await TestWorker.run(database) {
            try await database.publish(50)
            let isLimited = await eventually { ledger.all.count == 2 }
            #expect(isLimited)
            try await database.pool.run {
                try $0.updateEndpoint(id, keyring: TestWorker.keyring) { $0.rates = [] }
            }
            let isDone = try await eventually { try await database.deliveries("delivered") == 50 }
            #expect(isDone)
        }
        #expect(ledger.all.count == 50)
        ledger.receiver.stop()
    }
}

/// How many are inside at a time.
private final class Gauge: Sendable {
    private let state = Mutex((now: 0, most: 0))
    var most: Int { state.withLock { $0.most } }
    func enter() {
        state.withLock {
            $0.now += 1; $0.most = max($0.most, $0.now)
        }
    }
    func leave() { state.withLock { $0.now -= 1 } }
}

private final class Arrivals: Sendable {
    private let times = Mutex<[ContinuousClock.Instant]>([])
    var all: [ContinuousClock.Instant] { times.withLock { $0 } }
    func add() { times.withLock { $0.append(.now) } }
}
