import Logging
import Outbox
import Postgres
import ServiceLifecycle
import Synchronization

/// Writes what became of the requests. Everything that arrives while one transaction runs goes into
/// the next one.
///
/// Nothing that was reported is ever dropped: a group that the database does not take is kept and
/// tried again, and while too much is kept, no new work is claimed (`hasRoom`). A commit whose
/// answer was lost is read back, never guessed.
final class Recorder: Service {
    /// Our own locks last for milliseconds.
    static let maxLock = Duration.milliseconds(100)
    /// How many may wait before claiming stops.
    private let maxUnrecorded: Int

    private let pool: ConnectionPool
    private let patience: Patience
    private let keeper: LeaseKeeper
    private let worker: String
    private let logger: Logger
    private let inbox = Mutex(RecorderInbox())
    private let standing = Mutex<(since: ContinuousClock.Instant, error: String)?>(nil)
    private let wakeup = Wakeup()
    /// Signalled after each group: there may be room to claim more.
    private let claiming: Wakeup
    private let lanes: LaneWakeups
    private let directory: EndpointDirectory

    init(
        pool: ConnectionPool, patience: Patience, keeper: LeaseKeeper, waking claiming: Wakeup, _ lanes: LaneWakeups,
        directory: EndpointDirectory, configuration: EngineConfiguration, logger: Logger
    ) {
        maxUnrecorded = configuration.maxUnrecorded
        self.pool = pool
        self.patience = patience
        self.keeper = keeper
        self.claiming = claiming
        self.lanes = lanes
        self.directory = directory
        worker = configuration.worker
        self.logger = logger
    }

    /// False while outcomes pile up, or an outage of the database is not made up for: claim nothing
    /// more.
    var hasRoom: Bool { inbox.withLock { $0.hasRoom(for: maxUnrecorded) } }

    /// Changes what waits, and lets the next batch be claimed when there is room for it again.
    private func change<Result>(_ change: (inout RecorderInbox) -> sending Result) -> Result {
        let (result, hasNewRoom) = inbox.withLock { inbox in
            let hadRoom = inbox.hasRoom(for: maxUnrecorded)
            let result = change(&inbox)
            return (result, !hadRoom && inbox.hasRoom(for: maxUnrecorded))
        }
        if hasNewRoom { claiming.signal() }
        return result
    }

    /// Takes news of deliveries; returns at once.
    func submit(_ reports: [Report]) {
        if reports.isEmpty { return }
        inbox.withLock { $0.submit(reports) }
        wakeup.signal()
    }

    /// From now on everybody only waits for the last outcomes: a database that takes nothing is
    /// given up after that time.
    func beginEnd(within limit: Duration) {
        inbox.withLock { $0.giveUpAt = .now + limit }
        Task.detached { [patience] in
            try? await Task.sleep(for: limit)
            patience.end()
        }
    }

    /// Takes a batch of which nothing is left to do.
    func finish(_ lease: Lease) {
        inbox.withLock { $0.finish([lease]) }
        wakeup.signal()
    }

    func run() async {
        await withGracefulShutdownHandler {
            while true {
                let work = change { $0.take(at: .now) }
                if work.isEmpty {
                    let (nextTry, hasGivenUp) = inbox.withLock { ($0.nextTry, $0.hasGivenUp(at: .now)) }
                    guard wakeup.isStopped || Task.isCancelled else {
                        await wakeup.wait(upTo: nextTry.map { max(.milliseconds(1), $0 - .now) } ?? .seconds(60))
                        continue
                    }
                    guard nextTry != nil else { return }
                    if hasGivenUp { return giveUp([]) }
                    // A sleep of a cancelled task returns at once.
                    await Task.detached { try? await Task.sleep(for: .milliseconds(10)) }.value
                } else {
                    await record(work.reports, finished: work.finished, effects: work.effects)
                    await gather()
                }
            }
        } onGracefulShutdown: {
            self.wakeup.stop()
        }
    }

    /// Lets reports gather for a moment: a commit then writes many of them. Nobody waits for a
    /// record but the batch that is to be deleted, and what a crash can repeat stays a few
    /// milliseconds' worth.
    private func gather() async {
        let isWorthWaiting = inbox.withLock(\.isWorthGathering)
        // A cancelled process goes on at once.
        if isWorthWaiting { try? await Task.sleep(for: .milliseconds(4)) }
    }

    private func record(_ reports: [Report], finished: [Lease], effects: [EndpointID: Said]) async {
        var group = RecordGroup()
        var said = effects
        /// What of a lease is in this group: how many outcomes, and of a lane which events.
        struct Tally {
            let lease: Lease
            var count = 0
            var laneEvents: [EventKey] = []
        }
        var tallies: [ObjectIdentifier: Tally] = [:]
        for lease in finished { tallies[ObjectIdentifier(lease)] = Tally(lease: lease) }
        for report in reports {
            group.outcomes.append(report.outcome)
            tallies[ObjectIdentifier(report.lease), default: Tally(lease: report.lease)].count += 1
            if case .lane = report.outcome.holder {
                tallies[ObjectIdentifier(report.lease)]?.laneEvents.append(report.outcome.delivery.event)
            }
            if let news = report.said {
                said.merge([report.outcome.delivery.endpoint: news]) { $0.merged(with: $1) }
            }
        }
        for tally in tallies.values where tally.lease.ends(with: tally.count) {
            if let batch = tally.lease.holder.batch { group.finishedBatches.insert(batch) }
        }
        for lease in tallies.values.map(\.lease) where !lease.batchEvents.isEmpty {
            group.events[lease.holder.lease] = lease.batchEvents
        }
        group.effects = said.mapValues(\.event)
        FailPoint.reach(.recordBefore)
        let (receipt, written): (RecordReceipt, RecordGroup)
        switch await write(group) {
        case .written(let theReceipt, let theGroup): (receipt, written) = (theReceipt, theGroup)
        case .refused(let error):
            return await recordApart(reports, finished: finished, effects: effects, refusal: error)
        case .locked: return await recordOthers(reports, finished: finished, effects: effects)
        case .gaveUp: return giveUp(reports)
        }
        FailPoint.reach(.recordAfter)

        let left = reports.filter { written.leaves($0.outcome) }
        for report in left {
            tallies[ObjectIdentifier(report.lease)]?.count -= 1
            tallies[ObjectIdentifier(report.lease)]?.laneEvents.removeAll { $0 == report.outcome.delivery.event }
        }
        for tally in tallies.values {
            let lease = tally.lease
            if receipt.lost.contains(lease.holder) {
                lease.lose()
                logger.warning(
                    "a lease was lost; its state is its new holder's to write", metadata: ["lease": "\(lease.holder)"])
            }
            if lease.holder.batch != nil, lease.unresolved == tally.count { keeper.forget(lease) }
            let unresolved = lease.resolve(tally.count, events: tally.laneEvents)
            // Its last deliveries were made while these were being written.
            if let batch = lease.holder.batch, unresolved == 0, !lease.isLost, tally.count > 0,
                !written.finishedBatches.contains(batch)
            {
                finish(lease)
            }
        }
        // Of what was left before, too.
        let leftEffects = effects.filter { written.locked.contains($0.key) }
            .merging(said.filter { receipt.effects.keys.contains($0.key) }) { $0.merged(with: $1) }
        directory.recorded(said.filter { leftEffects[$0.key] == nil && !written.locked.contains($0.key) })
        if receipt.ghosts > 0 {
            logger.error(
                "events were sent that the database does not have any more: a failover or a restore has lost them; see: {doctor}",
                metadata: ["events": "\(receipt.ghosts)"])
        }
        change { inbox in
            inbox.leave(left, leftEffects, at: .now)
            inbox.wrote(reports.count - left.count)
        }
        complain(about: written.locked)
        // Who holds a lane knows what becomes of its own deliveries.
        lanes.deliveriesWait(
            in: Set(
                group.outcomes.compactMap { outcome in
                    guard case .wait = outcome.resolution, case .batch = outcome.holder, !written.leaves(outcome) else {
                        return nil
                    }
                    return outcome.delivery.endpoint
                }))
    }

    /// Something of a group is refused by the database for good, and keeps none of the rest from
    /// being recorded: what it is is found out by halves. Of it less and less is written, and what
    /// is refused even so is left to the next claim of its batch.
    private func recordApart(
        _ reports: [Report], finished: [Lease], effects: [EndpointID: Said], refusal: PostgresError
    ) async {
        if reports.count > 1 {
            await record(Array(reports.prefix(reports.count / 2)), finished: [], effects: [:])
            await record(Array(reports.dropFirst(reports.count / 2)), finished: finished, effects: effects)
            return
        }
        let metadata: Logger.Metadata = ["error": "\(refusal)"]
        guard var report = reports.first else {
            if effects.count > 1 {
                for (endpoint, effect) in effects { await record([], finished: [], effects: [endpoint: effect]) }
            } else if !effects.isEmpty {
                logger.error("the database refuses what a response means for its endpoint", metadata: metadata)
                directory.recorded(effects)
                change { $0.wrote(0) }
            }
            if !finished.isEmpty { await record([], finished: finished, effects: [:]) }
            return
        }
        let delivery = report.outcome.delivery
        let named = metadata.merging(["event": "\(delivery.event.id)", "endpoint": "\(delivery.endpoint)"]) { $1 }
        guard let less = report.outcome.reduced(because: refusal) else {
            logger.error("the database refuses an outcome; the event will be sent again", metadata: named)
            report.lease.lose()
            report.lease.resolve(1, events: [delivery.event])
            change { $0.wrote(1) }
            // What its response says of the endpoint stays true.
            var said = effects
            if let news = report.said {
                said.merge([delivery.endpoint: news]) { $0.merged(with: $1) }
            }
            if !finished.isEmpty || !said.isEmpty { await record([], finished: finished, effects: said) }
            return
        }
        logger.warning("the database refuses an outcome; less of it is written", metadata: named)
        report.outcome = less
        await record([report], finished: finished, effects: effects)
    }

    /// Somebody has a row of one endpoint locked, and keeps no other endpoint's outcomes from being
    /// recorded: which it is is found out by halves, and what is to be written of it is left for a
    /// while.
    private func recordOthers(_ reports: [Report], finished: [Lease], effects: [EndpointID: Said]) async {
        let endpoints = Set(reports.map(\.outcome.delivery.endpoint)).union(effects.keys)
        if endpoints.isEmpty {
            // The batches themselves: after what others have to say.
            inbox.withLock { $0.finish(finished) }
            await Task.detached { try? await Task.sleep(for: .milliseconds(100)) }.value
            return
        }
        guard endpoints.count > 1 || !finished.isEmpty else {
            change { $0.block(endpoints, leaving: reports, effects, at: .now) }
            return complain(about: endpoints)
        }
        let some = endpoints.count > 1 ? Set(endpoints.prefix(endpoints.count / 2)) : endpoints
        let others = reports.filter { !some.contains($0.outcome.delivery.endpoint) }
        await record(
            reports.filter { some.contains($0.outcome.delivery.endpoint) }, finished: [],
            effects: effects.filter { some.contains($0.key) })
        // However many are locked, a stop ends in its time.
        if inbox.withLock({ $0.hasGivenUp(at: .now) }) { return giveUp(others) }
        await record(others, finished: finished, effects: effects.filter { !some.contains($0.key) })
    }

    /// Says now and then that somebody has lanes locked, who is not named in the database.
    private func complain(about locked: Set<EndpointID>) {
        if inbox.withLock({ $0.isTimeToComplain(at: .now) }) {
            logger.warning(
                "outcomes wait for lanes or endpoints that another session has locked; see: {doctor}",
                metadata: ["endpoints": "\(locked.map(\.description).sorted().prefix(5).joined(separator: ", "))"])
        }
    }

    private enum Written {
        /// The group as it was written, which says what was left.
        case written(RecordReceipt, RecordGroup)
        /// Somebody else has a row locked.
        case locked
        /// The database will never take it.
        case refused(PostgresError)
        /// The process must end without it.
        case gaveUp
    }

    /// Writes the group however long it takes.
    private func write(_ group: RecordGroup) async -> Written {
        var pause = Duration.milliseconds(20)
        var complaints = 0
        while true {
            let (result, written) = await write(once: group)
            switch result {
            case .success(let receipt):
                standing.withLock { $0 = nil }
                return .written(receipt, written)
            case .failure(let error):
                let error = error as? PostgresError
                if let error, error.isOfValues { return .refused(error) }
                if error?.sqlState == "55P03" { return .locked }
                let text = error.map(\.description) ?? "unknown"
                standing.withLock { $0 = ($0?.since ?? .now, text) }
                inbox.withLock { $0.failed() }
                if complaints.isMultiple(of: 60) {
                    logger.warning(
                        "outcomes could not be recorded; they are kept and tried again", metadata: ["error": "\(text)"])
                }
                complaints += 1
                if error?.isOutcomeUnknown == true, await readBack(written) {
                    return .written(RecordReceipt(), written)
                }
                if inbox.withLock({ $0.hasGivenUp(at: .now) }) { return .gaveUp }
            }
            // A cancelled process still gets its few tries: the sleep then returns at once.
            try? await Task.sleep(for: pause * Double.random(in: 0.5...1))
            pause = min(pause * 2, .seconds(2))
        }
    }

    /// Nothing has been recorded for ten seconds, though something is to be.
    var complaint: Complaint? {
        guard let (since, error) = standing.withLock(\.self), .now - since > RecorderInbox.long else { return nil }
        return Complaint(
            "records_stand", age: .now - since, detail: "cannot record what became of its requests: \(error)",
            fix: "Nothing is lost, and nothing more is claimed. Put right what the error says")
    }

    private func write(once group: RecordGroup) async -> (Result<RecordReceipt, any Error>, RecordGroup) {
        do {
            return try await pool.run { [group, worker] connection in
                var group = group
                let result = Result { try connection.record(&group, worker: worker) }
                return (result, group)
            }
        } catch { return (.failure(error), group) }
    }

    private func readBack(_ group: RecordGroup) async -> Bool {
        for _ in 0..<20 {
            do { return try await pool.run { [group] in try $0.wasRecorded(group) } } catch {
                if inbox.withLock({ $0.hasGivenUp(at: .now) }) { return false }
                try? await Task.sleep(for: .milliseconds(250))
            }
        }
        // Without a response the group is written again: a repeated attempt row is better than a
        // lost outcome.
        return false
    }

    /// At the end of the process, with a database that takes nothing: the leases end by themselves,
    /// and the next holder sends again what was not recorded.
    private func giveUp(_ reports: [Report]) {
        let rest = inbox.withLock { $0.giveUp() }
        logger.error("stopping without recording", metadata: ["outcomes": "\(reports.count + rest.count)"])
        for report in reports + rest { report.lease.resolve(1) }
    }
}
