import Bytewise
import Logging
import Outbox
import Postgres
import Templates
import Transport

/// Makes one attempt: from the endpoint's token to the report for the recorder.
///
///     token ─► request built ─► transport ─► verdict ─► what it says of the endpoint ─► report
///
/// What takes long by what strangers sent is done on the threads of `computing`, the rest on the
/// caller's or the transport's.
final class AttemptRunner: Sendable {
    /// What becomes of an attempt: how it ended, once, and before that perhaps how large it is.
    enum News {
        /// Its body is so many bytes larger than was counted; less than 0 when it is smaller.
        case grew(Int)
        /// A request was made, and its outcome is on its way to the recorder.
        case sent
        /// No request could be made, and that is on its way to the recorder.
        case unsent
        /// Nothing is reported: when its turn came, it might not be started any more.
        case notStarted
    }

    /// A request must end this long before its lease does, so that the outcome can still be written
    /// under it.
    private static let margin = Duration.seconds(2)
    /// What costs more than so many bytes or steps is built and judged on the threads of
    /// `computing`; below it takes some microseconds.
    private static let large = 16 * 1024

    private let transport: Transport
    private let tokens: AccessTokens
    let computing: ComputePool
    private let failures = FailureCounter()
    private let recorder: Recorder
    private let directory: EndpointDirectory
    private let clock: DatabaseClock
    private let lease: Duration
    private let instance: String
    private let logger: Logger

    init(
        transport: Transport, recorder: Recorder, directory: EndpointDirectory, clock: DatabaseClock, instance: String,
        lease: Duration, logger: Logger
    ) throws {
        self.transport = transport
        tokens = AccessTokens(transport: transport)
        computing = try ComputePool()
        self.recorder = recorder
        self.directory = directory
        self.clock = clock
        self.lease = lease
        self.instance = instance
        self.logger = logger
    }

    /// True when a request to the endpoint may be started under the lease: both are open, and the
    /// request will have ended before the lease may end. A timeout longer than the lease relies on
    /// renewals; then a good part of the lease must be left.
    func mayStart(_ endpoint: Endpoint, isFromBatch: Bool = false, under held: Lease) -> Bool {
        guard endpoint.takes(isFromBatch: isFromBatch, at: clock.now) else { return false }
        return held.isTrusted(for: min(endpoint.timeout + Self.margin, lease / 3), at: .now)
    }

    /// Starts the attempt.
    ///
    /// - Parameter tell: called on any thread, possibly before this returns.
    func run(_ send: Send, to endpoint: Endpoint, _ tell: @escaping @Sendable (News) -> Void) {
        let attempt = Running(send: send, endpoint: endpoint, tell: tell)
        guard let client = endpoint.oauth else { return build(attempt) }
        guard mayStart(endpoint, isFromBatch: send.isFromBatch, under: send.lease) else { return tell(.notStarted) }
        tokens.token(for: client, of: endpoint.customerID) { result in
            switch result {
            case .success(let token): self.build(attempt.with(token))
            case .failure(let failure):
                self.conclude(attempt, .unsent(failure.ours ?? .auth, failure.description))
            }
        }
    }

    /// Stops the transport, which completes what is in flight as cancelled before this returns.
    func stop() async {
        await transport.stop()
        await computing.stop()
    }

    /// An attempt on its way.
    private struct Running: Sendable {
        let send: Send
        let endpoint: Endpoint
        let tell: @Sendable (News) -> Void
        var token: AccessTokens.Token?
        var startedAt: Timestamp?
        var note: String?

        func with(_ token: AccessTokens.Token) -> Running {
            var attempt = self
            attempt.token = token
            return attempt
        }
    }

    private func build(_ attempt: Running) {
        let event = attempt.send.event
        if max(event.size, attempt.endpoint.bodyBytes(for: event)) <= Self.large { return submit(attempt) }
        computing.post(for: attempt.endpoint.customerID) { self.submit(attempt) }
    }

    /// Builds the request and hands it over.
    private func submit(_ attempt: Running) {
        let (send, endpoint) = (attempt.send, attempt.endpoint)
        // Some time may have gone by since its turn came.
        guard mayStart(endpoint, isFromBatch: send.isFromBatch, under: send.lease) else {
            return attempt.tell(.notStarted)
        }
        var started = attempt
        let now = clock.now
        started.startedAt = now
        let delivery: DeliveryRequest
        do throws(RequestError) {
            delivery = try HTTPRequest.delivery(
                of: send.event, to: endpoint, number: send.number,
                webhookID: send.event.key.webhookID(instance: instance), at: now, token: attempt.token?.value)
        } catch {
            recorder.submit([
                Recorder.Report(
                    send, attempt: nil, attempts: send.number, resolution: .dead(.renderError),
                    note: (error.errorClass, storable(error.description)))
            ])
            return attempt.tell(.unsent)
        }
        started.note = delivery.note
        // Usually it is much less than it might have been.
        let counted = endpoint.bodyBytes(for: send.event)
        if counted > 0 { attempt.tell(.grew(delivery.request.body.count - counted)) }
        FailPoint.reach(.sendBefore, subject: send.event.type.text)
        transport.submit(delivery.request) { [started] exchange in
            FailPoint.reach(.sendAfter, subject: send.event.type.text)
            self.complete(started, exchange)
        }
    }

    /// Runs on the transport thread.
    private func complete(_ attempt: Running, _ exchange: HTTPExchange) {
        let rules = attempt.endpoint.rules
        guard rules.readBody, rules.cost(of: exchange.body.count) > Self.large else {
            return conclude(attempt, exchange)
        }
        computing.post(for: attempt.endpoint.customerID) { self.conclude(attempt, exchange) }
    }

    private func conclude(_ running: Running, _ exchange: HTTPExchange) {
        let (send, endpoint) = (running.send, running.endpoint)
        let now = clock.now
        var verdict = RetryPolicy.judge(
            exchange, endpoint: endpoint, number: send.number, trigger: send.trigger, now: now,
            jitter: .random(in: 0..<1))
        if let token = running.token {
            if exchange.status == 401, tokens.reject(token) { verdict.tryAgainWithNewToken() }
            if verdict.isSuccess { tokens.accept(token) }
        }
        judgeEndpoint(&verdict, of: send)
        let attempt = Attempt(
            exchange, verdict, number: send.number, trigger: send.trigger, startedAt: running.startedAt ?? now,
            note: running.note)
        var report = Recorder.Report(
            send, attempt: verdict.isAttempt ? attempt : nil, attempts: verdict.attempts,
            resolution: verdict.resolution,
            note: verdict.isAttempt ? nil : verdict.errorClass.map { ($0, verdict.error ?? $0) })
        report.said = verdict.endpointEvent.flatMap { known(send)?.known.say($0, at: clock.now) }
        recorder.submit([report])
        logger.log(
            level: verdict.isSuccess ? .debug : .info, verdict.isSuccess ? "delivered" : "attempt failed",
            metadata: [
                "event_id": "\(send.event.id)", "endpoint": "\(endpoint.name)", "attempt": "\(send.number)",
                "transaction_id": "\(send.event.transactionID)", "status": "\(exchange.status ?? 0)",
                "error_class": "\(verdict.errorClass ?? "-")", "duration_ms": "\(exchange.timing.total.milliseconds)",
            ])
        running.tell(running.startedAt == nil ? .unsent : .sent)
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
        if let endpoint = known(send), trips || endpoint.state.breaker.failing != nil {
            verdict.waitForEndpoint(endpoint.retrySchedule)
        }
    }

    /// The endpoint as it is known now.
    private func known(_ send: Send) -> Endpoint? { directory.current.byID[send.endpoint] }
}

extension Endpoint {
    /// True when a request may be sent at that time. What was dispatched before its endpoint got a
    /// limit, or began to fail, goes through the lane.
    func takes(isFromBatch: Bool, at now: Timestamp) -> Bool {
        isFromBatch ? accepts(.batch, at: now) && !isConstrained(at: now) : accepts(.laneOwner, at: now)
    }
}
