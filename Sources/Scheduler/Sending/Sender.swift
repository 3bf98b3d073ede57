import Bytewise
import Logging
import Outbox
import Postgres
import ServiceLifecycle
import Synchronization
import Templates
import Transport

/// Starts requests within the caps and turns their ends into reports for the recorder.
///
///     dispatcher, lane runner ─► a queue per endpoint ─► transport ─► verdict ─► recorder
///
/// Decisions are made under the lock (`SendQueues`); requests are built and reports made outside it.
final class Sender: Service {
    private struct State {
        var queues: SendQueues
        var isStopping = false
        var full = FullWarning()
    }

    /// A request must end this long before its lease does, so that the outcome can still be written under it.
    private static let margin = Duration.seconds(2)

    private let transport: Transport
    private let tokens: AccessTokens
    private let computing: ComputePool
    private let failures = FailureCounter()
    private let recorder: Recorder
    private let directory: EndpointDirectory
    private let clock: DatabaseClock
    private let grace: Duration
    private let lease: Duration
    private let logger: Logger
    private let instance: String
    private let state: Mutex<State>
    private let wakeup = Wakeup()
    /// Signalled when there may be room again.
    private let claiming: Wakeup

    init(
        transport: Transport, recorder: Recorder, waking claiming: Wakeup, directory: EndpointDirectory,
        clock: DatabaseClock, instance: String, configuration: EngineConfiguration, logger: Logger
    ) throws {
        self.instance = instance
        computing = try ComputePool()
        self.claiming = claiming
        self.transport = transport
        tokens = AccessTokens(transport: transport)
        self.recorder = recorder
        self.directory = directory
        self.clock = clock
        state = Mutex(
            State(queues: SendQueues(maxInFlight: configuration.maxInFlight, maxBytes: configuration.maxBytes)))
        grace = configuration.grace
        lease = configuration.lease
        self.logger = logger
    }

    /// False while enough waits to be started: claim nothing more.
    var hasRoom: Bool { state.withLock { $0.queues.hasRoom && !$0.isStopping } }

    /// False while even what is small has to wait.
    var hasRoomForSmall: Bool { state.withLock { $0.queues.hasRoomForSmall && !$0.isStopping } }

    /// False while the events that wait for an endpoint take too much memory: read no more of its lane.
    func hasRoom(for endpoint: EndpointID) -> Bool { state.withLock { $0.queues.hasRoom(for: endpoint) } }

    /// From here on requests to the endpoint keep to these rates, on behalf of this holder of its lane.
    func limit(_ endpoint: EndpointID, for holder: Holder, with limiter: RateLimiter) {
        state.withLock { $0.queues.limit(endpoint, for: holder, with: limiter) }
    }

    /// The holder has let go of the lane.
    func unlimit(_ endpoint: EndpointID, for holder: Holder) {
        state.withLock { $0.queues.unlimit(endpoint, for: holder) }
    }

    /// How many requests the endpoint's rates let start within a time, at most 200.
    func startable(_ endpoint: EndpointID, within time: Duration) -> Int {
        state.withLock { $0.queues.startable(endpoint, within: time, at: .now) }
    }

    /// The events of the endpoint's lane that wait here to be sent.
    func waiting(for endpoint: EndpointID) -> [EventKey] { state.withLock { $0.queues.waiting(for: endpoint) } }

    /// Takes out deliveries of a lane that wait here, and are not in the lane any more: somebody has cancelled them.
    func withdraw(_ events: Set<EventKey>, of endpoint: EndpointID) {
        let withdrawn = state.withLock { state in
            state.queues.remove(directory.current.byID) { send, _ in
                !send.isFromBatch && send.endpoint == endpoint && events.contains(send.event.key)
            }
        }
        putOff(withdrawn)
    }

    /// True once nothing more is started.
    var isStopping: Bool { state.withLock { $0.isStopping } }

    /// True when a request to the endpoint may be started under the lease: both are open, and the request will have
    /// ended before the lease may end. A timeout longer than the lease relies on renewals; then a good part of the lease
    /// must be left.
    func mayStart(_ id: EndpointID, under held: Lease) -> Bool {
        guard let endpoint = directory.current.byID[id] else { return false }
        return mayStart(endpoint, isFromBatch: false, at: clock.now, under: held)
    }

    private func mayStart(_ endpoint: Endpoint, isFromBatch: Bool, at now: Timestamp, under held: Lease) -> Bool {
        guard endpoint.takes(isFromBatch: isFromBatch, at: now) else { return false }
        return held.isTrusted(for: min(endpoint.timeout + Self.margin, lease / 3), at: .now)
    }

    /// Queues the sends and starts what can start.
    func enqueue(_ sends: [Send]) {
        if sends.isEmpty { return }
        let refused = state.withLock { state -> [Send] in
            if state.isStopping { return sends }
            for send in sends { state.queues.add(send) }
            return []
        }
        putOff(refused)
        pump()
    }

    func run() async {
        await withGracefulShutdownHandler {
            // The tick moves what waited too long into the lanes; in between the rates of endpoints let some go.
            var lastExpiry = ContinuousClock.now
            while !wakeup.isStopped && !Task.isCancelled {
                let next = state.withLock { $0.queues.nextStart }
                let tick = lastExpiry + .milliseconds(100)
                await wakeup.wait(upTo: max(.milliseconds(1), min(tick, next ?? tick) - .now))
                if .now >= tick {
                    expire()
                    state.withLock { $0.queues.askWhoWaitsForShare() }
                    lastExpiry = .now
                }
                pump()
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

    private func next() -> (Send, Endpoint?)? {
        let known = directory.current
        let now = Moment(database: clock.now, local: .now)
        guard
            let next = state.withLock({
                $0.queues.next(known.byID, hasSeveralCustomers: known.hasSeveralCustomers, at: now)
            })
        else { return nil }
        if next.isRunningLow { claiming.signal() }
        return (next.send, next.endpoint)
    }

    /// Hands the request to the transport; false when it must not be sent now.
    private func start(_ send: Send, to endpoint: Endpoint?) -> Bool {
        guard let endpoint, mayStart(endpoint, isFromBatch: send.isFromBatch, at: clock.now, under: send.lease) else {
            finished(send)
            return false
        }
        guard let client = endpoint.oauth else {
            if isLarge(send, endpoint) {
                compute(send, to: endpoint, token: nil)
            } else {
                _ = submit(send, to: endpoint, token: nil)
            }
            return true
        }
        tokens.token(for: client, of: endpoint.customerID) { result in
            switch result {
            case .success(let token):
                if self.isLarge(send, endpoint) { return self.compute(send, to: endpoint, token: token) }
                self.submitLater(send, to: endpoint, token: token)
            case .failure(let failure):
                self.complete(
                    send, endpoint: endpoint, startedAt: self.clock.now, token: nil, note: nil,
                    .unsent(failure.ours ?? .auth, failure.description))
            }
        }
        return true
    }

    /// Above this a request is built, and a response judged, on the threads of `computing`: both take time by what strangers sent.
    private static let large = 16 * 1024

    private func isLarge(_ send: Send, _ endpoint: Endpoint) -> Bool {
        send.event.size > Self.large
            || endpoint.configuration.template.map { $0.source.utf8.count > Self.large } ?? false
    }

    private func compute(_ send: Send, to endpoint: Endpoint, token: AccessTokens.Token?) {
        computing.post(for: endpoint.customerID) { self.submitLater(send, to: endpoint, token: token) }
    }

    /// As `submit`, some time after the request was let start: whether it still may is looked at once more.
    private func submitLater(_ send: Send, to endpoint: Endpoint, token: AccessTokens.Token?) {
        if mayStart(endpoint, isFromBatch: send.isFromBatch, at: clock.now, under: send.lease) {
            if submit(send, to: endpoint, token: token) { return }
        } else {
            finished(send)
            putOff([send])
        }
        // Nothing went out, so no completion will look for the next one.
        wakeup.signal()
    }

    /// Builds the request and hands it over; false when it cannot be built, which is reported.
    private func submit(_ send: Send, to endpoint: Endpoint, token: AccessTokens.Token?) -> Bool {
        let now = clock.now
        let delivery: DeliveryRequest
        do throws(RequestError) {
            delivery = try HTTPRequest.delivery(
                of: send.event, to: endpoint, number: send.number,
                webhookID: send.event.key.webhookID(instance: instance), at: now, token: token?.value)
        } catch {
            recorder.submit([
                report(
                    send, attempt: nil, attempts: send.number, resolution: .dead(.renderError),
                    note: (error.errorClass, storable(error.description)))
            ])
            finished(send)
            return false
        }
        FailPoint.reach(.sendBefore, subject: send.event.type.text)
        transport.submit(delivery.request) { [note = delivery.note] exchange in
            FailPoint.reach(.sendAfter, subject: send.event.type.text)
            self.complete(send, endpoint: endpoint, startedAt: now, token: token, note: note, exchange)
        }
        return true
    }

    /// Runs on the transport thread.
    private func complete(
        _ send: Send, endpoint: Endpoint, startedAt: Timestamp, token: AccessTokens.Token?, note: String?,
        _ exchange: HTTPExchange
    ) {
        guard endpoint.rules.readBody, exchange.body.count > Self.large else {
            return conclude(send, endpoint: endpoint, startedAt: startedAt, token: token, note: note, exchange)
        }
        computing.post(for: endpoint.customerID) {
            self.conclude(send, endpoint: endpoint, startedAt: startedAt, token: token, note: note, exchange)
        }
    }

    private func conclude(
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
        judgeEndpoint(&verdict, of: send)
        let attempt = Attempt(
            exchange, verdict, number: send.number, trigger: send.trigger, startedAt: startedAt, note: note)
        var report = report(
            send, attempt: verdict.isAttempt ? attempt : nil, attempts: verdict.attempts,
            resolution: verdict.resolution,
            note: verdict.isAttempt ? nil : verdict.errorClass.map { ($0, verdict.error ?? $0) })
        report.said = verdict.endpointEvent.flatMap { self.endpoint(send)?.known.say($0, at: clock.now) }
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

    /// Trips the endpoint's breaker when this outcome is one failure too many, or a failed probe.
    private func judgeEndpoint(_ verdict: inout Verdict, of send: Send) {
        let isFailure = verdict.isEndpointFailure
        if send.lease.isProbing, verdict.showsThatItWorks { send.lease.noteResponse() }
        let trips = failures.count(send.endpoint, isFailure: isFailure) || isFailure && send.lease.isProbing
        guard trips || isFailure else { return }
        if trips {
            let trip = EndpointState.Event.trip(atLeast: .zero)
            verdict.endpointEvent = verdict.endpointEvent.map { $0.merged(with: trip) } ?? trip
        }
        // What had been in flight when it tripped is not given up either.
        if let endpoint = endpoint(send), trips || endpoint.state.breaker.failing != nil {
            verdict.waitForEndpoint(endpoint.retrySchedule)
        }
    }

    /// As it is known now.
    private func endpoint(_ send: Send) -> Endpoint? { directory.current.byID[send.endpoint] }

    private func finished(_ send: Send) { state.withLock { $0.queues.finish(send) } }

    // MARK: Not starting

    /// Moves what has waited too long for its endpoint, or belongs to one that is closed now, out of the queues. What
    /// waits because this process is busy stays: in a lane it would wait for the same process.
    private func expire() {
        let now = ContinuousClock.now
        let databaseNow = clock.now
        let endpoints = directory.current.byID
        let expired = state.withLock { state in
            state.queues.remove(endpoints) { send, isAtCap in
                guard let endpoint = endpoints[send.endpoint],
                    endpoint.takes(isFromBatch: send.isFromBatch, at: databaseNow)
                else { return true }
                return isAtCap && send.startBy.map { $0 <= now } ?? false
            }
        }
        putOff(expired)
        if !expired.isEmpty { claiming.signal() }
        sayWhoHoldsAll()
    }

    /// Nothing has been free for ten seconds.
    var complaint: Complaint? {
        let endpoints = directory.current.byID
        guard
            let (age, holders) = state.withLock({ state in
                state.full.age(at: .now).map { ($0, state.queues.holders(most: 3)) }
            })
        else { return nil }
        let text = holders.map { id, requests, bytes in
            "\(endpoints[id]?.name ?? id.description): \(requests) requests, \(bytes) bytes"
        }
        return Complaint(
            "worker_full", age: age,
            detail: "has all in flight that it may; most of that: \(text.joined(separator: "; "))",
            fix:
                "Endpoints wait for each other. Find out why these answer so slowly, or give them a shorter timeout; "
                + "or start another worker, or raise OUTBOX_MAX_IN_FLIGHT")
    }

    private func sayWhoHoldsAll() {
        let isDue = state.withLock { $0.full.isDue(isFull: $0.queues.isFull, at: .now) }
        guard isDue, let complaint else { return }
        logger.warning(
            "endpoints wait for each other",
            metadata: ["why": "this worker \(complaint.detail)", "fix": "\(complaint.fix)"])
    }

    /// What is not sent now waits in its lane: deliveries of a batch are moved there, deliveries of a lane still are there.
    private func putOff(_ sends: [Send]) {
        var reports: [Recorder.Report] = []
        for send in sends {
            switch send.lease.holder {
            case .batch:
                reports.append(report(send, attempt: nil, attempts: 0, resolution: .wait(.zero, .first), note: nil))
            case .lane:
                // Still in its lane; only a crash that was presumed has to be taken back.
                guard let crashes = send.crashesBefore else {
                    send.lease.resolve(1, events: [send.event.key])
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
        var outcome = Outcome(
            delivery: DeliveryID(event: send.event.key, endpoint: send.endpoint), holder: send.lease.holder,
            mayBeShared: send.lease.mayBeShared, attempt: attempt, attempts: attempts,
            resolution: resolution, note: note)
        outcome.isOrdered = send.isOrdered
        return Recorder.Report(outcome: outcome, lease: send.lease)
    }

    // MARK: Stopping

    /// Puts off what has not started, waits for what is in flight within the grace period, then stops the rest.
    private func drain() async {
        let pending = state.withLock { state in
            state.isStopping = true
            return state.queues.remove([:]) { _, _ in true }
        }
        putOff(pending)
        let deadline = ContinuousClock.now + grace
        while state.withLock({ $0.queues.isAnythingInFlight }), .now < deadline, !Task.isCancelled {
            do { try await Task.sleep(for: .milliseconds(20)) } catch { break }
        }
        // Stopping the transport completes what is left as cancelled, before it returns.
        await transport.stop()
        await computing.stop()
        recorder.beginEnd(within: max(grace, .seconds(2)))
    }
}

extension Endpoint {
    /// True when a request may be sent at that time. What was dispatched before its endpoint got a limit, or began to fail,
    /// goes through the lane.
    fileprivate func takes(isFromBatch: Bool, at now: Timestamp) -> Bool {
        isFromBatch ? accepts(.batch, at: now) && !isConstrained(at: now) : accepts(.laneOwner, at: now)
    }
}
