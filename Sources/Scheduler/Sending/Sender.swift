import Bytewise
import Logging
import Outbox
import Postgres
import ServiceLifecycle
import Synchronization

/// Starts requests within the caps, and puts off what cannot be started.
///
///     dispatcher, lane runner ─► a queue per endpoint ─► attempt ─► recorder
///
/// Decisions are made under the lock (`SendQueues`); attempts are made outside it
/// (`AttemptRunner`).
final class Sender: Service {
    private struct State {
        var queues: SendQueues
        var isStopping = false
    }

    private let attempts: AttemptRunner
    private let recorder: Recorder
    private let directory: EndpointDirectory
    private let clock: DatabaseClock
    private let grace: Duration
    private let logger: Logger
    private let state: Mutex<State>
    private let wakeup = Wakeup()
    /// Signalled when there may be room again.
    private let claiming: Wakeup

    init(
        attempts: AttemptRunner, recorder: Recorder, waking claiming: Wakeup, directory: EndpointDirectory,
        clock: DatabaseClock, configuration: EngineConfiguration, logger: Logger
    ) {
        self.attempts = attempts
        self.recorder = recorder
        self.claiming = claiming
        self.directory = directory
        self.clock = clock
        state = Mutex(
            State(queues: SendQueues(maxInFlight: configuration.maxInFlight, maxBytes: configuration.maxBytes)))
        grace = configuration.grace
        self.logger = logger
    }

    /// False while enough waits to be started: claim nothing more.
    var hasRoom: Bool { state.withLock { $0.queues.hasRoom && !$0.isStopping } }

    /// False while even what is small has to wait.
    var hasRoomForSmall: Bool { state.withLock { $0.queues.hasRoomForSmall && !$0.isStopping } }

    /// How many more sends from batches may wait here, by customer.
    func room(for customers: [ExactText]) -> [ExactText: Int] {
        let hasSeveral = directory.current.hasSeveralCustomers
        return state.withLock { $0.queues.room(for: customers, hasSeveralCustomers: hasSeveral) }
    }

    /// From here on requests to the endpoint keep to these rates, on behalf of this holder of its
    /// lane.
    func limit(_ endpoint: EndpointID, for holder: Holder, with limiter: RateLimiter) {
        state.withLock { $0.queues.rates.limit(endpoint, for: holder, with: limiter) }
    }

    /// The holder has let go of the lane.
    func unlimit(_ endpoint: EndpointID, for holder: Holder) {
        state.withLock { $0.queues.rates.unlimit(endpoint, for: holder) }
    }

    /// How many requests the endpoint's rates let start within a time, at most 200.
    func startable(_ endpoint: EndpointID, within time: Duration) -> Int {
        state.withLock { $0.queues.rates.startable(endpoint, within: time, at: .now) }
    }

    /// The events of the endpoint's lane that wait here to be sent.
    func waiting(for endpoint: EndpointID) -> [EventKey] { state.withLock { $0.queues.waiting(for: endpoint) } }

    /// Takes out deliveries of a lane that wait here, and are not in the lane any more: somebody
    /// has cancelled them.
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

    /// True when a request from the endpoint's lane may be started under the lease.
    func mayStart(_ id: EndpointID, under held: Lease) -> Bool {
        directory.current.byID[id].map { attempts.mayStart($0, under: held) } ?? false
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
            // The tick moves what waited too long into the lanes; in between the rates of endpoints
            // let some go.
            var lastExpiry = ContinuousClock.now
            while !wakeup.isStopped && !Task.isCancelled {
                let next = state.withLock { $0.queues.rates.nextStart }
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
        // The rest is the sender's own task's: whoever calls this has other work.
        for _ in 0..<Self.maxStarts {
            guard let (send, endpoint) = next() else { return }
            guard let endpoint else {
                notStarted(send)
                continue
            }
            attempts.run(send, to: endpoint) { news in
                switch news {
                case .grew(let bytes): self.state.withLock { $0.queues.grow(send, by: bytes) }
                case .sent:
                    self.finished(send)
                    self.pump()
                // Possibly within `run`: this loop, or the next one, goes on.
                case .unsent:
                    self.finished(send)
                    self.wakeup.signal()
                case .notStarted:
                    self.notStarted(send)
                    self.wakeup.signal()
                }
            }
        }
        wakeup.signal()
    }

    /// How many requests are started in one go.
    private static let maxStarts = 128

    private func finished(_ send: Send) { state.withLock { $0.queues.finish(send) } }

    private func notStarted(_ send: Send) {
        finished(send)
        putOff([send])
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

    // MARK: Not starting

    /// Moves what has waited too long for its endpoint, or belongs to one that is closed now, out
    /// of the queues. What waits because this process is busy stays: in a lane it would wait for
    /// the same process.
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
    }

    // MARK: What is taken

    /// The requests in flight, and the bytes that they take.
    var taken: (requests: Budget.Reading, bytes: Budget.Reading) { state.withLock { $0.queues.taken } }

    /// The endpoints that have most in flight.
    var holders: [String] {
        let endpoints = directory.current.byID
        return state.withLock { $0.queues.holders(most: 3) }.map { id, requests, bytes in
            "\(endpoints[id]?.name ?? id.description): \(requests) requests, \(bytes) bytes"
        }
    }

    /// What is not sent now waits in its lane: deliveries of a batch are moved there, deliveries of
    /// a lane still are there.
    private func putOff(_ sends: [Send]) {
        var reports: [Recorder.Report] = []
        for send in sends {
            switch send.lease.holder {
            case .batch:
                reports.append(
                    Recorder.Report(send, attempt: nil, attempts: 0, resolution: .wait(.zero, .first), note: nil))
            case .lane:
                // Still in its lane; only a crash that was presumed has to be taken back.
                guard let crashes = send.crashesBefore else {
                    send.lease.resolve(1, events: [send.event.key])
                    continue
                }
                var report = Recorder.Report(
                    send, attempt: nil, attempts: send.number - 1, resolution: .wait(.zero, send.trigger), note: nil)
                report.outcome.crashes = crashes
                reports.append(report)
            }
        }
        recorder.submit(reports)
    }

    // MARK: Stopping

    /// Puts off what has not started, waits for what is in flight within the grace period, then
    /// stops the rest.
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
        await attempts.stop()
        recorder.beginEnd(within: max(grace, .seconds(2)))
    }
}
