import Outbox
import Postgres
import Testing

@testable import Scheduler

/// How far a lane's reading has got, without a lane.
@Suite(.timeLimit(.minutes(15))) struct LaneScanTests {
    private let start = ContinuousClock.now
    private let server = ServerStart(time: Timestamp(microseconds: 1))

    private func time(_ seconds: Double) -> ContinuousClock.Instant {
        start + .milliseconds(Int((seconds * 1000).rounded()))
    }

    private func floor(_ microseconds: Int64) -> LaneFloor {
        LaneFloor(dueAt: Timestamp(microseconds: microseconds), server: server)
    }

    private func delivery(_ id: Int64, dueAt: Int64) throws -> WaitingDelivery {
        WaitingDelivery(
            event: EventKey(id: EventID(rawValue: id), createdAt: Timestamp(microseconds: 0)),
            dueAt: Timestamp(microseconds: dueAt), attempts: 0, crashes: 0, trigger: .first, isOrdered: false)
    }

    @Test func `each page begins after the last one, and an empty one at the floor has seen all`() throws {
        var scan = LaneScan(from: floor(10), at: start)
        #expect(scan.isAtFloor)
        scan.advance(past: try delivery(7, dueAt: 20))
        #expect(!scan.isAtFloor)
        #expect(scan.cursor == LaneCursor(dueAt: Timestamp(microseconds: 20), event: EventID(rawValue: 7)))
        scan.beginAgain(at: start)
        #expect(scan.isAtFloor && scan.cursor == .start(floor(10)))
    }

    @Test func `rows that were committed behind the cursor are found after a second`() throws {
        var scan = LaneScan(from: floor(10), at: start)
        scan.advance(past: try delivery(7, dueAt: 20))
        #expect(!scan.mustBeginAgain(at: time(1)))
        #expect(scan.mustBeginAgain(at: time(1.001)))
        scan.beginAgain(at: time(1.5))
        #expect(!scan.mustBeginAgain(at: time(2.5)))
        #expect(scan.mustBeginAgain(at: time(2.501)))
    }

    @Test func `the floor is asked for once a second, also when nobody could say`() {
        var scan = LaneScan(from: floor(10), at: start)
        #expect(!scan.mustRaiseFloor(at: time(1)))
        #expect(scan.mustRaiseFloor(at: time(1.001)))
        scan.raise(to: nil, at: time(2))
        #expect(scan.floor == floor(10) && !scan.mustRaiseFloor(at: time(3)))
        scan.raise(to: floor(30), at: time(4))
        #expect(scan.floor == floor(30))
        // The cursor follows with the next beginning.
        #expect(scan.cursor == .start(floor(10)))
        scan.beginAgain(at: time(4))
        #expect(scan.cursor == .start(floor(30)))
    }

    @Test func `what waits in memory is asked for once a second`() {
        var scan = LaneScan(from: floor(10), at: start)
        let asked = [0.5, 1, 1.1, 1.2, 2.1, 2.2].map { scan.isTimeToAsk(at: time($0)) }
        #expect(asked == [false, false, true, false, false, true])
    }
}
