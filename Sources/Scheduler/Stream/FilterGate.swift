import Logging
import Outbox
import Postgres
import Synchronization

/// Asks endpoints' filters about events before those are sent.
///
/// A SQL/JSON path can take for ever, and its owner must not hold up anybody else's deliveries. So
/// the filters of a batch have a quarter of a second together. When that is over, the deliveries go
/// to their lanes, and each lane asks for itself, on a connection for that: lanes without filters
/// do not wait for it, and customers take turns on it. A page that takes too long is asked in
/// smaller parts; an endpoint whose filter is slow with a single event is asked one event at a
/// time, on one connection for all of those, and on no batch's behalf for a minute.
final class FilterGate: Sendable {
    private let batches: ConnectionPool
    private let lanes: ConnectionPool
    private let slow: ConnectionPool
    private let logger: Logger
    private let laneTurns = FairTurns()
    private let slowTurns = FairTurns()
    private let pace = Mutex(FilterPace())
    /// Endpoints of batches that took too long: some of these are slow, and their lanes find out
    /// which.
    private let onlyInLanes = Mutex<[EndpointID: ContinuousClock.Instant]>([:])

    /// How long a batch's filters may take, and those of a part of a page.
    private static let limit = Duration.milliseconds(250)
    /// And when a single event is asked about again: the server may have been busy with something
    /// else.
    private static let lastLimit = Duration.seconds(1)
    private static let maxAtOnce = 2000

    /// - Parameters:
    ///   - batches: connections for what batches ask.
    ///   - lanes: a connection for what lanes ask.
    ///   - slow: one connection for filters that have been slow.
    init(batches: ConnectionPool, lanes: ConnectionPool, slow: ConnectionPool, logger: Logger) {
        (self.batches, self.lanes, self.slow, self.logger) = (batches, lanes, slow, logger)
    }

    struct Question {
        let event: EventKey
        let endpoint: EndpointID
        let filter: String
    }

    /// The verdicts in the order of the questions; nil for what is to be asked in its lane.
    func askForBatch(_ questions: [Question]) async throws -> [FilterVerdict?] {
        var verdicts: [FilterVerdict?] = Array(repeating: nil, count: questions.count)
        let quick = questions.indices.filter { isForBatches(questions[$0].endpoint) }
        let end = ContinuousClock.now + Self.limit
        for begin in stride(from: 0, to: quick.count, by: Self.maxAtOnce) {
            let some = quick[begin..<min(begin + Self.maxAtOnce, quick.count)]
            let asked = some.map { (questions[$0].event, questions[$0].filter) }
            let rest = end - .now
            guard rest > .zero else { break }
            guard let found = try await ask(asked, of: batches, within: rest) else {
                let until = ContinuousClock.now + .seconds(10)
                onlyInLanes.withLock { lanes in
                    lanes = lanes.filter { $0.value > .now }
                    for place in some { lanes[questions[place].endpoint] = until }
                }
                break
            }
            for (place, verdict) in zip(some, found) { verdicts[place] = verdict }
        }
        return verdicts
    }

    /// The verdicts of the first of these events: of one at least, and of as many as can be had in
    /// that time and while the lane is to be worked on.
    func ask(
        _ events: [EventKey], of endpoint: Endpoint, _ filter: String, within limit: Duration,
        while isWorkable: () -> Bool
    ) async throws -> [EventKey: FilterVerdict] {
        var verdicts: [EventKey: FilterVerdict] = [:]
        let end = ContinuousClock.now + limit
        repeat {
            let rest = events[verdicts.count...]
            let found = try await ask(Array(rest), of: endpoint, filter)
            for (event, verdict) in zip(rest, found) { verdicts[event] = verdict }
        } while verdicts.count < events.count && isWorkable() && .now < end
        return verdicts
    }

    /// The verdicts of the first of these events, of one at least.
    func ask(_ events: [EventKey], of endpoint: Endpoint, _ filter: String) async throws -> [FilterVerdict] {
        let customer = endpoint.customerID
        while let size = pace.withLock({ $0.size(for: endpoint.id, at: .now) }) {
            let some = events.prefix(size)
            let found = try await laneTurns.run(for: customer) {
                try await ask(some.map { ($0, filter) }, of: lanes, within: Self.limit)
            }
            if let found {
                pace.withLock { $0.wasQuick(endpoint.id, with: found.count) }
                return found
            }
            if pace.withLock({ $0.wasSlow(endpoint.id, with: some.count, at: .now) }) {
                logger.warning(
                    "the filter of an endpoint is slow; its events are looked at one by one",
                    metadata: ["endpoint": "\(endpoint.configuration.name)"])
            }
        }
        return try await slowTurns.run(for: customer) {
            for limit in [Self.limit, Self.lastLimit] {
                if let verdicts = try await ask([(events[0], filter)], of: slow, within: limit) { return verdicts }
            }
            return [.error("the filter took longer than \(Self.lastLimit.milliseconds) ms")]
        }
    }

    private func isForBatches(_ endpoint: EndpointID) -> Bool {
        pace.withLock { $0.size(for: endpoint, at: .now) != nil }
            && onlyInLanes.withLock { $0[endpoint].map { $0 <= .now } ?? true }
    }

    /// Nil when that was not enough time.
    private func ask(
        _ questions: [(EventKey, String)], of pool: ConnectionPool, within limit: Duration
    ) async throws -> [FilterVerdict]? {
        do { return try await pool.run { try $0.askFilters(questions, within: limit) } } catch let error
            as PostgresError
            where error.isOutOfTime
        { return nil }
    }
}
