import Logging
import Outbox
import Postgres
import Synchronization

/// Asks endpoints' filters about events before those are sent.
///
/// A SQL/JSON path can take for ever, and its owner must not hold up anybody else's deliveries. So the filters of a batch have a
/// quarter of a second together. When that is over, the deliveries go to their lanes, and each lane asks for itself, on a connection
/// for that: lanes without filters do not wait for it. An endpoint whose filter is slow there is asked one event at a time, with one
/// connection for all of those, and on no batch's behalf for a minute.
final class FilterGate: Sendable {
    private let batches: ConnectionPool
    private let lanes: ConnectionPool
    private let slow: ConnectionPool
    private let logger: Logger
    private let slowUntil = Mutex<[EndpointID: ContinuousClock.Instant]>([:])

    /// How long a batch's filters may take, and that of one event.
    private static let limit = Duration.milliseconds(250)
    /// And when that one is asked again: the server may have been busy with something else.
    private static let lastLimit = Duration.seconds(1)
    private static let mostAtOnce = 2000

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
        let quick = questions.indices.filter { !isSlow(questions[$0].endpoint) }
        let end = ContinuousClock.now + Self.limit
        for begin in stride(from: 0, to: quick.count, by: Self.mostAtOnce) {
            let some = quick[begin..<min(begin + Self.mostAtOnce, quick.count)]
            let asked = some.map { (questions[$0].event, questions[$0].filter) }
            let rest = end - .now
            guard rest > .zero, let found = try await ask(asked, of: batches, within: rest) else { break }
            for (place, verdict) in zip(some, found) { verdicts[place] = verdict }
        }
        return verdicts
    }

    /// The verdicts of a lane's page; nil when it has to be asked one event at a time (`askAlone`).
    func ask(_ events: [EventKey], of endpoint: Endpoint, _ filter: String) async throws -> [FilterVerdict]? {
        if isSlow(endpoint.id) { return nil }
        if let verdicts = try await ask(events.map { ($0, filter) }, of: lanes, within: Self.limit) { return verdicts }
        logger.warning(
            "the filter of an endpoint is slow; its events are looked at one by one",
            metadata: ["endpoint": "\(endpoint.name)"])
        slowUntil.withLock { slow in
            slow = slow.filter { $0.value > .now }
            slow[endpoint.id] = .now + .seconds(60)
        }
        return nil
    }

    func askAlone(_ event: EventKey, _ filter: String) async throws -> FilterVerdict {
        for limit in [Self.limit, Self.lastLimit] {
            if let verdict = try await ask([(event, filter)], of: slow, within: limit)?.first { return verdict }
        }
        return .error("the filter took longer than \(Self.lastLimit.milliseconds) ms")
    }

    private func isSlow(_ endpoint: EndpointID) -> Bool {
        slowUntil.withLock { $0[endpoint].map { $0 > .now } ?? false }
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
