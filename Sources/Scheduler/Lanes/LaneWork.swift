import Bytewise
import Outbox
import Postgres

/// One lane under one lease: page by page, oldest first, until nothing in it is due.
struct LaneWork {
    private let lane: ClaimedLane
    private let lease: Lease
    private let parts: EngineParts
    private let wakeups: LaneWakeups
    /// How long it is kept when nothing in it is due: then others get a chance to claim it.
    private let keptUntil: ContinuousClock.Instant

    private var scan: LaneScan
    /// The rates that the sender keeps to on our behalf.
    private var rates: [RateLimit] = []
    /// A lane that was not released cleanly may hold a payload that kills its worker. What was in
    /// flight then is at the head of the line; the first rows go one at a time, each presumed
    /// lethal until it has an outcome. Only a few: a receiver that hangs would hold up all the
    /// others, and a killer further back meets the same treatment at the next claim, nearer to the
    /// head.
    private var suspects: Int
    private var ramp: LaneRamp
    /// The size of the next event, when there was not room enough to read it.
    private var neededBytes = 0

    private static let maxSuspects = 10
    /// With more leases than that in this process each lane has less in memory.
    private static let (manyLanes, smallPage) = (1024, 40)
    /// How often a payload may take its worker along before it is parked.
    private static let maxCrashes = 3

    init(
        _ lane: ClaimedLane, under lease: Lease, parts: EngineParts, wakeups: LaneWakeups,
        keptUntil: ContinuousClock.Instant
    ) {
        self.lane = lane
        self.lease = lease
        self.parts = parts
        self.wakeups = wakeups
        self.keptUntil = keptUntil
        scan = LaneScan(from: lane.floor, at: .now)
        suspects = lane.claims > 1 ? Self.maxSuspects : 0
        ramp = LaneRamp(lane.state, hasJustRested: lane.hasJustRested)
    }

    /// Nothing in the lane is due before.
    var floor: LaneFloor { scan.floor }

    private var endpoint: Endpoint? { parts.directory.current.byID[lane.endpoint] }

    private var isWorkable: Bool {
        !wakeups.runner.isStopped && !Task.isCancelled && !parts.sender.isStopping
            && parts.sender.mayStart(lane.endpoint, under: lease)
    }

    mutating func run() async throws {
        // Closed here and open in the database, for the moment that the two clocks or snapshots
        // differ: without a pause it would be claimed and released at full speed.
        if !isWorkable { try await Task.sleep(for: .milliseconds(100)) }
        while isWorkable {
            // Found failing by others, or by ourselves a moment ago: the next owner begins with a
            // probe.
            if ramp.stage == .full || !ramp.isFailing, endpoint?.state.breaker.failing != nil { return }
            try await takeUpRates()
            try await withdrawCancelled()
            guard parts.recorder.hasRoom else {
                try await Task.sleep(for: .milliseconds(50))
                continue
            }
            switch try await nextPage() {
            case .nothing:
                try await settle()
                guard try await sleep() else { return }
            case .notYet: continue
            case .deliveries(let page):
                let answers = lease.answers
                try await send(try await wanted(page))
                guard try await judgeRound(hadResponses: answers) else { return }
            }
        }
    }

    // MARK: Reading

    private enum Page {
        case deliveries([WaitingDelivery])
        /// Try again: the rates allow nothing now, or the cursor is at its beginning again.
        case notYet
        /// Everything is through.
        case nothing
    }

    private mutating func nextPage() async throws -> Page {
        if scan.mustBeginAgain(at: .now) { try await beginAgain() }
        // What is in flight now is not sent again, also when it is resolved while the page is read.
        let inFlight = lease.inFlight
        guard let read = try await readPage() else {
            try await Task.sleep(for: .milliseconds(50))
            return .notYet
        }
        neededBytes = read.needed ?? 0
        if read.needed != nil { return .notYet }
        let found = read.deliveries
        if found.isEmpty {
            // Rows may have been added behind the cursor: look again from the start.
            if inFlight.isEmpty, scan.isAtFloor { return .nothing }
            if !inFlight.isEmpty { await lease.waitForOne(upTo: .milliseconds(500)) }
            try await beginAgain()
            return .notYet
        }
        var page = found.filter { !inFlight.contains($0.event) }
        if parts.keeper.count > Self.manyLanes { page = Array(page.prefix(Self.smallPage)) }
        if let size = ramp.size {
            page = Array(page.prefix(size))
            await lease.wait(untilUnresolvedAtMost: 0)
        }
        if !rates.isEmpty, !page.isEmpty {
            // Nothing is taken into memory that cannot go out soon: an operator may still cancel
            // it.
            page = Array(page.prefix(parts.sender.startable(lane.endpoint, within: .seconds(2))))
            if page.isEmpty {
                try await Task.sleep(for: .milliseconds(200))
                return .notYet
            }
        }
        if let last = page.last ?? found.last { scan.advance(past: last) }
        return page.isEmpty ? .notYet : .deliveries(page)
    }

    /// Nil when there is no room for its events. Room is taken when a connection is there, and let
    /// go of as soon as the events are: they count themselves.
    private func readPage() async throws -> LanePage? {
        let (customer, needed, isFirst) = (endpoint?.customerID ?? "", neededBytes, lease.unresolved == 0)
        return try await parts.lanes.run {
            [lane, cursor = scan.cursor, ramp, instance = parts.instance, memory = parts.memory] in
            guard let room = memory.room(for: customer, atLeast: needed, isFirst: isFirst) else { return nil }
            defer { withExtendedLifetime(room) {} }
            return try $0.lanePage(
                of: lane.endpoint, after: cursor, recoveredAt: ramp.triedBefore, instance: instance, atMost: room.bytes,
                in: memory, of: customer)
        }
    }

    /// Back to the first row, as far as that is known.
    private mutating func beginAgain() async throws {
        if scan.mustRaiseFloor(at: .now) { try await raiseFloor() }
        scan.beginAgain(at: .now)
    }

    /// Passes by what was delivered. False when the lane is not ours any more.
    @discardableResult private mutating func raiseFloor() async throws -> Bool {
        let found = try await unlessLocked { [lane, floor] in
            try $0.laneFloor(of: lane.endpoint, lease: lane.lease, from: floor)
        }
        scan.raise(to: found ?? nil, at: .now)
        return found.map { $0 != nil } ?? true
    }

    /// Goes on where the last owner of the lane stopped: the attempt log says what it sent. What it
    /// sent and did not live to record is not in there; its lease has ended since, and with it the
    /// short windows.
    private mutating func takeUpRates() async throws {
        let wanted = endpoint?.rates(at: parts.clock.now) ?? []
        if wanted == rates { return }
        // What is under way is in the log then.
        await lease.wait(untilUnresolvedAtMost: 0)
        rates = wanted
        if wanted.isEmpty { return parts.sender.unlimit(lane.endpoint, for: lease.holder) }
        let memory = RateLimiter.memory(of: wanted)
        let ages = try await parts.lanes.run { [lane] in
            try $0.recentStarts(of: lane.endpoint, atMost: memory.count, within: memory.period)
        }
        let now = ContinuousClock.now
        // The log's times are the last owner's idea of the database's clock, which may lag by as
        // long as a claim took.
        let starts = ages.reversed().map { now - max(.zero, $0 - .milliseconds(100)) }
        parts.sender.limit(
            lane.endpoint, for: lease.holder, with: RateLimiter(wanted, starts: starts, now: now))
    }

    // MARK: Filtering

    /// Those that the endpoint's filter holds for, and those that it was asked about before. The
    /// others are through.
    private mutating func wanted(_ page: [WaitingDelivery]) async throws -> [WaitingDelivery] {
        guard let endpoint, let filter = endpoint.configuration.filter else { return page }
        func isNew(_ delivery: WaitingDelivery) -> Bool {
            delivery.content != nil && delivery.trigger == .first && delivery.attempts == 0
        }
        let new = page.filter(isNew)
        if new.isEmpty { return page }
        let began = ContinuousClock.now
        let verdicts = try await parts.filters.ask(
            new.map(\.event), of: endpoint, filter, within: LaneScan.maxSweep, while: { isWorkable })
        // What a slow filter has not looked at is read again.
        let judged = page.prefix { !isNew($0) || verdicts[$0.event] != nil }
        if judged.count < page.count, let last = judged.last { scan.advance(past: last) }
        let wanted = judged.filter { delivery in
            guard isNew(delivery) else { return true }
            switch verdicts[delivery.event] {
            case .holds: return true
            case .holdsNot: resolve(delivery, .unwanted)
            case .error(let reason):
                resolve(delivery, .dead(.filterError), note: (DeadReason.filterError.rawValue, reason))
            case nil: break
            }
            return false
        }
        guard .now - began > LaneScan.maxSweep, !wanted.isEmpty else { return wanted }
        // What was cancelled in that time does not go out.
        let keys = wanted.map(\.event)
        let there = Set(try await parts.lanes.run { [lane] in try $0.waiting(keys, in: lane.endpoint) })
        return wanted.filter { there.contains($0.event) }
    }

    // MARK: Sending

    private mutating func send(_ page: [WaitingDelivery]) async throws {
        var sends: [Send] = []
        for delivery in page where isWorkable {
            if let reason = endOfTheLine(delivery) {
                bury(delivery, reason)
            } else if suspects > 0 || delivery.crashes > 0 {
                suspects = max(0, suspects - 1)
                // It goes alone: what was collected before it must be through first.
                enqueue(sends)
                sends = []
                try await sendAlone(delivery)
            } else if let event = delivery.content {
                sends.append(send(event, delivery, crashesBefore: nil))
            }
        }
        enqueue(sends)
    }

    private func endOfTheLine(_ delivery: WaitingDelivery) -> DeadReason? {
        if delivery.content == nil { return .eventMissing }
        return delivery.crashes >= Self.maxCrashes ? .workerCrashed : nil
    }

    /// Sends one delivery while nothing else of the lane is in flight, with the crash written down
    /// beforehand.
    private func sendAlone(_ delivery: WaitingDelivery) async throws {
        guard let event = delivery.content else { return }
        await lease.wait(untilUnresolvedAtMost: 0)
        let id = DeliveryID(event: delivery.event, endpoint: lane.endpoint)
        let schedule = endpoint?.retrySchedule ?? []
        let delay = RetryPolicy.delay(schedule, after: delivery.attempts + 1, jitter: 0.5) ?? parts.configuration.lease
        var isOurs: Bool?
        while isOurs == nil, isWorkable {
            isOurs = try await unlessLocked { [lane] in try $0.presumeCrash(id, lane: lane.lease, dueIn: delay) }
        }
        // False also when an operator cancelled the delivery meanwhile.
        guard isOurs == true else { return }
        enqueue([send(event, delivery, crashesBefore: delivery.crashes)])
        await lease.wait(untilUnresolvedAtMost: 0)
    }

    private func send(_ event: Event, _ delivery: WaitingDelivery, crashesBefore: Int?) -> Send {
        Send(
            event: event, endpoint: lane.endpoint, of: endpoint?.customerID ?? "",
            also: endpoint?.bytesInFlight(for: event) ?? 0, number: delivery.attempts + 1,
            trigger: delivery.trigger,
            lease: lease, startBy: nil, crashesBefore: crashesBefore, isOrdered: delivery.isOrdered)
    }

    private func bury(_ delivery: WaitingDelivery, _ reason: DeadReason) {
        let error =
            reason == .workerCrashed
            ? "its worker died in each of the last \(delivery.crashes) sends" : "the event's row is gone"
        resolve(delivery, .dead(reason), note: (reason.rawValue, error))
    }

    /// Without a request.
    private func resolve(
        _ delivery: WaitingDelivery, _ resolution: Resolution, note: (errorClass: String, error: String)? = nil
    ) {
        lease.add([delivery.event])
        parts.recorder.submit([
            Recorder.Report(
                DeliveryID(event: delivery.event, endpoint: lane.endpoint), under: lease, attempts: delivery.attempts,
                resolution: resolution, note: note, isOrdered: delivery.isOrdered)
        ])
    }

    private func enqueue(_ sends: [Send]) {
        lease.add(sends.map(\.event.key))
        parts.sender.enqueue(sends)
    }

    // MARK: Recovery

    /// Waits for what was sent, as far as the next page needs it; false when somebody else has to
    /// go on.
    private mutating func judgeRound(hadResponses answers: Int) async throws -> Bool {
        if ramp.triedBefore == nil, ramp.stage == .full, rates.isEmpty {
            try await wait(untilUnresolvedAtMost: WaitingDelivery.page / 2)
            return true
        }
        try await wait(untilUnresolvedAtMost: 0)
        // A failure has closed it again by now.
        guard isWorkable else { return false }
        let cap = endpoint?.maxInFlight ?? 1
        var step = ramp.roundEnded(hasResponse: lease.answers > answers, cap: cap)
        while case .tell(let event) = step {
            // With the next round again, when somebody else changes the endpoint at this moment.
            guard let state = try await change(by: event) else { return true }
            guard let next = ramp.told(event, state, cap: cap) else { return false }
            step = next
        }
        if step == .tryAgain { try await Task.sleep(for: .milliseconds(500)) }
        return true
    }

    /// Waits for what was sent.
    private mutating func wait(untilUnresolvedAtMost most: Int) async throws {
        while lease.unresolved > most {
            await lease.wait(untilUnresolvedAtMost: most, upTo: LaneScan.maxSweep)
            try await withdrawCancelled()
        }
    }

    /// What waits in memory may be cancelled meanwhile: once a second it is asked whether all of it
    /// is still in the lane, and what is not does not go out.
    private mutating func withdrawCancelled() async throws {
        guard scan.isTimeToAsk(at: .now) else { return }
        let waiting = parts.sender.waiting(for: lane.endpoint)
        if waiting.isEmpty { return }
        let there = try await parts.lanes.run { [lane] in try $0.waiting(waiting, in: lane.endpoint) }
        parts.sender.withdraw(Set(waiting).subtracting(there), of: lane.endpoint)
    }

    /// Lets something happen to the endpoint. Nil when somebody else changes it at this moment; nil
    /// in that when the lane is not ours any more.
    private func change(by event: EndpointState.Event) async throws -> EndpointState?? {
        try await unlessLocked { [lane] in try $0.change(lane.endpoint, by: event, owning: lane.lease) }
    }

    /// What takes a lock; nil, a moment later, when somebody else has it.
    private func unlessLocked<Value: Sendable>(
        _ body: @escaping @Sendable (inout Connection) throws -> Value
    ) async throws -> Value? {
        do { return try await parts.lanes.run(body) } catch let error as PostgresError where error.sqlState == "55P03" {
            try await Task.sleep(for: .milliseconds(100))
            return nil
        }
    }

    /// Everything is through: with nothing left to try, a recovery is over, and so is what was set
    /// for the time after a pause.
    private mutating func settle() async throws {
        if ramp.recoveredAt != nil {
            if ramp.stage != .full { _ = try await change(by: .rampedUp) }
            _ = try await change(by: .caughtUp)
        }
        if endpoint?.state.pause.drainRate != nil { _ = try await change(by: .drained) }
    }

    /// Keeps the empty lane until something in it is due; false when it is to be released. One that
    /// is failing or recovering begins anew with its next claim.
    private mutating func sleep() async throws -> Bool {
        guard ramp.isOver, .now < keptUntil, wakeups.hasRoom else { return false }
        if scan.mustRaiseFloor(at: .now), try await !raiseFloor() { return false }
        await wakeups.sleep(in: lane.endpoint, from: floor, upTo: keptUntil - .now)
        // Nothing of it is in flight: the next row is the first.
        scan.beginAgain(at: .now)
        return .now < keptUntil
    }
}
