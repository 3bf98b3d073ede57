import Outbox
import Postgres
import Testing

@testable import Scheduler

/// What the recorder writes next, without a database and without waiting.
@Suite(.timeLimit(.minutes(15))) struct RecorderInboxTests {
    private let start = ContinuousClock.now
    private let batch = Lease(
        .batch(
            HeldBatch(
                id: BatchID(rawValue: 1), lease: .random(), server: ServerStart(time: Timestamp(microseconds: 0)))),
        claims: 1, unresolved: 5000, trustedUntil: .now + .seconds(60))
    private let a = EndpointID(rawValue: .random())
    private let b = EndpointID(rawValue: .random())

    private func report(_ event: Int64, _ endpoint: EndpointID) -> Recorder.Report {
        let delivery = DeliveryID(
            event: EventKey(id: EventID(rawValue: event), createdAt: Timestamp(microseconds: 0)), endpoint: endpoint)
        return Recorder.Report(delivery, under: batch, attempts: 1, resolution: .delivered)
    }

    private func events(_ work: RecorderInbox.Work) -> [Int64] {
        work.reports.map(\.outcome.delivery.event.id.rawValue)
    }

    @Test func `reports are written in order, so many at a time, and count until they are written`() {
        var inbox = RecorderInbox()
        inbox.submit((1...1500).map { report($0, a) })
        #expect(inbox.unrecorded == 1500)
        #expect(events(inbox.take(at: start)) == Array(1...1000))
        inbox.wrote(1000)
        #expect(inbox.unrecorded == 500)
        #expect(events(inbox.take(at: start)) == Array(1001...1500))
        #expect(inbox.take(at: start).isEmpty)
        #expect(inbox.unrecorded == 500)
        inbox.finish([batch])
        #expect(inbox.take(at: start).finished.count == 1)
    }

    @Test func `an outage is made up for when only what somebody else has locked is left`() {
        var inbox = RecorderInbox()
        // A failed write of nothing but effects.
        inbox.failed()
        #expect(!inbox.hasRoom(for: 10))
        inbox.wrote(0)
        #expect(inbox.hasRoom(for: 10))
        // Locked while the outage was made up for: by the group itself.
        inbox.submit([report(1, a)])
        inbox.failed()
        #expect(events(inbox.take(at: start)) == [1])
        #expect(!inbox.hasRoom(for: 10))
        inbox.block([a], leaving: [report(1, a)], [:], at: start)
        #expect(inbox.hasRoom(for: 10))
        // And by what is reported later of an endpoint that is blocked.
        inbox.submit([report(2, a)])
        inbox.failed()
        #expect(!inbox.hasRoom(for: 10))
        #expect(inbox.take(at: start).isEmpty)
        #expect(inbox.hasRoom(for: 10))
    }

    @Test func `what was left is tried again after a moment, before what came later`() {
        var inbox = RecorderInbox()
        inbox.submit([report(1, a), report(2, b)])
        let work = inbox.take(at: start)
        inbox.leave([work.reports[0]], [:], at: start)
        inbox.wrote(1)
        inbox.submit([report(3, b)])
        #expect(inbox.nextTry == start + .milliseconds(50))
        #expect(events(inbox.take(at: start + .milliseconds(49))) == [3])
        inbox.submit([report(4, b)])
        #expect(events(inbox.take(at: start + .milliseconds(50))) == [1, 4])
        #expect(inbox.nextTry == nil)
        #expect(inbox.unrecorded == 3)
    }

    @Test func `of an endpoint that somebody has locked nothing is tried for a second, and others go on`() {
        var inbox = RecorderInbox()
        inbox.submit([report(1, a)])
        let work = inbox.take(at: start)
        inbox.block([a], leaving: work.reports, [a: Said(event: .probeAnswered, times: 1)], at: start)
        inbox.submit([report(2, a), report(3, b)])
        #expect(events(inbox.take(at: start + .milliseconds(999))) == [3])
        let later = inbox.take(at: start + .seconds(1))
        #expect(events(later) == [1, 2])
        #expect(later.effects.keys.contains(a))
        #expect(inbox.take(at: start + .seconds(2)).isEmpty)
    }

    @Test func `after an outage there is no room until what was kept is written, but for what others have locked`() {
        var inbox = RecorderInbox()
        inbox.submit([report(1, a), report(2, a), report(3, b)])
        #expect(inbox.hasRoom(for: 10) && !inbox.hasRoom(for: 3))
        let work = inbox.take(at: start)
        inbox.failed()
        #expect(!inbox.hasRoom(for: 10))
        inbox.submit([report(4, a)])
        inbox.leave([work.reports[2]], [:], at: start)
        inbox.wrote(2)
        #expect(!inbox.hasRoom(for: 10))
        _ = inbox.take(at: start)
        inbox.wrote(1)
        // The one that is left is of a lane that somebody else has.
        #expect(inbox.unrecorded == 1 && inbox.hasRoom(for: 10))
    }

    @Test func `something that is left for long is said now and then`() {
        var inbox = RecorderInbox()
        func complains(after time: Duration) -> Bool { inbox.isTimeToComplain(at: start + time) }
        let one = report(1, a)
        inbox.submit([one])
        _ = inbox.take(at: start)
        inbox.leave([one], [:], at: start)
        let times = [Duration.seconds(10), .seconds(11), .seconds(20), .seconds(22)].map { complains(after: $0) }
        #expect(times == [false, true, false, true])
        _ = inbox.take(at: start + .seconds(23))
        inbox.leave([], [:], at: start + .seconds(23))
        let isOver = !complains(after: .seconds(60))
        #expect(isOver)
    }

    @Test func `at the end everything that nobody will write is handed out once`() {
        var inbox = RecorderInbox()
        inbox.submit([report(1, a), report(2, a)])
        let work = inbox.take(at: start)
        inbox.leave([work.reports[0]], [:], at: start)
        inbox.submit([report(3, b)])
        #expect(!inbox.hasGivenUp(at: start))
        inbox.giveUpAt = start
        #expect(inbox.hasGivenUp(at: start))
        let given = inbox.giveUp().map(\.outcome.delivery.event.id.rawValue).sorted()
        #expect(given == [1, 3])
        #expect(inbox.unrecorded == 0 && inbox.giveUp().isEmpty)
    }
}

/// What the cutter does next, without a database and without waiting.
@Suite(.timeLimit(.minutes(15))) struct CutPaceTests {
    private func steps(_ cuts: [Cut], _ pace: inout CutPace) -> [CutPace.Step] { cuts.map { pace.cut($0, most: 100) } }

    @Test func `with nothing to do pauses double, and from 16 ms on the cutter sleeps`() {
        var pace = CutPace(longest: .seconds(1))
        let next = steps(Array(repeating: .events(0), count: 12), &pace).map(\.next)
        #expect(next.prefix(4) == [1, 2, 4, 8].map { .pause(.milliseconds($0)) }[...])
        #expect(
            next.dropFirst(4) == [16, 32, 64, 128, 256, 512, 1000, 1000].map { .sleep(from: .milliseconds($0)) }[...])
        pace.woke()
        #expect(pace.cut(.busy, most: 100).next == .pause(.milliseconds(1)))
    }

    @Test func `a full cut is followed by another, a small one by a moment in which more may gather`() {
        var pace = CutPace(longest: .seconds(1))
        let found = steps([.events(100), .events(40), .events(8), .events(1)], &pace)
        #expect(
            found.map(\.next) == [
                .again, .pause(.milliseconds(10)), .pause(.milliseconds(2)), .pause(.milliseconds(1)),
            ])
        #expect(found.map(\.wakesDispatcher) == [true, true, true, true])
    }

    @Test func `with enough ahead the dispatcher is woken once, and others' events are looked for soon`() {
        var pace = CutPace(longest: .seconds(1))
        let ahead = steps([.enough, .enough, .enough], &pace)
        #expect(ahead.map(\.next) == Array(repeating: .pause(.milliseconds(8)), count: 3))
        #expect(ahead.map(\.wakesDispatcher) == [true, false, false])
        let after = steps([.more, .enough], &pace)
        #expect(after.map(\.next) == [.pause(.milliseconds(1)), .pause(.milliseconds(8))])
        #expect(after.map(\.wakesDispatcher) == [false, true])
    }

    @Test func `a pause is no longer than the poll interval`() {
        var pace = CutPace(longest: .milliseconds(10))
        let next = steps(Array(repeating: .events(0), count: 8), &pace).map(\.next)
        #expect(next.suffix(3) == Array(repeating: .pause(.milliseconds(10)), count: 3)[...])
    }
}

/// What becomes of a delivery when its batch is dispatched, without a database.
@Suite(.timeLimit(.minutes(15))) struct RouteTests {
    private let now = Timestamp(microseconds: 1_000_000_000)

    private func route(
        deliverAt: Timestamp? = nil, mayEndTheWorker: Bool = false, verdict: FilterVerdict? = nil,
        state: EndpointState = EndpointState(), _ change: (inout EndpointConfiguration) -> Void = { _ in }
    ) -> Route {
        var configuration = EndpointConfiguration(name: "e", url: "https://example.com/")
        change(&configuration)
        let endpoint = Endpoint(EndpointID(rawValue: .random()), configuration, known: KnownState(state))
        return Route.of(
            deliverAt: deliverAt, to: endpoint, mayEndTheWorker: mayEndTheWorker, verdict: verdict, at: now)
    }

    @Test func `it is sent at once unless something is in the way`() {
        #expect(route() == .send)
        #expect(route(deliverAt: now) == .send)
        #expect(route(deliverAt: now + .seconds(-5)) == .send)
    }

    @Test func `one that is scheduled waits for its time`() {
        #expect(route(deliverAt: now + .seconds(5)) == .wait(.seconds(5)))
    }

    @Test func `one that is limited, ordered or paused goes to its lane`() throws {
        #expect(route { $0.isOrdered = true } == .wait(.zero))
        #expect(route { $0.maxConcurrency = 1 } == .wait(.zero))
        let rate = try RateLimit("1/s")
        #expect(route { $0.rates = [rate] } == .wait(.zero))
        var paused = EndpointState()
        paused.pause.until = .distantFuture
        #expect(route(state: paused) == .wait(.zero))
        var failing = EndpointState()
        failing.breaker = .open(.init(trips: 1, since: now))
        #expect(route(state: failing) == .wait(.zero))
    }

    @Test func `a filter that was not asked in time is asked in the lane, and one that cannot be answered ends it`() {
        #expect(route { $0.filter = "$.after" } == .wait(.zero))
        #expect(route(verdict: .holds) { $0.filter = "$.after" } == .send)
        #expect(route(verdict: .error("why")) { $0.filter = "$.after" } == .dead(.filterError, "why"))
    }

    @Test func `a batch that keeps losing its workers goes to the lanes`() {
        #expect(route(mayEndTheWorker: true) == .wait(.zero))
    }
}
