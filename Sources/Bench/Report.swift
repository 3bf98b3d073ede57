import Foundation
import Histogram
import Outbox

/// The results of a benchmark. The names of the fields are those of its JSON.
package struct Report: Codable, Sendable {
    package struct Machine: Codable, Sendable {
        var processors = ProcessInfo.processInfo.activeProcessorCount
        var memoryBytes = ProcessInfo.processInfo.physicalMemory
        var system = ProcessInfo.processInfo.operatingSystemVersionString
        var postgresql = ""
    }

    package struct Settings: Codable, Sendable {
        let events, payload, endpoints, workers, backlog, rate, inFlight: Int
        let latencyMilliseconds, failRate: Double
        let holdSnapshot: Bool
    }

    /// HdrHistogram percentiles, in milliseconds with three significant digits.
    package struct Percentiles: Codable, Sendable {
        let count: Int
        let p50, p95, p99, max: Double

        /// - Parameter values: microseconds and how often each was measured.
        init(_ values: [(microseconds: Int64, count: Int)]) {
            var histogram = Histogram<UInt32>(
                highestTrackableValue: 3_600_000_000, numberOfSignificantValueDigits: .three)
            for (value, count) in values { histogram.record(UInt64(Swift.max(0, value)), count: UInt32(count)) }
            func milliseconds(_ value: UInt64) -> Double { Double(value) / 1000 }
            count = Int(histogram.totalCount)
            p50 = milliseconds(histogram.valueAtPercentile(50))
            p95 = milliseconds(histogram.valueAtPercentile(95))
            p99 = milliseconds(histogram.valueAtPercentile(99))
            max = milliseconds(histogram.max)
        }
    }

    package struct Loop: Codable, Sendable {
        let requestsPerSecond: Double
        let failures: Int
    }

    package struct Producers: Codable, Sendable {
        let clients: Int
        /// The worker's state meanwhile: `asleep` or `busy`.
        let worker: String
        let barePerSecond, outboxPerSecond, ratio: Double
    }

    package struct Drain: Codable, Sendable {
        let events, endpoints, workers: Int
        var seconds = 0.0
        var deliveriesPerSecond = 0.0
        /// The share of the rate of a bare libcurl loop against the same sink.
        var shareOfLoop: Double?
        /// The rate in each tenth of the run.
        var tenthsPerSecond: [Double] = []
        /// Recorded attempts, and the failed ones among them.
        var attempts = 0
        var failures = 0
        /// As counted by the built-in sink.
        var requests: Int?
        var duplicates: Int?
        var attemptsPerWorker: [Int] = []
        var requestMilliseconds: Percentiles?
        var workerMicrosecondsPerDelivery = 0.0
        /// Processor time of the whole server; nil when it runs elsewhere.
        var databaseMicrosecondsPerDelivery: Double?
        var walBytesPerDelivery = 0.0
        var statementsPerDelivery = 0.0
        /// The largest of the workers, at its peak.
        var workerMemoryBytes = 0
        var deadTuples = 0

        init(events: Int, endpoints: Int, workers: Int) {
            self.events = events
            self.endpoints = endpoints
            self.workers = workers
        }
    }

    package struct Steady: Codable, Sendable {
        let rate, producers: Int
        var published = 0
        var commitToResponseMilliseconds: Percentiles?
        /// Single events after an idle period.
        var firstAfterIdleMilliseconds: Percentiles?

        init(rate: Int, producers: Int) {
            self.rate = rate
            self.producers = producers
        }
    }

    /// The same traffic alone and beside others.
    package struct Comparison: Codable, Sendable {
        /// The other deliveries that still waited when the measured traffic was through.
        let waiting: Int
        let alone, beside: Percentiles
        /// Deliveries per second beside the others, as a share of those alone.
        let throughputRatio: Double?
        var p99Ratio: Double
        /// Beside the others while they are still committing.
        var whileCommitted: Percentiles?

        init(waiting: Int, alone: Percentiles, beside: Percentiles, throughputRatio: Double?) {
            self.waiting = waiting
            self.alone = alone
            self.beside = beside
            self.throughputRatio = throughputRatio
            p99Ratio = beside.p99 / alone.p99
        }
    }

    /// Shares of one processor.
    package struct ProcessorShare: Codable, Sendable {
        let workers: Double
        /// The whole server; nil when it runs elsewhere.
        let database: Double?
    }

    package struct Recovery: Codable, Sendable {
        let events: Int
        let leaseSeconds: Double
        var attemptsWhileFailing = 0
        var failingProcessorShare: ProcessorShare?
        /// From the receiver's return: when the next probe was due, and when the first success
        /// came.
        var nextProbeAfterSeconds = 0.0
        var firstAfterSeconds = 0.0
        /// How many requests went out together after that.
        var firstRounds: [Int] = []
        /// Without the time during which the lane had no owner.
        var deliveriesPerSecond = 0.0
        var takeoverAfterSeconds = 0.0
        var duplicates = 0

        init(events: Int, leaseSeconds: Double) {
            self.events = events
            self.leaseSeconds = leaseSeconds
        }
    }

    package struct Scheduled: Codable, Sendable {
        let waiting: Int
        var lateMilliseconds: Percentiles?
        var idleProcessorShare: ProcessorShare?
        var waitingProcessorShare: ProcessorShare?

        init(waiting: Int) { self.waiting = waiting }
    }

    /// Lanes before and after many changes to them, under one held snapshot.
    package struct Flapping: Codable, Sendable {
        let endpoints: Int
        /// How often breakers opened, and how many versions of lanes were written.
        var opens = 0
        var laneUpdates = 0
        var before = Rounds()
        var after = Rounds()
        /// The rate after, as a share of the rate before.
        var ratio = 0.0
    }

    /// Endpoints that want no events, and their cost.
    package struct Directory: Codable, Sendable {
        let endpoints: Int
        let events: Int
        /// The share of a processor, while nothing happens, and while the state of one endpoint
        /// changes every second.
        var idleProcessorShare: ProcessorShare?
        var changingProcessorShare: ProcessorShare?
        /// A worker's time for an event that no endpoint wants, without the endpoints and with
        /// them.
        var workerMicrosecondsPerEventAlone = 0.0
        var workerMicrosecondsPerEvent = 0.0

        init(endpoints: Int, events: Int) { (self.endpoints, self.events) = (endpoints, events) }
    }

    /// A healthy endpoint alone and beside a party that takes what it can.
    package struct Share: Codable, Sendable {
        let party: String
        var alone: Percentiles?
        var beside: Percentiles?
        var p95Ratio = 0.0
        /// The share of the offered events that were delivered while they were offered, or within
        /// two seconds after.
        var deliveredShare = 0.0
        /// How many responses the party gave meanwhile.
        var partyResponses = 0
        /// The largest of the workers, at its peak, before the party came and after.
        var workerMemoryBytes = 0
        var workerMemoryBytesBeside = 0

        init(party: String) { self.party = party }
    }

    /// One event for each of twenty endpoints, through their lanes; the next one when all have got
    /// their responses.
    package struct Rounds: Codable, Sendable {
        var perSecond = 0.0
        var milliseconds: Percentiles?
        /// Blocks that the database read per round: this depends on the stored rows, and not on the
        /// machine.
        var blocks = 0
        /// Processor time of the whole server per round; nil when it runs elsewhere.
        var databaseMilliseconds: Double?
    }

    package let version: String
    package var machine = Machine()
    package let settings: Settings
    package var loop: Loop?
    package var producers: [Producers]?
    package var drain: Drain?
    package var steady: Steady?
    package var neighbours: Comparison?
    package var flood: Comparison?
    package var recovery: Recovery?
    package var scheduled: Scheduled?
    package var directory: Directory?
    package var flapping: Flapping?
    package var shares: [Share]?

    init(plan: Benchmark.Plan) {
        version = outboxVersion
        settings = Settings(
            events: plan.events, payload: plan.payload, endpoints: plan.endpoints, workers: plan.workers,
            backlog: plan.backlog, rate: plan.rate, inFlight: plan.inFlight,
            latencyMilliseconds: plan.latency.inSeconds * 1000, failRate: plan.failRate,
            holdSnapshot: plan.holdsSnapshot)
    }

    /// One JSON object, names in snake case.
    package var json: String {
        get throws {
            let encoder = JSONEncoder()
            encoder.keyEncodingStrategy = .convertToSnakeCase
            encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
            return String(decoding: try encoder.encode(self), as: UTF8.self)
        }
    }

    /// For people.
    package var table: String {
        var lines: [(String, String)] = [
            (
                "machine",
                "\(machine.processors) processors, \(machine.memoryBytes >> 30) GiB, PostgreSQL \(machine.postgresql)"
            )
        ]
        if let loop { lines.append(("libcurl alone", "\(number(loop.requestsPerSecond)) requests/s")) }
        for row in producers ?? [] {
            lines.append(
                (
                    "\(row.clients) producers, worker \(row.worker)",
                    "\(number(row.outboxPerSecond)) transactions/s, bare table \(number(row.barePerSecond)), ratio \(decimal(row.ratio, 2))"
                ))
        }
        if let drain {
            let share = drain.shareOfLoop.map { ", \(decimal($0, 2)) of libcurl alone" } ?? ""
            lines.append(("deliveries", "\(number(drain.deliveriesPerSecond))/s\(share)"))
            lines.append(("  tenths of the run", drain.tenthsPerSecond.map { number($0) }.joined(separator: " ")))
            lines.append(("  attempts", "\(drain.attempts), of those failed \(drain.failures)"))
            if let requests = drain.requests {
                lines.append(("  requests seen", "\(requests)" + (drain.duplicates.map { ", duplicates \($0)" } ?? "")))
            }
            if let times = drain.requestMilliseconds { lines.append(("  request time", text(times))) }
            lines.append(
                (
                    "  per delivery",
                    (drain.databaseMicrosecondsPerDelivery.map { "database \(decimal($0, 1)) us, " } ?? "")
                        + "worker \(decimal(drain.workerMicrosecondsPerDelivery, 1)) us, WAL \(number(drain.walBytesPerDelivery)) bytes, "
                        + "\(decimal(drain.statementsPerDelivery, 4)) statements"
                ))
            lines.append(("  worker memory", "\(drain.workerMemoryBytes >> 20) MiB at its peak"))
            lines.append(("  dead tuples", "\(drain.deadTuples)"))
        }
        if let steady {
            if let times = steady.commitToResponseMilliseconds {
                lines.append(("commit to response", "\(text(times)) at \(steady.rate)/s"))
            }
            if let times = steady.firstAfterIdleMilliseconds { lines.append(("  first after idle", text(times))) }
        }
        if let neighbours { lines += self.lines("neighbours", neighbours) }
        if let flood { lines += self.lines("flood", flood) }
        if let recovery {
            lines.append(
                (
                    "recovery",
                    "first after \(decimal(recovery.firstAfterSeconds, 2)) s, then \(recovery.firstRounds.map(String.init).joined(separator: ", ")) at a time; "
                        + "\(number(recovery.deliveriesPerSecond)) deliveries/s"
                ))
            lines.append(("  while failing", text(recovery.failingProcessorShare)))
            lines.append(
                (
                    "  owner killed",
                    "goes on after \(decimal(recovery.takeoverAfterSeconds, 2)) s of a lease of \(decimal(recovery.leaseSeconds, 0)) s, duplicates \(recovery.duplicates)"
                ))
        }
        if let scheduled {
            if let late = scheduled.lateMilliseconds { lines.append(("scheduled, late by", text(late))) }
            lines.append(("  idle", text(scheduled.idleProcessorShare)))
            lines.append(("  with \(scheduled.waiting) scheduled", text(scheduled.waitingProcessorShare)))
        }
        if let flapping {
            lines += [
                (
                    "flapping",
                    "\(flapping.opens) openings, \(flapping.laneUpdates) changes to lanes under a held snapshot"
                ),
                ("  rounds through 20 lanes before", text(flapping.before)),
                ("  after", "\(text(flapping.after)); rate \(decimal(flapping.ratio, 2)) times"),
            ]
        }
        if let directory {
            lines += [
                (
                    "\(directory.endpoints) endpoints",
                    "an event that nobody wants: worker \(decimal(directory.workerMicrosecondsPerEvent, 1)) us, "
                        + "without them \(decimal(directory.workerMicrosecondsPerEventAlone, 1)) us"
                ),
                ("  idle", text(directory.idleProcessorShare)),
                ("  one changes every second", text(directory.changingProcessorShare)),
            ]
        }
        for share in shares ?? [] {
            guard let alone = share.alone, let beside = share.beside else { continue }
            lines.append(
                (
                    "beside \(share.party)",
                    "p95 \(decimal(beside.p95, 1)) ms, alone \(decimal(alone.p95, 1)) (\(decimal(share.p95Ratio, 2)) times), "
                        + "delivered \(decimal(share.deliveredShare, 2)) of what was offered; party \(share.partyResponses) responses, worker "
                        + "\(share.workerMemoryBytesBeside >> 20) MiB, alone \(share.workerMemoryBytes >> 20)"
                ))
        }
        let width = lines.map(\.0.count).max() ?? 0
        return lines.map { "\($0.padding(toLength: width + 2, withPad: " ", startingAt: 0))\($1)" }.joined(
            separator: "\n")
    }

    private func text(_ rounds: Rounds) -> String {
        "\(decimal(rounds.perSecond, 1))/s" + (rounds.milliseconds.map { ", \(text($0))" } ?? "")
            + ", \(rounds.blocks) blocks"
            + (rounds.databaseMilliseconds.map { ", database \(decimal($0, 1)) ms each" } ?? "")
    }

    private func lines(_ name: String, _ comparison: Comparison) -> [(String, String)] {
        [
            ("\(name), alone", text(comparison.alone))
        ]
            + (comparison.whileCommitted.map { [("  while it is committed", text($0))] } ?? []) + [
                (
                    "  beside \(comparison.waiting) waiting",
                    text(comparison.beside) + "; p99 \(decimal(comparison.p99Ratio, 2)) times"
                        + (comparison.throughputRatio.map { ", throughput \(decimal($0, 2)) times" } ?? "")
                )
            ]
    }

    private func text(_ share: ProcessorShare?) -> String {
        guard let share else { return "-" }
        return "workers \(decimal(share.workers * 100, 2)) %, database "
            + (share.database.map { decimal($0 * 100, 2) + " %" } ?? "elsewhere") + " of a processor"
    }

    private func text(_ times: Percentiles) -> String {
        "p50 \(decimal(times.p50, 2)) ms, p95 \(decimal(times.p95, 2)), p99 \(decimal(times.p99, 2)), max \(decimal(times.max, 2))"
    }

    private func number(_ value: Double) -> String { decimal(value, 0) }
    private func decimal(_ value: Double, _ digits: Int) -> String { String(format: "%.\(digits)f", value) }
}
