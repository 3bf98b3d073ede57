import Bytewise
import Logging
import Outbox
import Postgres
import Synchronization

/// The endpoints as of the newest generation that this process has seen.
final class EndpointDirectory: Sendable {
    /// One generation of the endpoints, read only.
    struct Snapshot: Sendable {
        let generation: Generation
        let byID: [EndpointID: Endpoint]
        /// True when the endpoints are of more than one customer.
        let hasSeveralCustomers: Bool
        private let exact: [ExactText: [Endpoint]]
        private let wildcard: [Endpoint]

        init(generation: Generation, endpoints: [Endpoint]) {
            self.generation = generation
            byID = Dictionary(endpoints.map { ($0.id, $0) }, uniquingKeysWith: { first, _ in first })
            hasSeveralCustomers = endpoints.contains { $0.settings.customerID != endpoints[0].settings.customerID }
            exact = Dictionary(grouping: endpoints.filter { $0.settings.eventType != "*" }, by: \.settings.eventType)
            wildcard = endpoints.filter { $0.settings.eventType == "*" }
        }

        /// Calls the body with every endpoint that gets the event.
        func forEach(wanting event: Event, _ body: (Endpoint) -> Void) {
            for endpoint in wildcard where endpoint.wants(event) { body(endpoint) }
            for endpoint in exact[event.type] ?? [] where endpoint.wants(event) { body(endpoint) }
        }

        /// Endpoints that cannot be called from here.
        var defective: [EndpointID] { byID.values.filter { $0.defect != nil }.map(\.id) }
    }

    private let pool: ConnectionPool
    private let keyring: Keyring
    private let logger: Logger
    private let snapshot = Mutex(Snapshot(generation: .unknown, endpoints: []))
    /// When it was last known to be what the database has.
    private let confirmedAt = Mutex(ContinuousClock.now)
    private let defectiveSince = Mutex<ContinuousClock.Instant?>(nil)

    init(pool: ConnectionPool, keyring: Keyring, logger: Logger) {
        self.pool = pool
        self.keyring = keyring
        self.logger = logger
    }

    /// What is known, without asking.
    var current: Snapshot { snapshot.withLock { $0 } }

    /// Closes an endpoint here and now, because an answer asked for it, until that is recorded.
    func close(_ id: EndpointID, by effect: EndpointEffect, at now: Timestamp) {
        snapshot.withLock { snapshot in
            // Many answers say so at the same time; the first one is enough.
            guard let endpoint = snapshot.byID[id], !endpoint.isClosed(as: effect, at: now) else { return }
            var endpoints = snapshot.byID
            endpoints[id] = endpoint.closed(by: effect, at: now)
            snapshot = Snapshot(generation: snapshot.generation, endpoints: Array(endpoints.values))
        }
    }

    /// What was closed here is recorded: from now on only the database says so, and what was read before is read again. If it lost the
    /// record meanwhile, in a failover, its mark is still the one that was known here, and would not tell.
    func expire() {
        snapshot.withLock { $0 = Snapshot(generation: .unknown, endpoints: Array($0.byID.values)) }
    }

    /// The endpoints of that generation or a later one: read again when another is known. Which of two is the later one nobody can
    /// tell by looking at them, and need not: whoever comes with another one than is known reads again.
    func refreshed(to generation: Generation) async throws -> Snapshot {
        confirmedAt.withLock { $0 = .now }
        let known = current
        if known.generation == generation { return known }
        return try await read()
    }

    /// Asks for the generation, unless a claim has just told it: what waits in memory of an endpoint that was paused, disabled or
    /// deleted must not go out because nobody claims anything meanwhile.
    func confirm(atLeastEvery period: Duration) async throws {
        if .now - confirmedAt.withLock({ $0 }) < period { return }
        let generation = try await pool.run { try $0.generation() }
        _ = try await refreshed(to: generation)
    }

    /// Some endpoints cannot be called from here: what their secrets are worth only who has the key can tell.
    var complaint: Complaint? {
        let defective = current.byID.values.filter { $0.defect != nil }.sorted { $0.name < $1.name }
        guard let first = defective.first, let since = defectiveSince.withLock(\.self) else { return nil }
        let names = defective.prefix(3).map { "\($0.name) (\($0.id))" }.joined(separator: ", ")
        return Complaint(
            "endpoint_unusable", age: .now - since,
            detail: "cannot call \(defective.count) endpoints, among them \(names): \(first.defect ?? "")",
            fix: "When it is about a key, start that worker with the right OUTBOX_SECRET_KEY_FILE; "
                + "else correct the endpoint: outboxctl endpoint get \(first.id)")
    }

    /// Reads the endpoints.
    func read() async throws -> Snapshot {
        let known = current
        let (found, endpoints) = try await pool.run { [keyring] in try $0.endpoints(keyring: keyring) }
        for endpoint in endpoints {
            if let defect = endpoint.defect, known.byID[endpoint.id]?.defect != defect {
                logger.error(
                    "an endpoint cannot be called from here; its deliveries wait",
                    metadata: ["endpoint": "\(endpoint.name)", "reason": "\(defect)"])
            }
        }
        let fresh = Snapshot(generation: found, endpoints: endpoints)
        let isAnyDefective = endpoints.contains { $0.defect != nil }
        defectiveSince.withLock { $0 = isAnyDefective ? $0 ?? .now : nil }
        snapshot.withLock { $0 = fresh }
        return fresh
    }
}
