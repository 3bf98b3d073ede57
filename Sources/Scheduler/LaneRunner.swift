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

    /// Works a lane off and gives it back.
    private func work(_ lane: ClaimedLane, under lease: Lease) async {
        var work = LaneWork(lane, under: lease, parts: parts, stop: wakeup)
        do { try await work.run() } catch {
            parts.logger.warning(
                "a lane was left; it goes on when its lease has ended",
                metadata: ["endpoint": "\(lane.endpoint)", "error": "\(error)"])
        }
        await lease.wait(untilUnresolvedAtMost: 0)
        parts.sender.unlimit(lane.endpoint, for: lease.holder)
        await release(lane, lease)
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
