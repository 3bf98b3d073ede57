import Bytewise
import Logging
import Outbox
import Postgres
import ServiceLifecycle

/// Claims lanes with due deliveries and works each one off, and looks after those that sleep
/// meanwhile.
final class LaneRunner: Service {
    private let parts: EngineParts
    private let wakeups: LaneWakeups

    init(_ parts: EngineParts) {
        self.parts = parts
        wakeups = parts.laneWakeups
    }

    /// How many lanes one process works on at a time; each has some deliveries in memory. As many
    /// as there are requests: who has a lane may have one request in flight that takes minutes.
    static let maxLanes = 4096
    /// How soon deliveries are seen that another worker has added to a lane that sleeps here.
    private static let betweenLooks = Duration.milliseconds(50)

    func run() async {
        await withDiscardingTaskGroup { lanes in
            var (claimAt, lookAt) = (ContinuousClock.now, ContinuousClock.now)
            await wakeups.runner.run(complaint: "cannot claim lanes; trying again", to: parts.logger) {
                try await wakeDue(lookAt: &lookAt)
                if wakeups.takeClaimWish() || claimAt <= .now {
                    // A bounded number of lanes at a time, and none while the process stops.
                    let isFull = parts.keeper.lanes.count >= Self.maxLanes
                    guard !parts.sender.isStopping, !isFull else {
                        claimAt = .now
                        return .milliseconds(100)
                    }
                    // Again soon, unless it says when.
                    claimAt = .now
                    let claim = try await claim()
                    for (lane, lease) in claim.lanes { lanes.addTask { await self.work(lane, under: lease) } }
                    if !claim.lanes.isEmpty { return nil }
                    let untilDue =
                        claim.nextDueAt.map { parts.clock.time(until: $0) } ?? parts.configuration.pollInterval
                    claimAt = .now + max(.milliseconds(5), min(untilDue, parts.configuration.pollInterval))
                }
                return max(.zero, min(lookAt, claimAt) - .now)
            }
            wakeups.wakeAll()
        }
    }

    /// Wakes the lanes that sleep with something due in them, or whose endpoint takes nothing any
    /// more. When it is not time to look at all of them, only at those that have just fallen
    /// asleep.
    ///
    /// - Parameter lookAt: when to look at all of them.
    private func wakeDue(lookAt: inout ContinuousClock.Instant) async throws {
        let looksAtAll = lookAt <= .now
        let nextLook = looksAtAll ? .now + parts.configuration.pollInterval : lookAt
        let lanes = wakeups.look(onlyNew: !looksAtAll)
        // At all of them at once, should this one fail.
        lookAt = lanes.isEmpty ? nextLook : .now
        if lanes.isEmpty { return }
        let look = try await parts.pool.run { [seen = parts.directory.current.seen] in
            try $0.earliestDue(in: lanes, endpoints: seen)
        }
        parts.clock.set(look.now)
        // As before a claim: who was paused a moment ago gets nothing.
        let endpoints = try await parts.directory.refreshed(hasNews: look.hasEndpointNews)
        wakeups.wake(
            lanes.keys.filter { lane in
                guard let endpoint = endpoints.byID[lane] else { return true }
                if let due = look.due[lane], due <= look.now { return true }
                return !endpoint.accepts(.batch, at: look.now)
            })
        let untilDue = look.due.values.filter { $0 > look.now }.min().map { parts.clock.time(until: $0) }
        lookAt = min(nextLook, .now + min(untilDue ?? Self.betweenLooks, Self.betweenLooks))
    }

    /// A customer has no more lanes than are free, where there are several: then half of them are
    /// left for the others.
    private func greedyCustomers(of lanes: [EndpointID], _ endpoints: EndpointDirectory.Snapshot) -> [String] {
        guard endpoints.hasSeveralCustomers, lanes.count >= Self.maxLanes / 2 else { return [] }
        let held = lanes.reduce(into: [ExactText: Int]()) {
            $0[endpoints.byID[$1]?.customerID ?? "", default: 0] += 1
        }
        return held.filter { $0.value >= Self.maxLanes - lanes.count }
            .map { String(decoding: $0.key.utf8, as: UTF8.self) }
    }

    private func claim() async throws -> (lanes: [(ClaimedLane, Lease)], nextDueAt: Timestamp?) {
        let leaseID = LeaseID.random()
        let asked = ContinuousClock.now
        let endpoints = parts.directory.current
        let held = parts.keeper.lanes
        let excluded = held + endpoints.defective.map(\.id)
        let greedy = greedyCustomers(of: held, endpoints)
        let claim: LaneClaim
        do {
            claim = try await parts.pool.run { [configuration = parts.configuration, instance = parts.instance] in
                try $0.claimLanes(
                    lease: leaseID, worker: configuration.worker, for: configuration.lease, excluding: excluded,
                    customers: greedy, endpoints: endpoints.seen, instance: instance)
            }
        } catch let error as PostgresError where error.isOutcomeUnknown {
            try await parts.pool.run { try $0.releaseLeases(of: leaseID) }
            throw error
        }
        parts.clock.set(claim.now)
        do { _ = try await parts.directory.refreshed(hasNews: claim.hasEndpointNews) } catch {
            // Nothing can be sent without knowing the endpoints: let the lanes go again.
            try await parts.pool.run { try $0.releaseLeases(of: leaseID) }
            throw error
        }
        let lanes = claim.lanes.map { lane in
            let lease = Lease(
                .lane(lane.endpoint, lane.lease), claims: lane.claims, unresolved: 0,
                isProbing: lane.state.breaker.failing != nil,
                trustedUntil: asked + parts.configuration.lease)
            parts.keeper.keep(lease)
            return (lane, lease)
        }
        return (lanes, claim.nextDueAt)
    }

    /// Works a lane off and gives it back.
    private func work(_ lane: ClaimedLane, under lease: Lease) async {
        // Three versions of its row are written then for all deliveries of a quarter of a lease.
        let keptUntil = ContinuousClock.now + parts.configuration.lease / 4
        var work = LaneWork(lane, under: lease, parts: parts, wakeups: wakeups, keptUntil: keptUntil)
        do { try await work.run() } catch {
            parts.logger.warning(
                "a lane was left; it goes on when its lease has ended",
                metadata: ["endpoint": "\(lane.endpoint)", "error": "\(error)"])
        }
        await lease.wait(untilUnresolvedAtMost: 0)
        parts.sender.unlimit(lane.endpoint, for: lease.holder)
        await release(lane, lease, floor: work.floor)
    }

    private func release(_ lane: ClaimedLane, _ lease: Lease, floor: LaneFloor) async {
        for _ in 0..<5 where !lease.isLost {
            do {
                _ = try await parts.lanes.run { try $0.releaseLane(lane.endpoint, lease: lane.lease, floor: floor) }
                break
            } catch {
                do { try await Task.sleep(for: .milliseconds(200)) } catch { break }
            }
        }
        parts.keeper.forget(lease)
        wakeups.wantClaim()
    }
}
