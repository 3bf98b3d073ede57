import Outbox
import Postgres
import Synchronization

/// What lanes sleep on: those that this process holds with nothing due in them, and the runner that
/// claims others.
///
/// A lane that is through is kept for a while. Claiming and releasing it for every delivery would
/// write its row three times for each, and its old versions stay, to be passed by at every look,
/// for as long as anybody holds a snapshot.
final class LaneWakeups: Sendable {
    private struct Sleeper {
        /// Nothing in the lane is due before.
        let floor: LaneFloor
        let wakeup: Wakeup
        /// Nobody has looked at it yet.
        var isNew = true
    }

    private struct State {
        var sleepers: [EndpointID: Sleeper] = [:]
        var isClaimWanted = true
    }

    /// The runner's.
    let runner = Wakeup()
    private let keeper: LeaseKeeper
    private let state = Mutex(State())

    init(_ keeper: LeaseKeeper) { self.keeper = keeper }

    /// Deliveries were added to these lanes: those that sleep here wake up, and somebody has to
    /// claim the others.
    func deliveriesWait(in lanes: Set<EndpointID>) {
        if lanes.isEmpty { return }
        wake(lanes)
        // One that is busy here finds them before it sleeps, or is looked at right after.
        if !lanes.isSubset(of: keeper.lanes) { wantClaim() }
    }

    /// There may be lanes to claim, or room for more.
    func wantClaim() {
        state.withLock { $0.isClaimWanted = true }
        runner.signal()
    }

    /// True when a claim was wanted since it was asked last.
    func takeClaimWish() -> Bool {
        state.withLock { state in
            defer { state.isClaimWanted = false }
            return state.isClaimWanted
        }
    }

    /// True while there is room for lanes that only sleep.
    var hasRoom: Bool { keeper.lanes.count < LaneRunner.maxLanes / 2 }

    /// Takes note of a look at the lanes that sleep, or at those of them that nobody has looked at;
    /// returns each with the time before which nothing in it is due.
    func look(onlyNew: Bool) -> [EndpointID: LaneFloor] {
        state.withLock { state in
            let seen = state.sleepers.filter { !onlyNew || $0.value.isNew }
            for lane in seen.keys { state.sleepers[lane]?.isNew = false }
            return seen.mapValues(\.floor)
        }
    }

    /// Wakes all that sleep.
    func wakeAll() { wake(look(onlyNew: false).keys) }

    /// Wakes those of the lanes that sleep.
    func wake(_ lanes: some Sequence<EndpointID>) {
        let sleepers = state.withLock { state in lanes.compactMap { state.sleepers.removeValue(forKey: $0) } }
        for sleeper in sleepers { sleeper.wakeup.signal() }
    }

    /// Sleeps until something is due in the lane, the runner stops, or the time is up.
    func sleep(in lane: EndpointID, from floor: LaneFloor, upTo limit: Duration) async {
        let wakeup = Wakeup()
        state.withLock { $0.sleepers[lane] = Sleeper(floor: floor, wakeup: wakeup) }
        // What was added before it slept is seen by the look that this asks for.
        runner.signal()
        if !runner.isStopped { await wakeup.wait(upTo: limit) }
        state.withLock { state in
            if state.sleepers[lane]?.wakeup === wakeup { state.sleepers[lane] = nil }
        }
    }
}
