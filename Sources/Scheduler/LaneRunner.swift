import Logging
import Outbox
import Postgres
import ServiceLifecycle

/// Claims lanes with due deliveries and works each one off: page by page, oldest first, until nothing is due.
final class LaneRunner: Service {
    private let parts: EngineParts
    private let wakeup: Wakeup

    /// - Parameter wakeup: signalled when there may be work, or room for it.
    init(_ parts: EngineParts, wakeup: Wakeup) {
        self.parts = parts
        self.wakeup = wakeup
    }

    /// How many lanes one process works on at a time; each has up to a page of deliveries in memory.
    private static let mostLanes = 1024

    func run() async {
        await withDiscardingTaskGroup { lanes in
            await wakeup.run(complaint: "cannot claim lanes; trying again", to: parts.logger) {
                // A bounded number of lanes at a time, and none while the process stops.
                guard !parts.sender.isStopping, parts.keeper.lanes.count < Self.mostLanes else {
                    return .milliseconds(100)
                }
                let claim = try await claim()
                for (lane, lease) in claim.lanes { lanes.addTask { await self.work(lane, under: lease) } }
                if !claim.lanes.isEmpty { return nil }
                let pause = parts.configuration.pollInterval
                let untilDue = claim.nextDueAt.map {
                    Duration.microseconds($0.microseconds &- parts.clock.now.microseconds)
                }
                return max(.milliseconds(5), min(untilDue ?? pause, pause))
            }
        }
    }

    private func claim() async throws -> (lanes: [(ClaimedLane, Lease)], nextDueAt: Timestamp?) {
        let leaseID = LeaseID.random()
        let asked = ContinuousClock.now
        let excluded = parts.keeper.lanes + parts.directory.current.defective
        let claim: LaneClaim
        do {
            claim = try await parts.pool.run { [configuration = parts.configuration] in
                try $0.claimLanes(
                    lease: leaseID, worker: configuration.worker, for: configuration.lease, excluding: excluded)
            }
        } catch let error as PostgresError where error.isOutcomeUnknown {
            try await parts.pool.run { try $0.releaseLeases(of: leaseID) }
            throw error
        }
        parts.clock.set(claim.now)
        do { _ = try await parts.directory.refreshed(to: claim.generation) } catch {
            // Nothing can be sent without knowing the endpoints: let the lanes go again.
            try await parts.pool.run { try $0.releaseLeases(of: leaseID) }
            throw error
        }
        let lanes = claim.lanes.map { lane in
            let lease = Lease(
                .lane(lane.endpoint, lane.lease), claims: lane.claims, unresolved: 0, isProbing: lane.isFailing,
                trustedUntil: asked + parts.configuration.lease)
            parts.keeper.keep(lease)
            return (lane, lease)
        }
        return (lanes, claim.nextDueAt)
    }

    // MARK: One lane

    private func work(_ lane: ClaimedLane, under lease: Lease) async {
        do {
            // Closed here and open in the database, for the moment that the two clocks or snapshots differ: without a
            // pause it would be claimed and released at full speed.
            if !isWorkable(lane, lease) { try await Task.sleep(for: .milliseconds(100)) }
            // A lane that was not released cleanly may hold a payload that kills its worker. What was in flight then is
            // at the head of the line; the first rows go one at a time, each presumed lethal until it has an outcome.
            // Only a few: a receiver that hangs would hold up all the others, and a killer further back meets the same
            // treatment at the next claim, nearer to the head.
            var suspects = lane.claims > 1 ? Self.mostSuspects : 0
            var rates: [RateLimit] = []
            // How many requests a failing endpoint gets at a time: one to see whether it answers, and twice as many after
            // every round that went well.
            var ramp = lane.isFailing ? 1 : nil
            var recoveredAt = lane.isFailing ? lane.recoveredAt ?? .distantFuture : lane.recoveredAt
            var cursor = LaneCursor.start
            var isThrough = false
            while isWorkable(lane, lease) {
                // Found failing by others, or by ourselves a moment ago: the next owner begins with a probe.
                if ramp == nil, parts.directory.current.byID[lane.endpoint]?.settings.opens ?? 0 > 0 { break }
                guard parts.recorder.hasRoom, parts.sender.hasRoom(for: lane.endpoint) else {
                    try await Task.sleep(for: .milliseconds(50))
                    continue
                }
                let wanted = parts.directory.current.byID[lane.endpoint]?.rates ?? []
                if wanted != rates {
                    // What is under way is in the log then.
                    await lease.wait(untilUnresolvedAtMost: 0)
                    try await takeUp(wanted, of: lane.endpoint, lease)
                    rates = wanted
                }
                var page = try await parts.pool.run { [cursor, recoveredAt] in
                    try $0.lanePage(of: lane.endpoint, after: cursor, recoveredAt: recoveredAt)
                }
                if page.isEmpty {
                    // Rows may have been added behind the cursor: look again from the start, once nothing is in flight.
                    await lease.wait(untilUnresolvedAtMost: 0)
                    if cursor == .start {
                        isThrough = true
                        break
                    }
                    cursor = .start
                    continue
                }
                if let ramp { page = Array(page.prefix(ramp)) }
                if !rates.isEmpty {
                    // Nothing is taken into memory that cannot go out soon: an operator may still cancel it.
                    page = Array(page.prefix(parts.sender.startable(lane.endpoint, within: .seconds(2))))
                    if page.isEmpty {
                        try await Task.sleep(for: .milliseconds(200))
                        continue
                    }
                }
                if ramp != nil { await lease.wait(untilUnresolvedAtMost: 0) }
                let answers = lease.answers
                if let last = page.last { cursor = LaneCursor(dueAt: last.dueAt, event: last.eventID) }
                var sends: [Send] = []
                for delivery in page where isWorkable(lane, lease) {
                    if let reason = endOfTheLine(delivery) {
                        bury(delivery, reason, lane, lease)
                    } else if suspects > 0 || delivery.crashes > 0 {
                        suspects = max(0, suspects - 1)
                        // A probe goes alone: what was collected before it must be through first.
                        enqueue(sends, lease)
                        sends = []
                        try await probe(delivery, lane, lease)
                    } else if let event = delivery.event {
                        sends.append(send(event, delivery, lane, lease, crashesBefore: nil))
                    }
                }
                enqueue(sends, lease)
                if recoveredAt == nil, rates.isEmpty {
                    await lease.wait(untilUnresolvedAtMost: 100)
                    continue
                }
                await lease.wait(untilUnresolvedAtMost: 0)
                // A failure has closed it again by now.
                guard isWorkable(lane, lease) else { break }
                guard let size = ramp else { continue }
                // Only what the receiver said itself counts: a request that could not be made is no sign of life.
                guard lease.answers > answers else {
                    try await Task.sleep(for: .milliseconds(500))
                    continue
                }
                if recoveredAt == .distantFuture {
                    recoveredAt = try await parts.pool.run { try $0.beginRecovery(lane.endpoint, lease: lane.lease) }
                    if recoveredAt == nil { break }
                }
                ramp = size * 2
                if size * 2 > parts.directory.current.byID[lane.endpoint]?.maxInFlight ?? 1 {
                    let isClosed = try await parts.pool.run { try $0.closeBreaker(lane.endpoint, lease: lane.lease) }
                    if !isClosed { break }
                    ramp = nil
                }
            }
            // Everything is through: with nothing left to try, the ramp is over, too.
            if isThrough, let recoveredAt, recoveredAt != .distantFuture {
                if ramp != nil {
                    _ = try await parts.pool.run { try $0.closeBreaker(lane.endpoint, lease: lane.lease) }
                }
                try await parts.pool.run { try $0.endRecovery(lane.endpoint, lease: lane.lease) }
            }
        } catch {
            parts.logger.warning(
                "a lane was left; it goes on when its lease has ended",
                metadata: ["endpoint": "\(lane.endpoint)", "error": "\(error)"])
        }
        await lease.wait(untilUnresolvedAtMost: 0)
        parts.sender.unlimit(lane.endpoint, for: lease.holder)
        await release(lane, lease)
    }

    /// Goes on where the last owner of the lane stopped: the attempt log says what it sent. What it sent and did not live to
    /// record is not in there; its lease has ended since, and with it the short windows.
    private func takeUp(_ rates: [RateLimit], of endpoint: EndpointID, _ lease: Lease) async throws {
        if rates.isEmpty { return parts.sender.unlimit(endpoint, for: lease.holder) }
        let memory = RateLimiter.memory(of: rates)
        let ages = try await parts.pool.run {
            try $0.recentStarts(of: endpoint, atMost: memory.count, within: memory.period)
        }
        let now = ContinuousClock.now
        // The log's times are the last owner's idea of the database's clock, which may lag by as long as a claim took.
        let starts = ages.reversed().map { now - max(.zero, $0 - .milliseconds(100)) }
        parts.sender.limit(endpoint, for: lease.holder, with: RateLimiter(rates, starts: starts, now: now))
    }

    private static let mostSuspects = 10

    /// How often a payload may take its worker along before it is parked.
    private static let mostCrashes = 3

    private func endOfTheLine(_ delivery: WaitingDelivery) -> DeadReason? {
        if delivery.event == nil { return .eventMissing }
        return delivery.crashes >= Self.mostCrashes ? .workerCrashed : nil
    }

    /// Sends one delivery while nothing else of the lane is in flight, with the crash written down beforehand.
    private func probe(_ delivery: WaitingDelivery, _ lane: ClaimedLane, _ lease: Lease) async throws {
        guard let event = delivery.event else { return }
        await lease.wait(untilUnresolvedAtMost: 0)
        let pair = Pair(event: delivery.eventID, endpoint: lane.endpoint)
        let schedule = parts.directory.current.byID[lane.endpoint]?.retrySchedule ?? []
        let delay = RetryPolicy.delay(schedule, after: delivery.attempts + 1, jitter: 0.5) ?? parts.configuration.lease
        let isOurs = try await parts.pool.run { try $0.presumeCrash(pair, lane: lane.lease, dueIn: delay) }
        // False also when an operator cancelled the delivery meanwhile.
        guard isOurs else { return }
        enqueue([send(event, delivery, lane, lease, crashesBefore: delivery.crashes)], lease)
        await lease.wait(untilUnresolvedAtMost: 0)
    }

    private func send(
        _ event: Event, _ delivery: WaitingDelivery, _ lane: ClaimedLane, _ lease: Lease, crashesBefore: Int?
    ) -> Send {
        Send(
            event: event, endpoint: lane.endpoint, number: delivery.attempts + 1, trigger: delivery.trigger,
            lease: lease,
            startBy: nil, crashesBefore: crashesBefore)
    }

    private func bury(_ delivery: WaitingDelivery, _ reason: DeadReason, _ lane: ClaimedLane, _ lease: Lease) {
        let error =
            reason == .workerCrashed
            ? "its worker died in each of the last \(delivery.crashes) sends" : "the event's row is gone"
        let outcome = Outcome(
            pair: Pair(event: delivery.eventID, endpoint: lane.endpoint), eventAt: delivery.eventAt,
            holder: lease.holder,
            mayBeShared: lease.mayBeShared, attempt: nil, attempts: delivery.attempts, resolution: .dead(reason),
            note: (reason.rawValue, error))
        lease.add(1)
        parts.recorder.submit([Recorder.Report(outcome: outcome, lease: lease)])
    }

    private func isWorkable(_ lane: ClaimedLane, _ lease: Lease) -> Bool {
        !wakeup.isStopped && !Task.isCancelled && !parts.sender.isStopping
            && parts.sender.mayStart(lane.endpoint, under: lease)
    }

    private func enqueue(_ sends: [Send], _ lease: Lease) {
        lease.add(sends.count)
        parts.sender.enqueue(sends)
    }

    private func release(_ lane: ClaimedLane, _ lease: Lease) async {
        for _ in 0..<5 where !lease.isLost {
            do {
                _ = try await parts.pool.run { try $0.releaseLane(lane.endpoint, lease: lane.lease) }
                break
            } catch {
                do { try await Task.sleep(for: .milliseconds(200)) } catch { break }
            }
        }
        parts.keeper.forget(lease)
        wakeup.signal()
    }
}
