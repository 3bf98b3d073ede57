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
}
