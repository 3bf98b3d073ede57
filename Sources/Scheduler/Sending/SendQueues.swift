import Bytewise
import DequeModule
import Outbox
import Postgres

/// One moment on both clocks: the database's says what holds, the local one how long something
/// takes.
struct Moment {
    let database: Timestamp
    let local: ContinuousClock.Instant
}

/// Requests, and the bytes of their events.
private struct Load {
    var count = 0
    var bytes = 0

    static func += (load: inout Load, send: Send) {
        load.count += 1
        load.bytes += send.event.size
    }

    static func -= (load: inout Load, send: Send) {
        load.count -= 1
        load.bytes -= send.event.size
    }

    static func - (load: Load, other: Load) -> Load {
        Load(count: load.count - other.count, bytes: load.bytes - other.bytes)
    }

    /// True when this is less than the other in both.
    func isWithin(_ other: Load) -> Bool { count < other.count && bytes < other.bytes }
}

/// What waits to be started and what is in flight, per endpoint and altogether. Every endpoint has
/// its own queue and cap; starting goes round the endpoints, so that none waits behind another's
/// queue. Bookkeeping only: it belongs under the sender's lock.
///
/// Requests and bytes in flight are few, and whoever holds them may do so for minutes. So an
/// endpoint gets another request only while it has less in flight than is free, and a customer the
/// same, where there are several: however many take what they can, as much as each of them has is
/// left for the next (dynamic thresholds: Choudhury and Hahne 1998). The last eighth is for first
/// requests of endpoints, which need only that anything is free.
struct SendQueues {
    /// How many sends from batches may wait before no more work is claimed.
    static let maxPending = 1000
    /// When so few are left, more should be claimed.
    static let minPending = maxPending / 2

    private let maxInFlight: Int
    private let maxBytes: Int
    /// One endpoint's share of the bytes.
    private var maxBytesPerEndpoint: Int { maxBytes / 8 }

    private var queues: [EndpointID: Queue] = [:]
    /// Endpoints that may have something to start, in turn.
    private var turn: Deque<EndpointID> = []
    private var pending = Load()
    /// Of those, the ones from batches: only they are bounded here, lanes bound themselves.
    private var pendingFromBatches = Load()
    private var inFlight = Load()
    private var inFlightFromLanes = Load()
    /// The rates of the endpoints whose lanes are ours, and for which claim of the lane they count.
    private var limiters: [EndpointID: (holder: Holder, limiter: RateLimiter)] = [:]
    /// Endpoints that wait for their rates, and until when the first of them does.
    private var resting: [EndpointID: ContinuousClock.Instant] = [:]
    /// What each customer's endpoints have in flight.
    private var customers: [ExactText: Share] = [:]
    /// Endpoints that have more in flight than their share, or whose customers have, in the order
    /// in which they found that out.
    private var waitingForShare: Deque<EndpointID> = []

    init(maxInFlight: Int, maxBytes: Int) {
        self.maxInFlight = maxInFlight
        self.maxBytes = maxBytes
    }

    /// What a customer's endpoints have in flight. A class, so that it is looked up once for as
    /// long as an endpoint is busy.
    private final class Share {
        var held = Load()
    }

    /// What waits for one endpoint. A class, because a value taken out of a dictionary and put back
    /// is copied whole.
    private final class Queue {
        var sends: Deque<Send> = []
        var pending = Load()
        var inFlight = Load()
        var isInTurn = false
        var isWaitingForShare = false
        /// Its customer's, from the first request that is in flight on.
        var share: Share?

        var isIdle: Bool { sends.isEmpty && inFlight.count == 0 }

        /// True when no request may be started now. One may always be, however large.
        func isAtCap(_ endpoint: Endpoint?, maxBytes: Int) -> Bool {
            inFlight.count >= endpoint?.maxInFlight ?? 1 || (inFlight.count > 0 && inFlight.bytes >= maxBytes)
        }
    }

    /// False while enough waits to be started: claim nothing more.
    var hasRoom: Bool { pendingFromBatches.count < Self.maxPending && pendingFromBatches.bytes < maxBytes }

    /// As much again for batches of customers with few events.
    var hasRoomForSmall: Bool {
        pendingFromBatches.count < Self.maxPending * 2 && pendingFromBatches.bytes < maxBytes
    }

    /// False while the events that wait for an endpoint take too much memory: read no more of its
    /// lane.
    func hasRoom(for endpoint: EndpointID) -> Bool {
        (queues[endpoint]?.pending.bytes ?? 0) < maxBytesPerEndpoint
    }

    var isAnythingInFlight: Bool { inFlight.count > 0 }

    mutating func add(_ send: Send) {
        let queue = queues[send.endpoint] ?? Queue()
        if queue.isIdle { queues[send.endpoint] = queue }
        queue.sends.append(send)
        queue.pending += send
        pending += send
        if send.isFromBatch { pendingFromBatches += send }
        takeTurn(send.endpoint, queue)
    }

    /// From here on sends to the endpoint keep to these rates.
    mutating func limit(_ endpoint: EndpointID, for holder: Holder, with limiter: RateLimiter) {
        limiters[endpoint] = (holder, limiter)
    }

    /// The holder has let go of the lane; a later one of this process keeps its own rates.
    mutating func unlimit(_ endpoint: EndpointID, for holder: Holder) {
        if limiters[endpoint]?.holder == holder { limiters[endpoint] = nil }
    }

    /// How many requests the endpoint's rates let start within a time, at most a page of them.
    func startable(_ endpoint: EndpointID, within time: Duration, at now: ContinuousClock.Instant) -> Int {
        limiters[endpoint]?.limiter.startable(from: now, within: time, atMost: WaitingDelivery.page)
            ?? WaitingDelivery.page
    }

    /// When the first endpoint that waits for its rate may go on.
    var nextStart: ContinuousClock.Instant? { resting.values.min() }

    /// Lets those go on whose time has come, or whose rates were changed.
    private mutating func wakeRested(_ endpoints: [EndpointID: Endpoint], at now: Moment) {
        for (id, time) in resting
        where time <= now.local || endpoints[id]?.rates(at: now.database) != limiters[id]?.limiter.limits {
            resting[id] = nil
            if let queue = queues[id] { takeTurn(id, queue) }
        }
    }

    /// The next send that the caps allow, in turn by endpoint; it counts as in flight from here on.
    /// Without an endpoint it is for one that is not known any more.
    ///
    /// - Parameter hasSeveralCustomers: false when all endpoints are of one, who then shares with
    ///   nobody.
    mutating func next(
        _ endpoints: [EndpointID: Endpoint], hasSeveralCustomers: Bool = false, at now: Moment
    ) -> (send: Send, endpoint: Endpoint?, isRunningLow: Bool)? {
        if !resting.isEmpty { wakeRested(endpoints, at: now) }
        guard inFlight.count < maxInFlight, inFlight.bytes < maxBytes else { return nil }
        for _ in 0..<turn.count {
            guard let id = turn.popFirst(), let queue = queues[id] else { continue }
            queue.isInTurn = false
            let endpoint = endpoints[id]
            guard !queue.isAtCap(endpoint, maxBytes: maxBytesPerEndpoint), let first = queue.sends.first else {
                // At its cap: a finished request of this endpoint brings it back into the turn.
                continue
            }
            guard hasShare(queue, first, of: endpoint, hasSeveralCustomers) else {
                waitForShare(id, queue)
                continue
            }
            // One from a batch is put off as soon as it is started: rates are for the lane's.
            if let endpoint, !first.isFromBatch, mustRest(endpoint, at: now) { continue }
            return (start(queue.sends.removeFirst(), queue, id), endpoint, isRunningLow(first))
        }
        return nil
    }

    /// True when the endpoint may have another request in flight beside what the others have.
    private mutating func hasShare(
        _ queue: Queue, _ send: Send, of endpoint: Endpoint?, _ hasSeveralCustomers: Bool
    ) -> Bool {
        let free = Load(count: maxInFlight, bytes: maxBytes) - inFlight
        // However many have large events, as much is left as the last one takes; what is larger
        // than an endpoint's share needs no more than that to be left.
        if inFlight.count > 0, min(send.event.size, maxBytesPerEndpoint) > free.bytes / 2 { return false }
        if queue.inFlight.count > 0 {
            let forSeconds = free - Load(count: maxInFlight / 8, bytes: maxBytes / 8)
            if !queue.inFlight.isWithin(forSeconds) { return false }
            // Lanes are where the slow endpoints are: a quarter of what may be in flight is not
            // theirs to take, but for first requests.
            let forLanes = Load(count: maxInFlight / 4 * 3, bytes: maxBytes / 4 * 3) - inFlightFromLanes
            if !send.isFromBatch, !queue.inFlight.isWithin(forLanes) { return false }
        } else {
            queue.share = share(of: endpoint?.customerID ?? "")
        }
        guard hasSeveralCustomers, let held = queue.share?.held, held.count > 0 else { return true }
        return held.isWithin(free)
    }

    private mutating func share(of customer: ExactText) -> Share {
        if let known = customers[customer] { return known }
        let share = Share()
        customers[customer] = share
        return share
    }

    /// It is asked again when something has ended.
    private mutating func waitForShare(_ id: EndpointID, _ queue: Queue) {
        if queue.isWaitingForShare { return }
        queue.isWaitingForShare = true
        waitingForShare.append(id)
    }

    /// Asks those again who wait for a share, the longest waiting first: a few when something has
    /// ended, which makes room for one or two, and all of them now and then, since those few may be
    /// in no need of it any more.
    mutating func askWhoWaitsForShare(atMost most: Int = .max) {
        for _ in 0..<min(most, waitingForShare.count) {
            guard let id = waitingForShare.popFirst(), let queue = queues[id] else { continue }
            queue.isWaitingForShare = false
            takeTurn(id, queue)
        }
    }

    /// True when the endpoint's rates do not let a request start now; otherwise it counts as
    /// started.
    private mutating func mustRest(_ endpoint: Endpoint, at now: Moment) -> Bool {
        let rates = endpoint.rates(at: now.database)
        guard let known = limiters[endpoint.id] else {
            // The holder of its lane is about to say what was sent; until then nothing is.
            if rates.isEmpty { return false }
            resting[endpoint.id] = now.local + .milliseconds(100)
            return true
        }
        var limiter = known.limiter.limits == rates ? known.limiter : known.limiter.changed(to: rates)
        let time = limiter.earliest() ?? now.local
        if time <= now.local { limiter.take(at: now.local) } else { resting[endpoint.id] = time }
        limiters[endpoint.id] = (known.holder, limiter)
        return time > now.local
    }

    private mutating func start(_ send: Send, _ queue: Queue, _ id: EndpointID) -> Send {
        queue.pending -= send
        pending -= send
        if send.isFromBatch { pendingFromBatches -= send } else { inFlightFromLanes += send }
        queue.inFlight += send
        inFlight += send
        queue.share?.held += send
        takeTurn(id, queue)
        return send
    }

    /// Once per descent, not once per request.
    private func isRunningLow(_ send: Send) -> Bool { send.isFromBatch && pendingFromBatches.count == Self.minPending }

    /// The send is not in flight any more.
    mutating func finish(_ send: Send) {
        inFlight -= send
        if !send.isFromBatch { inFlightFromLanes -= send }
        guard let queue = queues[send.endpoint] else { return }
        queue.inFlight -= send
        queue.share?.held -= send
        askWhoWaitsForShare(atMost: 4)
        if queue.isIdle { queues[send.endpoint] = nil }
        takeTurn(send.endpoint, queue)
    }

    /// Takes out what waits and should not; the closure also learns whether its endpoint is at its
    /// cap.
    mutating func remove(_ endpoints: [EndpointID: Endpoint], where shouldGo: (Send, _ isAtCap: Bool) -> Bool) -> [Send]
    {
        if pending.count == 0 { return [] }
        var removed: [Send] = []
        for (id, queue) in queues {
            let isAtCap = queue.isWaitingForShare || queue.isAtCap(endpoints[id], maxBytes: maxBytesPerEndpoint)
            let before = removed.count
            queue.sends.removeAll { send in
                let goes = shouldGo(send, isAtCap)
                if goes {
                    removed.append(send)
                    queue.pending -= send
                }
                return goes
            }
            // An endpoint without anything to start is passed over when its turn comes.
            if removed.count > before, queue.isIdle { queues[id] = nil }
        }
        for send in removed {
            pending -= send
            if send.isFromBatch { pendingFromBatches -= send }
        }
        return removed
    }

    /// True while nothing is free but for first requests of endpoints.
    var isFull: Bool {
        inFlight.count >= maxInFlight - maxInFlight / 8 || inFlight.bytes >= maxBytes - maxBytes / 8
    }

    /// Who has the most in flight.
    func holders(most: Int) -> [(EndpointID, requests: Int, bytes: Int)] {
        queues.sorted {
            ($0.value.inFlight.bytes, $0.value.inFlight.count) > ($1.value.inFlight.bytes, $1.value.inFlight.count)
        }
        .prefix(most).map { ($0.key, $0.value.inFlight.count, $0.value.inFlight.bytes) }
    }

    /// The events that wait to be started for an endpoint.
    func waiting(for endpoint: EndpointID) -> [EventKey] { queues[endpoint]?.sends.map(\.event.key) ?? [] }

    private mutating func takeTurn(_ id: EndpointID, _ queue: Queue) {
        if queue.isInTurn || queue.isWaitingForShare || queue.sends.isEmpty { return }
        queue.isInTurn = true
        turn.append(id)
    }
}
