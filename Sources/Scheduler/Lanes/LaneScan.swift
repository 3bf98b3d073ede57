import Outbox
import Postgres

/// How far the owner of a lane has read it, and what is to be looked at again.
///
///     floor ──page──► cursor ──page──► cursor ──► … ──(a second is over, or nothing is found)──► back to the floor
///
/// Rows may be committed behind the cursor, so it never stays away from the floor for long; the
/// floor moves up with what was delivered. Pure: times are passed in.
struct LaneScan {
    /// How long the cursor stays away from the floor, and how long what is known of the lane is
    /// believed.
    static let maxSweep = Duration.seconds(1)

    /// Nothing in the lane is due before.
    private(set) var floor: LaneFloor
    /// The next page begins after it.
    private(set) var cursor: LaneCursor
    /// When the cursor was last at the floor, when the floor was last asked for, and when the lane
    /// was last asked whether what waits in memory is still in it.
    private var (leftFloorAt, raisedAt, askedAt):
        (ContinuousClock.Instant, ContinuousClock.Instant, ContinuousClock.Instant)

    init(from floor: LaneFloor, at now: ContinuousClock.Instant) {
        self.floor = floor
        cursor = .start(floor)
        (leftFloorAt, raisedAt, askedAt) = (now, now, now)
    }

    /// True when a page that begins here sees the whole lane.
    var isAtFloor: Bool { cursor == .start(floor) }

    /// True when rows behind the cursor have waited long enough.
    func mustBeginAgain(at now: ContinuousClock.Instant) -> Bool { now - leftFloorAt > Self.maxSweep }

    func mustRaiseFloor(at now: ContinuousClock.Instant) -> Bool { now - raisedAt > Self.maxSweep }

    mutating func beginAgain(at now: ContinuousClock.Instant) {
        leftFloorAt = now
        cursor = .start(floor)
    }

    /// The floor was asked for; nil when nobody could say.
    mutating func raise(to floor: LaneFloor?, at now: ContinuousClock.Instant) {
        raisedAt = now
        if let floor { self.floor = floor }
    }

    /// Everything up to this delivery is through, or on its way.
    mutating func advance(past delivery: WaitingDelivery) {
        cursor = LaneCursor(dueAt: delivery.dueAt, event: delivery.event.id)
    }

    /// True once a second: it is time to ask whether what waits in memory was cancelled.
    mutating func isTimeToAsk(at now: ContinuousClock.Instant) -> Bool {
        guard now - askedAt > Self.maxSweep else { return false }
        askedAt = now
        return true
    }
}
