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
        load.bytes += send.bytes
    }

    static func -= (load: inout Load, send: Send) {
        load.count -= 1
        load.bytes -= send.bytes
    }

    static func - (load: Load, other: Load) -> Load {
        Load(count: load.count - other.count, bytes: load.bytes - other.bytes)
    }

    /// True when this is less than the other in both.
    func isWithin(_ other: Load) -> Bool { count < other.count && bytes < other.bytes }
}

/// What waits to be started and what is in flight, per endpoint, per customer and altogether.
/// Bookkeeping only: it belongs under the sender's lock.
///
///     turn:  customer ─► its endpoints in turn ─► one request ─► the next customer
///
/// Customers take turns, whatever the number of their endpoints, and each start costs its customer
/// a turn and one more for every 16 KiB (deficit round robin: Shreedhar and Varghese 1996).
///
/// Requests and bytes in flight are few, and whoever holds them may do so for minutes. So an
/// endpoint gets another request only while it has less in flight than is free, and a customer the
/// same, where there are several: however many take what they can, as much as each of them has is
/// left for the next (dynamic thresholds: Choudhury and Hahne 1998). The last eighth is for first
/// requests of endpoints, which need only that anything is free.
struct SendQueues {
    /// How many sends from batches may wait before no more work is claimed.
    static let maxPending = 1000
    /// So many sends a customer may have waiting, however many the others have.
    private static let minRoom = 16
    /// How many bytes cost as much as a request.
    private static let bytesPerTurn = 16 * 1024
    /// No customer owes more turns than that.
    private static let maxDebt = 64
    /// When so few are left, more should be claimed.
    static let minPending = maxPending / 2

    private let maxInFlight: Int
    private let maxBytes: Int
    /// One endpoint's share of the bytes.
    private var maxBytesPerEndpoint: Int { maxBytes / 8 }

    private var queues: [EndpointID: Queue] = [:]
    /// Customers with endpoints that may have something to start, in turn.
    private var turn: Deque<Customer> = []
    private var pending = 0
    /// Of those, the ones from batches: only they are bounded here, lanes bound themselves.
    private var pendingFromBatches = 0
    private var inFlight = Load()
    private var inFlightFromLanes = Load()
    /// The rates of the endpoints whose lanes are ours.
    var rates = LaneRates()
    private var customers: [ExactText: Customer] = [:]
    /// By how much requests in flight are larger than was counted.
    private var grown: [ObjectIdentifier: Int] = [:]
    /// Endpoints that have more in flight than their share, and customers that have, each in the
    /// order in which that was found out.
    private var waitingForShare: Deque<EndpointID> = []
    private var customersWaitingForShare: Deque<Customer> = []

    init(maxInFlight: Int, maxBytes: Int) {
        self.maxInFlight = maxInFlight
        self.maxBytes = maxBytes
    }

    /// What a customer's endpoints have waiting and in flight.
    private final class Customer {
        let id: ExactText
        var inFlight = Load()
        var pendingFromBatches = 0
        /// Its endpoints that may have something to start, in turn.
        var turn: Deque<EndpointID> = []
        var isInTurn = false
        var isWaitingForShare = false
        /// How many turns it has; one that has none lets the others go first.
        var credit = 0
        /// Its endpoints that have anything here.
        var endpoints = 0

        init(_ id: ExactText) { self.id = id }
    }

    /// What waits for one endpoint. A class, because a value taken out of a dictionary and put back
    /// is copied whole.
    private final class Queue {
        var sends: Deque<Send> = []
        var inFlight = Load()
        var isInTurn = false
        var isWaitingForShare = false
        let customer: Customer

        init(_ customer: Customer) { self.customer = customer }

        var isIdle: Bool { sends.isEmpty && inFlight.count == 0 }

        /// True when no request may be started now. One may always be, however large.
        func isAtCap(_ endpoint: Endpoint?, maxBytes: Int) -> Bool {
            inFlight.count >= endpoint?.maxInFlight ?? 1 || (inFlight.count > 0 && inFlight.bytes >= maxBytes)
        }
    }

    /// False while enough waits to be started: claim nothing more.
    var hasRoom: Bool { pendingFromBatches < Self.maxPending }

    /// As much again for batches of customers with few events.
    var hasRoomForSmall: Bool { pendingFromBatches < Self.maxPending * 2 }

    /// How many more sends from batches each of these customers may have waiting: alone what is
    /// left, and among others no more than is left then, so that something always is. Whoever has
    /// nothing waiting gets some in any case.
    func room(for customers: [ExactText], hasSeveralCustomers: Bool) -> [ExactText: Int] {
        let free = Self.maxPending - pendingFromBatches
        return customers.reduce(into: [:]) { rooms, id in
            let own = self.customers[id]?.pendingFromBatches ?? 0
            // Alone it may have a whole batch more, which then need not wait in two places.
            let share = hasSeveralCustomers ? (free - own) / 2 : free > 0 ? free + Self.minPending : 0
            rooms[id] = max(share, own == 0 && hasRoomForSmall ? Self.minRoom : 0)
        }
    }

    var isAnythingInFlight: Bool { inFlight.count > 0 }

    mutating func add(_ send: Send) {
        let queue = queue(for: send)
        queue.sends.append(send)
        pending += 1
        if send.isFromBatch {
            pendingFromBatches += 1
            queue.customer.pendingFromBatches += 1
        }
        takeTurn(send.endpoint, queue)
    }

    private mutating func queue(for send: Send) -> Queue {
        if let queue = queues[send.endpoint] { return queue }
        let customer = customers[send.customer] ?? Customer(send.customer)
        if customer.endpoints == 0 { customers[send.customer] = customer }
        customer.endpoints += 1
        let queue = Queue(customer)
        queues[send.endpoint] = queue
        return queue
    }

    /// Nothing of the endpoint is here any more.
    private mutating func forget(_ endpoint: EndpointID, _ queue: Queue) {
        queues[endpoint] = nil
        queue.customer.endpoints -= 1
        if queue.customer.endpoints == 0 { customers[queue.customer.id] = nil }
    }

    /// The next send that the caps allow, in turn by customer and endpoint; it counts as in flight
    /// from here on. Without an endpoint it is for one that is not known any more.
    ///
    /// - Parameter hasSeveralCustomers: false when all endpoints are of one, who then shares with
    ///   nobody.
    mutating func next(
        _ endpoints: [EndpointID: Endpoint], hasSeveralCustomers: Bool = false, at now: Moment
    ) -> (send: Send, endpoint: Endpoint?, isRunningLow: Bool)? {
        for id in rates.rested(endpoints, at: now) { if let queue = queues[id] { takeTurn(id, queue) } }
        guard inFlight.count < maxInFlight, inFlight.bytes < maxBytes else { return nil }
        while let customer = turn.first {
            guard !customer.turn.isEmpty else {
                turn.removeFirst()
                customer.isInTurn = false
                continue
            }
            if customer.credit <= 0 {
                customer.credit += 1
                turn.append(turn.removeFirst())
                continue
            }
            if hasSeveralCustomers, customer.inFlight.count > 0, !customer.inFlight.isWithin(free) {
                waitForShare(turn.removeFirst())
                continue
            }
            guard let id = customer.turn.popFirst(), let queue = queues[id] else { continue }
            queue.isInTurn = false
            let endpoint = endpoints[id]
            guard !queue.isAtCap(endpoint, maxBytes: maxBytesPerEndpoint), let first = queue.sends.first else {
                // At its cap: a finished request of this endpoint brings it back into the turn.
                continue
            }
            guard hasShare(queue, first) else {
                waitForShare(id, queue)
                continue
            }
            // One from a batch is put off as soon as it is started: rates are for the lane's.
            if let endpoint, !first.isFromBatch, rates.mustRest(endpoint, at: now) { continue }
            return (start(queue.sends.removeFirst(), queue, id), endpoint, isRunningLow(first))
        }
        return nil
    }

    private var free: Load { Load(count: maxInFlight, bytes: maxBytes) - inFlight }

    /// True when the endpoint may have another request in flight beside what the others have.
    private func hasShare(_ queue: Queue, _ send: Send) -> Bool {
        let free = free
        // However many have large events, as much is left as the last one takes; what is larger
        // than an endpoint's share needs no more than that to be left.
        if inFlight.count > 0, min(send.bytes, maxBytesPerEndpoint) > free.bytes / 2 { return false }
        if queue.inFlight.count == 0 { return true }
        let forSeconds = free - Load(count: maxInFlight / 8, bytes: maxBytes / 8)
        if !queue.inFlight.isWithin(forSeconds) { return false }
        // Lanes are where the slow endpoints are: a quarter of what may be in flight is not
        // theirs to take, but for first requests.
        let forLanes = Load(count: maxInFlight / 4 * 3, bytes: maxBytes / 4 * 3) - inFlightFromLanes
        return send.isFromBatch || queue.inFlight.isWithin(forLanes)
    }

    /// It is asked again when something has ended.
    private mutating func waitForShare(_ id: EndpointID, _ queue: Queue) {
        if queue.isWaitingForShare { return }
        queue.isWaitingForShare = true
        waitingForShare.append(id)
    }

    private mutating func waitForShare(_ customer: Customer) {
        customer.isInTurn = false
        customer.isWaitingForShare = true
        customersWaitingForShare.append(customer)
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
        for _ in 0..<min(most, customersWaitingForShare.count) {
            guard let customer = customersWaitingForShare.popFirst() else { continue }
            customer.isWaitingForShare = false
            takeTurn(customer)
        }
    }

    private mutating func start(_ send: Send, _ queue: Queue, _ id: EndpointID) -> Send {
        pending -= 1
        if send.isFromBatch {
            pendingFromBatches -= 1
            queue.customer.pendingFromBatches -= 1
        } else {
            inFlightFromLanes += send
        }
        queue.inFlight += send
        inFlight += send
        queue.customer.inFlight += send
        let cost = 1 + send.bytes / Self.bytesPerTurn
        queue.customer.credit = max(queue.customer.credit - cost, -Self.maxDebt)
        takeTurn(id, queue)
        return send
    }

    /// Once per descent, not once per request.
    private func isRunningLow(_ send: Send) -> Bool { send.isFromBatch && pendingFromBatches == Self.minPending }

    /// A send that is in flight takes more memory than was counted, or less: a template has made so
    /// much of its event.
    mutating func grow(_ send: Send, by bytes: Int) {
        grown[ObjectIdentifier(send), default: 0] += bytes
        add(bytes, for: send)
    }

    private mutating func add(_ bytes: Int, for send: Send) {
        inFlight.bytes += bytes
        if !send.isFromBatch { inFlightFromLanes.bytes += bytes }
        guard let queue = queues[send.endpoint] else { return }
        queue.inFlight.bytes += bytes
        queue.customer.inFlight.bytes += bytes
    }

    /// The send is not in flight any more.
    mutating func finish(_ send: Send) {
        if !grown.isEmpty, let bytes = grown.removeValue(forKey: ObjectIdentifier(send)) { add(-bytes, for: send) }
        inFlight -= send
        if !send.isFromBatch { inFlightFromLanes -= send }
        guard let queue = queues[send.endpoint] else { return }
        queue.inFlight -= send
        queue.customer.inFlight -= send
        askWhoWaitsForShare(atMost: 4)
        if queue.isIdle { return forget(send.endpoint, queue) }
        takeTurn(send.endpoint, queue)
    }

    /// Takes out what waits and should not; the closure also learns whether its endpoint is at its
    /// cap.
    mutating func remove(_ endpoints: [EndpointID: Endpoint], where shouldGo: (Send, _ isAtCap: Bool) -> Bool) -> [Send]
    {
        if pending == 0 { return [] }
        var removed: [Send] = []
        for (id, queue) in queues {
            let isAtCap =
                queue.isWaitingForShare || queue.customer.isWaitingForShare
                || queue.isAtCap(endpoints[id], maxBytes: maxBytesPerEndpoint)
            let before = removed.count
            queue.sends.removeAll { send in
                let goes = shouldGo(send, isAtCap)
                if goes {
                    removed.append(send)
                    if send.isFromBatch { queue.customer.pendingFromBatches -= 1 }
                }
                return goes
            }
            // An endpoint without anything to start is passed over when its turn comes.
            if removed.count > before, queue.isIdle { forget(id, queue) }
        }
        for send in removed {
            pending -= 1
            if send.isFromBatch { pendingFromBatches -= 1 }
        }
        return removed
    }

    /// What is taken of requests and bytes. Full is what has nothing free but for first requests of
    /// endpoints.
    var taken: (requests: Budget.Reading, bytes: Budget.Reading) {
        func reading(_ used: Int, _ limit: Int) -> Budget.Reading {
            Budget.Reading(used: used, limit: limit, isFull: used >= limit - limit / 8)
        }
        return (reading(inFlight.count, maxInFlight), reading(inFlight.bytes, maxBytes))
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
        queue.customer.turn.append(id)
        takeTurn(queue.customer)
    }

    private mutating func takeTurn(_ customer: Customer) {
        if customer.isInTurn || customer.isWaitingForShare || customer.turn.isEmpty { return }
        customer.isInTurn = true
        // What it did not use before is no claim to more now.
        customer.credit = min(customer.credit, 1)
        turn.append(customer)
    }
}
