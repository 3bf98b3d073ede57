import Outbox
import Synchronization

/// How long a process may believe that something is still its own.
///
///     claimed ──► trusted ──(renewed)──► trusted
///                    └──(trust ran out)──► doubtful ──(renewed)──► trusted
///                    └──(the database says so)──► lost, for good
///
/// It is measured on the monotonic clock, from before the statement that claimed or renewed: it
/// always ends before the database's `lease_until`. Only in the trusted state may a request be
/// started, and only one that ends in it.
struct LeaseTrust: Sendable {
    private(set) var until: ContinuousClock.Instant
    private(set) var isLost = false

    init(until: ContinuousClock.Instant) { self.until = until }

    /// True when it will certainly be ours for that long.
    func holds(for duration: Duration, at now: ContinuousClock.Instant) -> Bool { !isLost && now + duration <= until }

    /// The database prolonged it. One that is lost stays so.
    mutating func renew(until instant: ContinuousClock.Instant) { until = instant }

    /// The database says that it is not ours any more.
    mutating func lose() { isLost = true }
}

/// A batch or lane that this process holds: how long it may trust that, and how much of it is
/// unresolved.
///
///     claimed ──► trusted ──(renewed)──► trusted ──► every delivery recorded ──► deleted or released
///                    └──(trust ran out, or the database says so)──► lost: nothing more is sent under it
final class Lease: Sendable {
    let holder: Holder
    /// How often the batch or lane was claimed, this claim included.
    let claims: Int
    /// The events of a batch; none for a lane.
    let batchEvents: [EventKey]
    /// It is the lane of an endpoint that is failing: what goes out under it are probes.
    let isProbing: Bool

    private struct State {
        var trust: LeaseTrust
        var unresolved: Int
        var answers = 0
        var inFlight: Set<EventKey> = []
        var waiter: (most: Int, number: Int, continuation: CheckedContinuation<Void, Never>)?
        var waits = 0
    }

    private let state: Mutex<State>

    init(
        _ holder: Holder, claims: Int, events: [EventKey] = [], unresolved: Int, isProbing: Bool = false,
        trustedUntil: ContinuousClock.Instant
    ) {
        self.holder = holder
        self.claims = claims
        batchEvents = events
        self.isProbing = isProbing
        state = Mutex(State(trust: LeaseTrust(until: trustedUntil), unresolved: unresolved))
    }

    /// True when somebody else may hold it now, or held it before.
    var mayBeShared: Bool { claims > 1 || !isTrusted(for: .zero, at: .now) }

    /// True when it will certainly be ours for that long.
    func isTrusted(for duration: Duration, at now: ContinuousClock.Instant) -> Bool {
        state.withLock { $0.trust.holds(for: duration, at: now) }
    }

    /// True once the database has said that it is not ours.
    var isLost: Bool { state.withLock { $0.trust.isLost } }

    /// How many deliveries are not recorded yet.
    var unresolved: Int { state.withLock { $0.unresolved } }

    /// True when so many deliveries are the last ones of a batch that was ours throughout, and so
    /// is ours to delete: what was recorded under a lease that was lost may be on another server,
    /// and is looked up by whoever claims the batch next.
    func ends(with count: Int) -> Bool { state.withLock { $0.unresolved == count && !$0.trust.isLost } }

    /// The database prolonged it.
    func trust(until instant: ContinuousClock.Instant) {
        state.withLock { $0.trust.renew(until: instant) }
    }

    /// The database says that it is not ours any more.
    func lose() {
        state.withLock { $0.trust.lose() }
    }

    /// How often the receiver has answered so that one can see that it works.
    var answers: Int { state.withLock { $0.answers } }

    func noteResponse() { state.withLock { $0.answers += 1 } }

    /// The deliveries of a lane that are being worked on under it.
    var inFlight: Set<EventKey> { state.withLock { $0.inFlight } }

    /// More deliveries of the lane are being worked on under it.
    func add(_ events: [EventKey]) {
        state.withLock { state in
            state.unresolved += events.count
            state.inFlight.formUnion(events)
        }
    }

    /// So many more deliveries of the batch, or fewer, will be resolved; returns how many there are
    /// now.
    func expect(_ more: Int) -> Int {
        state.withLock { state in
            state.unresolved += more
            return state.unresolved
        }
    }

    /// Deliveries were recorded, or given up unsent; returns how many are left.
    ///
    /// - Parameter events: which, where it is a lane's.
    @discardableResult func resolve(_ count: Int, events: [EventKey] = []) -> Int {
        let (left, waiter) = state.withLock { state -> (Int, CheckedContinuation<Void, Never>?) in
            state.unresolved -= count
            state.inFlight.subtract(events)
            guard let waiter = state.waiter, state.unresolved <= waiter.most else { return (state.unresolved, nil) }
            state.waiter = nil
            return (state.unresolved, waiter.continuation)
        }
        waiter?.resume()
        return left
    }

    /// Waits until at most so many deliveries are unresolved. Only one task waits at a time. Every
    /// delivery is resolved some day: requests end by their timeouts, and what the database cannot
    /// take is kept until it can.
    func wait(untilUnresolvedAtMost most: Int) async {
        await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
            let isDone = state.withLock { state in
                precondition(state.waiter == nil, "only one task waits for a lease")
                state.waits += 1
                if state.unresolved > most { state.waiter = (most, state.waits, continuation) }
                return state.unresolved <= most
            }
            if isDone { continuation.resume() }
        }
    }

    /// Waits until something is resolved, but not longer than that.
    func waitForOne(upTo limit: Duration) async {
        await wait(untilUnresolvedAtMost: max(0, unresolved - 1), upTo: limit)
    }

    /// Waits until at most so many deliveries are unresolved, but not longer than that.
    func wait(untilUnresolvedAtMost most: Int, upTo limit: Duration) async {
        if unresolved <= most { return }
        let number = state.withLock { $0.waits + 1 }
        let timer = Task {
            try await Task.sleep(for: limit)
            giveUp(wait: number)
        }
        await wait(untilUnresolvedAtMost: most)
        timer.cancel()
    }

    private func giveUp(wait number: Int) {
        let waiter = state.withLock { state -> CheckedContinuation<Void, Never>? in
            guard let waiter = state.waiter, waiter.number == number else { return nil }
            state.waiter = nil
            return waiter.continuation
        }
        waiter?.resume()
    }
}
