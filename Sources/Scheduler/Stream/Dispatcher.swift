import Logging
import Outbox
import Postgres
import ServiceLifecycle

/// Claims batches and gives each delivery of event and endpoint to the sender, or to the endpoint's
/// lane.
final class Dispatcher: Service {
    private let parts: EngineParts
    private let wakeup: Wakeup

    /// - Parameter wakeup: signalled when there may be work, or room for it.
    init(_ parts: EngineParts, wakeup: Wakeup) {
        self.parts = parts
        self.wakeup = wakeup
    }

    func run() async {
        var floor = BatchFloor.none
        var (floorReadAt, floorBeganAt): (ContinuousClock.Instant?, ContinuousClock.Instant) = (nil, .now)
        await wakeup.run(complaint: "cannot claim events; trying again", to: parts.logger) {
            guard parts.sender.hasRoomForSmall, parts.recorder.hasRoom else { return .milliseconds(50) }
            // With enough of one customer's flood in memory, others' few events still are claimed.
            let isSmall = !parts.sender.hasRoom
            if floorReadAt.map({ .now - $0 > .seconds(2) }) ?? true {
                // Numbers and turns go back with a database that was put back: what it makes then
                // lies before the floor. So that one is looked for from the beginning every now and
                // then, whether or not anybody noticed.
                if .now - floorBeganAt > parts.configuration.lease { (floor, floorBeganAt) = (.none, .now) }
                floor = try await parts.pool.run { [floor] in try $0.batchFloor(from: floor) }
                floorReadAt = .now
            }
            let isMore = try await claim(floor: floor, isSmall: isSmall)
            return isMore ? nil : isSmall ? .milliseconds(50) : parts.configuration.pollInterval / 4
        }
    }

    /// Claims and dispatches one batch; false when none was free.
    private func claim(floor: BatchFloor, isSmall: Bool) async throws -> Bool {
        FailPoint.reach(.claimBefore)
        let leaseID = LeaseID.random()
        // From before the statement: our trust must end before the database's lease does.
        let asked = ContinuousClock.now
        let claim: BatchClaim
        do {
            claim = try await parts.pool.run {
                [configuration = parts.configuration, instance = parts.instance, seen = parts.directory.current.seen] in
                try $0.claimBatch(
                    lease: leaseID, worker: configuration.worker, for: configuration.lease, floor: floor,
                    isSmall: isSmall, endpoints: seen, instance: instance)
            }
        } catch let error as PostgresError where error.isOutcomeUnknown {
            // Whatever the lost response said: give it back, so that nobody has to wait for the
            // lease to end.
            try await parts.pool.run { try $0.releaseLeases(of: leaseID) }
            throw error
        }
        parts.clock.set(claim.now)
        guard let batch = claim.batch else {
            _ = try await parts.directory.refreshed(hasNews: claim.hasEndpointNews)
            return false
        }
        FailPoint.reach(.claimAfter)
        if batch.events.count < batch.size {
            parts.logger.critical(
                "events of a batch are gone from the event table",
                metadata: ["batch": "\(batch.id)", "missing": "\(batch.size - batch.events.count)"])
        }
        do {
            let endpoints = try await parts.directory.refreshed(hasNews: claim.hasEndpointNews)
            try await dispatch(batch, to: endpoints, claimedAt: asked)
        } catch {
            // Nothing of it was dispatched: let another have it, or us again.
            try await parts.pool.run { try $0.releaseLeases(of: leaseID, countsAsClaim: true) }
            throw error
        }
        return true
    }

    private func dispatch(
        _ batch: ClaimedBatch, to endpoints: EndpointDirectory.Snapshot, claimedAt: ContinuousClock.Instant
    ) async throws {
        // A former holder may have got somewhere: what it resolved or moved is not sent again.
        var resolved: Set<DeliveryID> = []
        if batch.claims > 1 {
            let ghosts: Int
            (resolved, ghosts) = try await parts.pool.run { [worker = parts.configuration.worker] connection in
                let events = batch.events.map(\.key)
                return (
                    try connection.resolvedDeliveries(of: events),
                    try connection.noteGhosts(numberedAs: events, worker: worker)
                )
            }
            if ghosts > 0 {
                parts.logger.error(
                    "events were sent that the database does not have any more: a failover or a restore has lost them; see: {doctor}",
                    metadata: ["events": "\(ghosts)"])
            }
        }
        let now = parts.clock.now
        var routed: Set<EndpointID> = []
        var matches = batch.events.map { event in
            var matching: [Endpoint] = []
            endpoints.forEach(wanting: event) { endpoint in
                // Where order is kept, the cut has put it into the lane already.
                if batch.ordered.contains(endpoint.id) {
                    routed.insert(endpoint.id)
                    return
                }
                if resolved.isEmpty || !resolved.contains(DeliveryID(event: event.key, endpoint: endpoint.id)) {
                    matching.append(endpoint)
                }
            }
            return matching
        }
        // A batch that keeps losing its workers goes to the lanes, where a lethal payload is found
        // out alone.
        let mayEndTheWorker = batch.claims >= parts.configuration.maxBatchClaims
        let verdicts = mayEndTheWorker ? [:] : try await askFilters(of: batch, &matches)
        let deliveries = matches.reduce(0) { $0 + $1.count }
        parts.laneWakeups.deliveriesWait(in: routed)
        let lease = Lease(
            .batch(batch.held), claims: batch.claims, events: batch.events.map(\.key), unresolved: deliveries,
            trustedUntil: claimedAt + parts.configuration.lease)
        if deliveries == 0 { return parts.recorder.finish(lease) }
        parts.keeper.keep(lease)

        var sends: [Send] = []
        var waiting: [Recorder.Report] = []
        for (event, matching) in zip(batch.events, matches) {
            for endpoint in matching {
                let delivery = DeliveryID(event: event.key, endpoint: endpoint.id)
                let route = Route.of(
                    deliverAt: event.deliverAt, to: endpoint, mayEndTheWorker: mayEndTheWorker,
                    verdict: verdicts[delivery], at: now)
                func report(_ resolution: Resolution, note: (String, String)? = nil) {
                    waiting.append(
                        Recorder.Report(delivery, under: lease, attempts: 0, resolution: resolution, note: note))
                }
                switch route {
                case .dead(let reason, let text): report(.dead(reason), note: (reason.rawValue, text))
                case .wait(let rest): report(.wait(rest, .first))
                case .send:
                    sends.append(
                        Send(
                            event: event, endpoint: endpoint.id, number: batch.claims, trigger: .first, lease: lease,
                            startBy: .now + parts.configuration.softDeadline))
                }
            }
            // A batch for many endpoints goes in as the sender takes it, not all at once.
            if sends.count + waiting.count >= Self.maxAtOnce {
                parts.recorder.submit(waiting)
                parts.sender.enqueue(sends)
                (sends, waiting) = ([], [])
                // At a stop the rest goes in at once: the sender puts off what it cannot start any
                // more.
                while !(parts.sender.hasRoom && parts.recorder.hasRoom), !wakeup.isStopped, !Task.isCancelled {
                    await wakeup.wait(upTo: .milliseconds(50))
                }
            }
        }
        parts.recorder.submit(waiting)
        parts.sender.enqueue(sends)
    }

    /// Asks the filters of those that match, and takes out what they do not hold for. What has no
    /// verdict is asked in its lane.
    private func askFilters(of batch: ClaimedBatch, _ matches: inout [[Endpoint]]) async throws -> [DeliveryID:
        FilterVerdict]
    {
        var questions: [FilterGate.Question] = []
        for (event, matching) in zip(batch.events, matches) {
            for endpoint in matching {
                if let filter = endpoint.configuration.filter {
                    questions.append(FilterGate.Question(event: event.key, endpoint: endpoint.id, filter: filter))
                }
            }
        }
        if questions.isEmpty { return [:] }
        var verdicts: [DeliveryID: FilterVerdict] = [:]
        for (question, verdict) in zip(questions, try await parts.filters.askForBatch(questions)) {
            if let verdict { verdicts[DeliveryID(event: question.event, endpoint: question.endpoint)] = verdict }
        }
        for (place, event) in batch.events.enumerated() {
            matches[place].removeAll { verdicts[DeliveryID(event: event.key, endpoint: $0.id)] == .holdsNot }
        }
        return verdicts
    }

    /// How many deliveries are handed on at a time.
    private static let maxAtOnce = 1000
}
