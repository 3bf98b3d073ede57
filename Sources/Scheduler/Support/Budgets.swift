import Logging
import Metrics
import Outbox
import ServiceLifecycle
import Synchronization

/// Watches the budgets of this process: a gauge of each, a line in the log when one has been used
/// up for a while and when it is free again, and what `problems` says of it.
final class Budgets: Service {
    private struct Watch {
        let budget: Budget
        let used: Gauge
        let limit: Gauge
        var full = FullWarning()
        var isSaid = false
    }

    private let watches: Mutex<[Watch]>
    private let logger: Logger
    private let wakeup = Wakeup()
    private static let period = Duration.milliseconds(200)

    init(_ budgets: [Budget], logger: Logger) {
        watches = Mutex(
            budgets.map { budget in
                let dimensions = [("budget", budget.kind.rawValue)]
                return Watch(
                    budget: budget, used: Gauge(label: "outbox_budget_used", dimensions: dimensions),
                    limit: Gauge(label: "outbox_budget_limit", dimensions: dimensions))
            })
        self.logger = logger
    }

    func run() async {
        await withGracefulShutdownHandler {
            while !wakeup.isStopped && !Task.isCancelled {
                look(at: .now)
                await wakeup.wait(upTo: Self.period)
            }
        } onGracefulShutdown: {
            self.wakeup.stop()
        }
    }

    /// Takes note of how full they are, and says what has changed.
    func look(at now: ContinuousClock.Instant) {
        watches.withLock { watches in
            for place in watches.indices {
                let reading = watches[place].budget.reading()
                watches[place].used.record(reading.used)
                watches[place].limit.record(reading.limit)
                let isDue = watches[place].full.isDue(isFull: reading.isFull, at: now)
                let kind = watches[place].budget.kind
                if isDue, let complaint = complaint(of: watches[place], at: now) {
                    watches[place].isSaid = true
                    logger.warning(
                        "parties wait for each other",
                        metadata: [
                            "budget": "\(kind.rawValue)", "why": "this worker \(complaint.detail)",
                            "fix": "\(complaint.fix)",
                        ])
                } else if watches[place].isSaid, !reading.isFull {
                    watches[place].isSaid = false
                    logger.notice("nobody waits for others any more", metadata: ["budget": "\(kind.rawValue)"])
                }
            }
        }
    }

    /// How much of each is taken, and how much there is.
    var readings: [(kind: Budget.Kind, used: Int, limit: Int)] {
        watches.withLock { watches in
            watches.map { watch in
                let reading = watch.budget.reading()
                return (watch.budget.kind, reading.used, reading.limit)
            }
        }
    }

    /// Those that have been used up for a while.
    func complaints(at now: ContinuousClock.Instant = .now) -> [Complaint] {
        watches.withLock { watches in watches.compactMap { complaint(of: $0, at: now) } }
    }

    private func complaint(of watch: Watch, at now: ContinuousClock.Instant) -> Complaint? {
        guard let age = watch.full.age(at: now) else { return nil }
        let holders = watch.budget.holders().joined(separator: "; ")
        let reading = watch.budget.reading()
        return Complaint(
            watch.budget.kind.problem, age: age,
            detail: "uses \(reading.used) of \(reading.limit) \(watch.budget.kind.words)"
                + (holders.isEmpty ? "" : "; most of that: \(holders)"),
            fix: watch.budget.kind.advice)
    }
}
