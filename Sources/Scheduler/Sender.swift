import DequeModule
import Logging
import Outbox
import Postgres
import ServiceLifecycle
import Synchronization
import Transport

/// One pair that is to be sent, under a lease.
final class Send: Sendable {
    let event: Event
    let endpoint: EndpointID
    let number: Int
    let trigger: Trigger
    let lease: Lease
    /// A send from a batch that has not started by then, because its endpoint is at its cap, moves into the endpoint's
    /// lane: one slow endpoint never keeps a batch open.
    let startBy: ContinuousClock.Instant?
    /// Set when its row says already that the worker died in this send: whatever happens instead must be written down.
    /// So many crashes the row had before.
    let crashesBefore: Int?
    fileprivate let isFromBatch: Bool

    init(
        event: Event, endpoint: EndpointID, number: Int, trigger: Trigger, lease: Lease,
        startBy: ContinuousClock.Instant?, crashesBefore: Int? = nil
    ) {
        self.event = event
        self.endpoint = endpoint
        self.number = number
        self.trigger = trigger
        self.lease = lease
        self.startBy = startBy
        self.crashesBefore = crashesBefore
        isFromBatch = if case .batch = lease.holder { true } else { false }
    }
}

/// Starts requests within the caps and turns their ends into reports for the recorder.
///
///     dispatcher, lane runner ─► a queue per endpoint ─► transport ─► verdict ─► recorder
///
/// Every endpoint has its own queue and cap; starting goes round the endpoints, so that none waits behind another's
/// queue. Decisions are made under the lock; requests are built and reports made outside it.
final class Sender: Service {
    /// What waits for one endpoint. A class, because a value taken out of a dictionary and put back is copied whole.
    private final class Queue {
        var pending: Deque<Send> = []
        var pendingBytes = 0
        var inFlight = 0
        var bytesInFlight = 0
        var isInTurn = false

        /// True when no request may be started now. One may always be, however large.
        func isAtCap(_ endpoint: Endpoint?, mostBytes: Int) -> Bool {
            inFlight >= endpoint?.maxInFlight ?? 1 || (inFlight > 0 && bytesInFlight >= mostBytes)
        }
    }

    private struct State {
        var queues: [EndpointID: Queue] = [:]
        /// Endpoints that may have something to start, in turn.
        var turn: Deque<EndpointID> = []
        var pending = 0
        /// Of those, the ones from batches: only they are bounded here, lanes bound themselves.
        var pendingFromBatches = 0
        var pendingBytesFromBatches = 0
        var inFlight = 0
        var bytesInFlight = 0
        var inFlightFromLanes = 0
        var bytesInFlightFromLanes = 0
        var isStopping = false

        mutating func takeTurn(_ id: EndpointID, _ queue: Queue) {
            if queue.isInTurn || queue.pending.isEmpty { return }
            queue.isInTurn = true
            turn.append(id)
        }
    }

    /// How many sends may wait to be started before no more work is claimed.
    private static let mostPending = 1000
    /// When so few are left, the dispatcher is woken to claim more.
    private static let fewPending = mostPending / 2
    /// A request must end this long before its lease does, so that the outcome can still be written under it.
    private static let margin = Duration.seconds(2)

    private let transport: Transport
    private let tokens: AccessTokens
    private let recorder: Recorder
    private let directory: EndpointDirectory
    private let clock: DatabaseClock
    private let mostInFlight: Int
    private let mostBytes: Int
    private let mostBytesPerEndpoint: Int
    private let grace: Duration
    private let lease: Duration
    private let logger: Logger
    private let webhookPrefix: String
    private let state = Mutex(State())
    private let wakeup = Wakeup()
    /// Signalled when there may be room again.
    private let claiming: Wakeup

    init(
        transport: Transport, recorder: Recorder, waking claiming: Wakeup, directory: EndpointDirectory,
        clock: DatabaseClock, instance: String, configuration: EngineConfiguration, logger: Logger
    ) {
        webhookPrefix = "evt_\(instance)_"
        self.claiming = claiming
        self.transport = transport
        tokens = AccessTokens(transport: transport)
        self.recorder = recorder
        self.directory = directory
        self.clock = clock
        mostInFlight = configuration.mostInFlight
        mostBytes = configuration.mostBytes
        mostBytesPerEndpoint = configuration.mostBytes / 8
        grace = configuration.grace
        lease = configuration.lease
        self.logger = logger
    }

    /// False while enough waits to be started: claim nothing more.
    var hasRoom: Bool {
        state.withLock {
            $0.pendingFromBatches < Self.mostPending && $0.pendingBytesFromBatches < mostBytes && !$0.isStopping
        }
    }

    /// False while the events that wait for an endpoint take too much memory: read no more of its lane.
    func hasRoom(for endpoint: EndpointID) -> Bool {
        state.withLock { ($0.queues[endpoint]?.pendingBytes ?? 0) < mostBytesPerEndpoint }
    }

    /// True once nothing more is started.
    var isStopping: Bool { state.withLock { $0.isStopping } }

    /// True when a request to the endpoint may be started under the lease: both are open, and the request will have
    /// ended before the lease may end. A timeout longer than the lease relies on renewals; then a good part of the lease
    /// must be left.
    func mayStart(_ id: EndpointID, under held: Lease) -> Bool {
        guard let endpoint = directory.current.byID[id] else { return false }
        return mayStart(endpoint, at: clock.now, under: held)
    }

    private func mayStart(_ endpoint: Endpoint, at now: Timestamp, under held: Lease) -> Bool {
        guard endpoint.isOpen(at: now) else { return false }
        return held.isTrusted(for: min(endpoint.timeout + Self.margin, lease / 3))
    }

    /// Queues the sends and starts what can start.
    func enqueue(_ sends: [Send]) {
        if sends.isEmpty { return }
        let refused = state.withLock { state -> [Send] in
            if state.isStopping { return sends }
            for send in sends {
                let queue = state.queues[send.endpoint] ?? Queue()
                if queue.pending.isEmpty, queue.inFlight == 0 { state.queues[send.endpoint] = queue }
                queue.pending.append(send)
                queue.pendingBytes += send.event.size
                if send.isFromBatch { state.pendingBytesFromBatches += send.event.size }
                state.takeTurn(send.endpoint, queue)
            }
            state.pending += sends.count
            state.pendingFromBatches += sends.count { $0.isFromBatch }
            return []
        }
        putOff(refused)
        pump()
    }

    func run() async {
        await withGracefulShutdownHandler {
            // The tick moves what waited too long into the lanes.
            while !wakeup.isStopped && !Task.isCancelled {
                await wakeup.wait(upTo: .milliseconds(100))
                expire()
            }
            await drain()
        } onGracefulShutdown: {
            self.wakeup.stop()
        }
    }

    // MARK: Starting

    private func pump() {
        var unsendable: [Send] = []
        while let (send, endpoint) = next() {
            if !start(send, to: endpoint) { unsendable.append(send) }
        }
        putOff(unsendable)
    }

    /// The next send that the caps allow, in turn by endpoint; it counts as in flight from here on. Without an endpoint
    /// it is one that is not known any more.
    private func next() -> (Send, Endpoint?)? {
        let endpoints = directory.current.byID
        return state.withLock { state in
            guard state.inFlight < mostInFlight, state.bytesInFlight < mostBytes else { return nil }
            for _ in 0..<state.turn.count {
                guard let id = state.turn.popFirst(), let queue = state.queues[id] else { continue }
                queue.isInTurn = false
                let endpoint = endpoints[id]
                guard !queue.isAtCap(endpoint, mostBytes: mostBytesPerEndpoint), let first = queue.pending.first else {
                    // At its cap: a finished request of this endpoint brings it back into the turn.
                    continue
                }
                // Lanes are where the slow endpoints are: a quarter of what may be in flight is not theirs to take.
                let isCrowded =
                    state.inFlightFromLanes >= mostInFlight / 4 * 3
                    || state.bytesInFlightFromLanes >= mostBytes / 4 * 3
                if !first.isFromBatch, isCrowded {
                    state.takeTurn(id, queue)
                    continue
                }
                let send = queue.pending.removeFirst()
                queue.inFlight += 1
                queue.bytesInFlight += send.event.size
                state.inFlight += 1
                state.bytesInFlight += send.event.size
                state.pending -= 1
                queue.pendingBytes -= send.event.size
                if send.isFromBatch {
                    state.pendingFromBatches -= 1
                    state.pendingBytesFromBatches -= send.event.size
                    // Once per descent, not once per request.
                    if state.pendingFromBatches == Self.fewPending { claiming.signal() }
                } else {
                    state.inFlightFromLanes += 1
                    state.bytesInFlightFromLanes += send.event.size
                }
                state.takeTurn(id, queue)
                return (send, endpoint)
            }
            return nil
        }
    }

    /// Hands the request to the transport; false when it must not be sent now.
    private func start(_ send: Send, to endpoint: Endpoint?) -> Bool {
        guard let endpoint, mayStart(endpoint, at: clock.now, under: send.lease) else {
            finished(send)
            return false
        }
        guard let client = endpoint.oauth else {
            submit(send, to: endpoint, token: nil)
            return true
        }
        tokens.token(for: client) { result in
            switch result {
            case .success(let token):
                // Asking took its time.
                if self.mayStart(endpoint, at: self.clock.now, under: send.lease) {
                    self.submit(send, to: endpoint, token: token)
                } else {
                    self.finished(send)
                    self.putOff([send])
                }
            case .failure(let failure):
                self.complete(
                    send, endpoint: endpoint, startedAt: self.clock.now, token: nil, note: nil,
                    .unsent(.auth, failure.description))
            }
        }
        return true
    }

    private func submit(_ send: Send, to endpoint: Endpoint, token: AccessTokens.Token?) {
        let now = clock.now
        let delivery: DeliveryRequest
        do throws(RequestRefusal) {
            delivery = try HTTPRequest.delivery(
                of: send.event, to: endpoint, number: send.number, webhookID: "\(webhookPrefix)\(send.event.id)",
                at: now,
                token: token?.value)
        } catch {
            recorder.submit([
                report(
                    send, attempt: nil, attempts: send.number, resolution: .dead(.renderError),
                    note: (error.errorClass, storable(error.description)))
            ])
            return finished(send)
        }
        FailPoint.reach(.sendBefore, subject: send.event.type)
        transport.submit(delivery.request) { [note = delivery.note] exchange in
            FailPoint.reach(.sendAfter, subject: send.event.type)
            self.complete(send, endpoint: endpoint, startedAt: now, token: token, note: note, exchange)
        }
    }

    /// Runs on the transport thread.
    private func complete(
        _ send: Send, endpoint: Endpoint, startedAt: Timestamp, token: AccessTokens.Token?, note: String?,
        _ exchange: HTTPExchange
    ) {
        var verdict = RetryPolicy.judge(
            exchange, endpoint: endpoint, number: send.number, trigger: send.trigger, now: clock.now,
            jitter: .random(in: 0..<1))
        if let token {
            if exchange.status == 401, tokens.reject(token) { verdict.tryAgainWithNewToken() }
            if verdict.isSuccess { tokens.accept(token) }
        }
        let attempt = Attempt(
            exchange, verdict, number: send.number, trigger: send.trigger, startedAt: startedAt, note: note)
        var report = report(
            send, attempt: verdict.isAttempt ? attempt : nil, attempts: verdict.attempts,
            resolution: verdict.resolution,
            note: verdict.isAttempt ? nil : verdict.errorClass.map { ($0, verdict.error ?? $0) })
        report.effect = verdict.effect
        if let effect = verdict.effect { directory.close(send.endpoint, by: effect, at: clock.now) }
        recorder.submit([report])
        logger.log(
            level: verdict.isSuccess ? .debug : .info, verdict.isSuccess ? "delivered" : "attempt failed",
            metadata: [
                "event_id": "\(send.event.id)", "endpoint": "\(endpoint.name)", "attempt": "\(send.number)",
                "transaction_id": "\(send.event.transactionID)", "status": "\(exchange.status ?? 0)",
                "error_class": "\(verdict.errorClass ?? "-")", "duration_ms": "\(exchange.timing.total.milliseconds)",
            ])
        finished(send)
        pump()
    }

    private func finished(_ send: Send) {
        let endpoint = send.endpoint
        state.withLock { state in
            state.inFlight -= 1
            state.bytesInFlight -= send.event.size
            if !send.isFromBatch {
                state.inFlightFromLanes -= 1
                state.bytesInFlightFromLanes -= send.event.size
            }
            guard let queue = state.queues[endpoint] else { return }
            queue.inFlight -= 1
            queue.bytesInFlight -= send.event.size
            if queue.inFlight == 0, queue.pending.isEmpty { state.queues[endpoint] = nil }
            state.takeTurn(endpoint, queue)
        }
    }

    // MARK: Not starting

    /// Moves what has waited too long for its endpoint, or belongs to one that is closed now, out of the queues. What
    /// waits because this process is busy stays: in a lane it would wait for the same process.
    private func expire() {
        let now = ContinuousClock.now
        let databaseNow = clock.now
        let endpoints = directory.current.byID
        let expired = state.withLock { state in
            remove(from: &state) { id, queue, send in
                guard let endpoint = endpoints[id], endpoint.isOpen(at: databaseNow) else { return true }
                return queue.isAtCap(endpoint, mostBytes: mostBytesPerEndpoint)
                    && send.startBy.map { $0 <= now } ?? false
            }
        }
        putOff(expired)
        if !expired.isEmpty { claiming.signal() }
    }

    private func remove(from state: inout State, where shouldGo: (EndpointID, Queue, Send) -> Bool) -> [Send] {
        if state.pending == 0 { return [] }
        var removed: [Send] = []
        for (id, queue) in state.queues {
            let before = removed.count
            queue.pending.removeAll { send in
                let goes = shouldGo(id, queue, send)
                if goes {
                    removed.append(send)
                    queue.pendingBytes -= send.event.size
                }
                return goes
            }
            // An endpoint without anything to start is passed over when its turn comes.
            if removed.count > before, queue.inFlight == 0, queue.pending.isEmpty { state.queues[id] = nil }
        }
        state.pending -= removed.count
        state.pendingBytesFromBatches -= removed.reduce(0) { $0 + ($1.isFromBatch ? $1.event.size : 0) }
        state.pendingFromBatches -= removed.count { $0.isFromBatch }
        return removed
    }

    /// What is not sent now waits in its lane: pairs of a batch are moved there, pairs of a lane still are there.
    private func putOff(_ sends: [Send]) {
        var reports: [Recorder.Report] = []
        for send in sends {
            switch send.lease.holder {
            case .batch:
                reports.append(report(send, attempt: nil, attempts: 0, resolution: .wait(.zero, .first), note: nil))
            case .lane:
                // Still in its lane; only a crash that was presumed has to be taken back.
                guard let crashes = send.crashesBefore else {
                    send.lease.resolve(1)
                    continue
                }
                var report = report(
                    send, attempt: nil, attempts: send.number - 1, resolution: .wait(.zero, send.trigger), note: nil)
                report.outcome.crashes = crashes
                reports.append(report)
            }
        }
        recorder.submit(reports)
    }

    private func report(
        _ send: Send, attempt: Attempt?, attempts: Int, resolution: Resolution,
        note: (errorClass: String, error: String)?
    ) -> Recorder.Report {
        Recorder.Report(
            outcome: Outcome(
                pair: Pair(event: send.event.id, endpoint: send.endpoint), eventAt: send.event.createdAt,
                holder: send.lease.holder, mayBeShared: send.lease.mayBeShared, attempt: attempt, attempts: attempts,
                resolution: resolution, note: note),
            lease: send.lease)
    }

    // MARK: Stopping

    /// Puts off what has not started, waits for what is in flight within the grace period, then stops the rest.
    private func drain() async {
        let pending = state.withLock { state in
            state.isStopping = true
            return remove(from: &state) { _, _, _ in true }
        }
        putOff(pending)
        let deadline = ContinuousClock.now + grace
        while state.withLock({ $0.inFlight }) > 0, .now < deadline, !Task.isCancelled {
            do { try await Task.sleep(for: .milliseconds(20)) } catch { break }
        }
        // Stopping the transport completes what is left as cancelled, before it returns.
        await transport.stop()
        recorder.beginEnd(within: max(grace, .seconds(2)))
    }
}
