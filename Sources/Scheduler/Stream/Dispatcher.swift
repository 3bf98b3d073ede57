import Bytewise
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

    /// So many batches may wait here for room at a time; with more the oldest goes to the lanes.
    private static let maxFeeds = 16
    /// With so many of a customer's batches here none of its own is claimed: others take their
    /// turn.
    private static let maxFeedsPerCustomer = 2
    /// So many deliveries of a batch are moved to the lanes at a stop.
    private static let maxAtStop = 1000

    func run() async {
        var floor = BatchFloor.none
        var (floorReadAt, floorBeganAt): (ContinuousClock.Instant?, ContinuousClock.Instant) = (nil, .now)
        var feeds: [BatchFeed] = []
        var smallAt = ContinuousClock.now
        await wakeup.run(complaint: "cannot claim events; trying again", to: parts.logger) {
            try await handOn(&feeds)
            guard parts.sender.hasRoomForSmall, parts.recorder.hasRoom, parts.memory.hasRoomForBatch else {
                return .milliseconds(50)
            }
            // With enough of one customer's flood in memory, others' few events still are claimed.
            let isSmall = !parts.sender.hasRoom
            if isSmall {
                if .now < smallAt { return .milliseconds(10) }
                smallAt = .now + .milliseconds(50)
            }
            if floorReadAt.map({ .now - $0 > .seconds(2) }) ?? true {
                // Numbers and turns go back with a database that was put back: what it makes then
                // lies before the floor. So that one is looked for from the beginning every now and
                // then, whether or not anybody noticed.
                if .now - floorBeganAt > parts.configuration.lease { (floor, floorBeganAt) = (.none, .now) }
                floor = try await parts.pool.run { [floor] in try $0.batchFloor(from: floor) }
                floorReadAt = .now
            }
            let isMore = try await claim(floor: floor, isSmall: isSmall, &feeds)
            if isMore { return nil }
            return isSmall || !feeds.isEmpty ? .milliseconds(10) : parts.configuration.pollInterval / 4
        }
        end(&feeds)
    }

    /// Claims and dispatches one batch; false when none was free.
    private func claim(floor: BatchFloor, isSmall: Bool, _ feeds: inout [BatchFeed]) async throws -> Bool {
        FailPoint.reach(.claimBefore)
        let leaseID = LeaseID.random()
        // From before the statement: our trust must end before the database's lease does.
        let asked = ContinuousClock.now
        let greedy = greedyCustomers(feeds)
        let claim: BatchClaim
        do {
            claim = try await parts.pool.run {
                [
                    configuration = parts.configuration, instance = parts.instance,
                    seen = parts.directory.current.seen, memory = parts.memory
                ] in
                try $0.claimBatch(
                    lease: leaseID, worker: configuration.worker, for: configuration.lease, floor: floor,
                    isSmall: isSmall, excluding: greedy, endpoints: seen, instance: instance, in: memory)
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
        var feed: BatchFeed
        do {
            let endpoints = try await parts.directory.refreshed(hasNews: claim.hasEndpointNews)
            feed = try await begin(batch, to: endpoints, claimedAt: asked)
            try await plan(&feed)
        } catch {
            // Nothing of it was dispatched: let another have it, or us again.
            try await parts.pool.run { try $0.releaseLeases(of: leaseID, countsAsClaim: true) }
            throw error
        }
        handOnWhatFits(&feed)
        if !feed.isPlanned || !feed.isHandedOn { feeds.append(feed) }
        return true
    }

    /// Customers of whose events enough wait here, or who have more in memory than is free.
    private func greedyCustomers(_ feeds: [BatchFeed]) -> [String] {
        let inMemory = parts.directory.current.hasSeveralCustomers ? parts.memory.greedy : []
        return (customersInSeveral(feeds) + inMemory).map(\.text)
    }

    private func customersInSeveral(_ feeds: [BatchFeed]) -> [ExactText] {
        guard feeds.count >= Self.maxFeedsPerCustomer else { return [] }
        let held = feeds.reduce(into: [ExactText: Int]()) { held, feed in
            for customer in feed.customers { held[customer, default: 0] += 1 }
        }
        return held.filter { $0.value >= Self.maxFeedsPerCustomer }.map(\.key)
    }

    private func begin(
        _ batch: ClaimedBatch, to endpoints: EndpointDirectory.Snapshot, claimedAt: ContinuousClock.Instant
    ) async throws -> BatchFeed {
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
        // One delivery more than there are stands for the events that none was made of yet.
        let lease = Lease(
            .batch(batch.held), claims: batch.claims, events: batch.events.map(\.key), unresolved: 1,
            trustedUntil: claimedAt + parts.configuration.lease)
        return BatchFeed(
            batch, under: lease, to: endpoints, resolved: resolved, until: .now + parts.configuration.lease / 2)
    }

    // MARK: Making deliveries

    /// Makes deliveries of the next events: those that can be sent wait in the feed for room, the
    /// others go to their lanes.
    private func plan(_ feed: inout BatchFeed) async throws {
        var next = feed
        let events = next.nextEvents()
        let batch = feed.batch
        var routed: Set<EndpointID> = []
        var matches = events.map { event in
            var matching: [Endpoint] = []
            feed.endpoints.forEach(wanting: event) { endpoint in
                // Where order is kept, the cut has put it into the lane already.
                if batch.ordered.contains(endpoint.id) {
                    routed.insert(endpoint.id)
                    return
                }
                let id = DeliveryID(event: event.key, endpoint: endpoint.id)
                if feed.resolved.isEmpty || !feed.resolved.contains(id) { matching.append(endpoint) }
            }
            return matching
        }
        // A batch that keeps losing its workers goes to the lanes, where a lethal payload is found
        // out alone.
        let mayEndTheWorker = batch.claims >= parts.configuration.maxBatchClaims
        let verdicts = mayEndTheWorker ? [:] : try await askFilters(of: events, &matches)
        // Nothing throws from here on.
        feed = next
        parts.laneWakeups.deliveriesWait(in: routed)
        let count = matches.reduce(0) { $0 + $1.count }
        if feed.lease.expect(count - (feed.isPlanned ? 1 : 0)) == 0 { return parts.recorder.finish(feed.lease) }
        parts.keeper.keep(feed.lease)

        let now = parts.clock.now
        var reports: [Recorder.Report] = []
        for (event, matching) in zip(events, matches) {
            for endpoint in matching {
                let delivery = DeliveryID(event: event.key, endpoint: endpoint.id)
                func report(_ resolution: Resolution, note: (String, String)? = nil) {
                    reports.append(
                        Recorder.Report(delivery, under: feed.lease, attempts: 0, resolution: resolution, note: note))
                }
                switch Route.of(
                    deliverAt: event.deliverAt, to: endpoint, mayEndTheWorker: mayEndTheWorker,
                    verdict: verdicts[delivery], at: now)
                {
                case .dead(let reason, let text): report(.dead(reason), note: (reason.rawValue, text))
                case .wait(let rest): report(.wait(rest, .first))
                case .send: feed.add(BatchFeed.Waiting(event: event, endpoint: endpoint))
                }
            }
        }
        parts.recorder.submit(reports)
    }

    /// Asks the filters of those that match, and takes out what they do not hold for. What has no
    /// verdict is asked in its lane.
    private func askFilters(of events: [Event], _ matches: inout [[Endpoint]]) async throws -> [DeliveryID:
        FilterVerdict]
    {
        var questions: [FilterGate.Question] = []
        for (event, matching) in zip(events, matches) {
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
        for (place, event) in events.enumerated() {
            matches[place].removeAll { verdicts[DeliveryID(event: event.key, endpoint: $0.id)] == .holdsNot }
        }
        return verdicts
    }

    // MARK: Handing on

    /// Hands on what there is room for, and forgets the feeds that are through.
    private func handOn(_ feeds: inout [BatchFeed]) async throws {
        // What is sent must be recorded: with too much unrecorded all of it waits.
        guard parts.recorder.hasRoom else { return }
        let crowding = feeds.count > Self.maxFeeds ? customersInSeveral(feeds) : []
        let all = Dictionary(uniqueKeysWithValues: crowding.map { ($0, Int.max) })
        for place in feeds.indices {
            // Whoever has much waiting here leaves first.
            moveToLanes(feeds[place].take(all), of: feeds[place])
            let isLate = .now >= feeds[place].until || crowding.isEmpty && feeds.count - place > Self.maxFeeds
            repeat {
                if feeds[place].isHandedOn, !feeds[place].isPlanned { try await plan(&feeds[place]) }
                if isLate {
                    moveToLanes(feeds[place].takeAll(), of: feeds[place])
                } else {
                    handOnWhatFits(&feeds[place])
                }
            } while feeds[place].isHandedOn && !feeds[place].isPlanned && parts.recorder.hasRoom
        }
        // What is left of a lost one is its new holder's.
        feeds.removeAll { $0.isHandedOn && $0.isPlanned || $0.lease.isLost }
    }

    private func handOnWhatFits(_ feed: inout BatchFeed) {
        if feed.isHandedOn { return }
        let rooms = parts.sender.room(for: feed.customers)
        enqueue(feed.take(rooms), of: feed)
    }

    private func enqueue(_ deliveries: [BatchFeed.Waiting], of feed: BatchFeed) {
        let startBy = ContinuousClock.now + parts.configuration.softDeadline
        parts.sender.enqueue(
            deliveries.map {
                Send(
                    event: $0.event, endpoint: $0.endpoint.id, of: $0.endpoint.customerID,
                    also: $0.endpoint.bytesInFlight(for: $0.event), number: feed.batch.claims,
                    trigger: .first, lease: feed.lease, startBy: startBy)
            })
    }

    private func moveToLanes(_ deliveries: [BatchFeed.Waiting], of feed: BatchFeed) {
        parts.recorder.submit(
            deliveries.map {
                Recorder.Report(
                    DeliveryID(event: $0.event.key, endpoint: $0.endpoint.id), under: feed.lease, attempts: 0,
                    resolution: .wait(.zero, .first))
            })
    }

    /// At a stop a little goes on at once: the sender puts off what it cannot start any more. Of
    /// more, whose records would stand before those of requests that end now, the next worker finds
    /// in the batch what is not done.
    private func end(_ feeds: inout [BatchFeed]) {
        for place in feeds.indices {
            if feeds[place].isPlanned, feeds[place].count <= Self.maxAtStop {
                enqueue(feeds[place].takeAll(), of: feeds[place])
            } else {
                parts.logger.info(
                    "a batch is left to another worker; it goes on when its lease has ended",
                    metadata: ["batch": "\(feeds[place].batch.id)"])
            }
        }
    }
}
