import Outbox

/// What is to be recorded, and what was left because somebody else has an endpoint's rows locked.
/// Pure: the time is passed in.
struct RecorderInbox {
    /// What goes into one transaction.
    struct Work {
        var reports: [Recorder.Report] = []
        /// Batches of which nothing is left to do.
        var finished: [Lease] = []
        /// What responses mean for endpoints.
        var effects: [EndpointID: Said] = [:]

        var isEmpty: Bool { reports.isEmpty && finished.isEmpty && effects.isEmpty }
    }

    /// How many outcomes one transaction writes at most.
    static let maxGroup = 1000
    /// After so long it is said that something is left.
    static let long = Duration.seconds(10)

    private var reports: [Recorder.Report] = []
    private var finished: [Lease] = []
    private var left: [Recorder.Report] = []
    private var effects: [EndpointID: Said] = [:]
    private var leftUntil: ContinuousClock.Instant?
    /// Endpoints of which nothing is tried until then.
    private var blocked: Set<EndpointID> = []
    /// Since when there has always been something left.
    private var leftSince: ContinuousClock.Instant?
    /// Reported and not yet written, those of the group under way and those that were left
    /// included.
    private(set) var unrecorded = 0
    /// The database took nothing, and what was reported meanwhile is not yet written: whatever is
    /// claimed now might be sent a second time, because its first outcome is still here.
    private(set) var isBehind = false
    /// When a database that takes nothing is waited for no longer.
    var giveUpAt: ContinuousClock.Instant?

    private var isAnythingLeft: Bool { !left.isEmpty || !effects.isEmpty }

    /// When something that was left is tried again; nil when nothing was.
    var nextTry: ContinuousClock.Instant? { isAnythingLeft ? leftUntil : nil }

    /// True while so few wait that a commit is worth waiting for more.
    var isWorthGathering: Bool { reports.count < Self.maxGroup / 4 && giveUpAt == nil }

    /// False while so many are not written, or an outage is not made up for.
    func hasRoom(for most: Int) -> Bool { unrecorded < most && !isBehind }

    func hasGivenUp(at now: ContinuousClock.Instant) -> Bool { giveUpAt.map { $0 <= now } ?? false }

    mutating func submit(_ more: [Recorder.Report]) {
        reports += more
        unrecorded += more.count
    }

    mutating func finish(_ leases: [Lease]) { finished += leases }

    /// The next group: with what was left, when it is time for that.
    mutating func take(at now: ContinuousClock.Instant) -> Work {
        let isTime = leftUntil.map { $0 <= now } ?? true
        if isTime {
            blocked = []
            reports = left + reports
            left = []
        } else if !blocked.isEmpty {
            left += reports.filter { blocked.contains($0.outcome.delivery.endpoint) }
            reports.removeAll { blocked.contains($0.outcome.delivery.endpoint) }
        }
        var work = Work(reports: Array(reports.prefix(Self.maxGroup)), finished: finished)
        reports.removeFirst(work.reports.count)
        finished = []
        if isTime { (work.effects, effects) = (effects, [:]) }
        settle()
        return work
    }

    /// Keeps what could not be written now. Our own locks last for milliseconds; an effect waits
    /// for its lock itself, and so is tried less often.
    mutating func leave(_ reports: [Recorder.Report], _ effects: [EndpointID: Said], at now: ContinuousClock.Instant) {
        left += reports
        self.effects.merge(effects) { $0.merged(with: $1) }
        if !reports.isEmpty || !effects.isEmpty {
            leftUntil = now + (effects.isEmpty ? .milliseconds(50) : .seconds(1))
        }
        leftSince = isAnythingLeft ? leftSince ?? now : nil
        settle()
    }

    /// Keeps what somebody else has locked, and tries nothing of these endpoints for a second.
    mutating func block(
        _ endpoints: Set<EndpointID>, leaving reports: [Recorder.Report], _ effects: [EndpointID: Said],
        at now: ContinuousClock.Instant
    ) {
        leave(reports, effects, at: now)
        leftUntil = now + .seconds(1)
        blocked.formUnion(endpoints)
    }

    /// A write failed.
    mutating func failed() { isBehind = true }

    /// So many are through, or are given up.
    mutating func wrote(_ count: Int) {
        unrecorded -= count
        settle()
    }

    /// An outage is made up for when only that is left which somebody else has locked: it may stay
    /// for long.
    private mutating func settle() {
        if unrecorded <= left.count { isBehind = false }
    }

    /// True now and then while something has been left for long.
    mutating func isTimeToComplain(at now: ContinuousClock.Instant) -> Bool {
        guard let since = leftSince, now - since > Self.long else { return false }
        leftSince = now
        return true
    }

    /// Takes out everything that is reported: nobody will write it.
    mutating func giveUp() -> [Recorder.Report] {
        defer { (reports, left, effects, unrecorded, isBehind) = ([], [], [:], 0, false) }
        return reports + left
    }
}
