import Bytewise
import Logging
import Outbox
import Postgres
import Synchronization

/// The endpoints, as this process has read them: what has changed since then is read again, and
/// nothing else.
final class EndpointDirectory: Sendable {
    /// Their settings at one time, read only, and their states, which change (`Endpoint.state`).
    struct Snapshot: Sendable {
        let seen: EndpointsSeen
        let byID: [EndpointID: Endpoint]
        /// True when the endpoints are of more than one customer.
        let hasSeveralCustomers: Bool
        /// Those that cannot be called from here.
        let defective: [Endpoint]
        /// By what most of the others are told apart by: whose events they take, and of which type.
        private let byKey: [Key: [Endpoint]]
        /// One of them takes types by a prefix.
        private let hasPrefixes: Bool

        private struct Key: Hashable {
            let customer: ExactText
            let pattern: EventPattern
        }

        init(seen: EndpointsSeen, endpoints: [EndpointID: Endpoint]) {
            self.seen = seen
            byID = endpoints
            let customers = endpoints.values.lazy.map(\.customerID)
            hasSeveralCustomers = customers.first.map { first in customers.contains { $0 != first } } ?? false
            byKey = endpoints.values.reduce(into: [:]) { index, endpoint in
                for pattern in endpoint.eventPatterns {
                    index[Key(customer: endpoint.customerID, pattern: pattern), default: []].append(endpoint)
                }
            }
            hasPrefixes = byKey.keys.contains { if case .prefix = $0.pattern { true } else { false } }
            defective = endpoints.values.filter { $0.defect != nil }
        }

        private init(_ other: Snapshot, seen: EndpointsSeen) {
            (self.seen, byID, hasSeveralCustomers) = (seen, other.byID, other.hasSeveralCustomers)
            (defective, byKey, hasPrefixes) = (other.defective, other.byKey, other.hasPrefixes)
        }

        /// The same, known to be so at a later time.
        func asSeen(_ seen: EndpointsSeen) -> Snapshot { Snapshot(self, seen: seen) }

        /// How many endpoints get the event at most, without looking at each.
        func mostWanting(_ event: Event) -> Int {
            let patterns = event.possiblePatterns(withPrefixes: hasPrefixes)
            return (event.customerID == "*" ? ["*"] : [event.customerID, "*"]).reduce(0) { sum, customer in
                patterns.reduce(sum) { $0 + (byKey[Key(customer: customer, pattern: $1)]?.count ?? 0) }
            }
        }

        /// Calls the body with every endpoint that gets the event.
        func forEach(wanting event: Event, _ body: (Endpoint) -> Void) {
            let patterns = event.possiblePatterns(withPrefixes: hasPrefixes)
            for customer in event.customerID == "*" ? ["*"] : [event.customerID, "*"] {
                for pattern in patterns {
                    for endpoint in byKey[Key(customer: customer, pattern: pattern)] ?? []
                    where endpoint.takes(changeType: event.changeType) && endpoint.known.takesEvents { body(endpoint) }
                }
            }
        }
    }

    private let pool: ConnectionPool
    private let keyring: Keyring
    private let logger: Logger
    private let snapshot = Mutex(Snapshot(seen: .nothing, endpoints: [:]))
    /// Endpoints whose state is read again with the next news.
    private let stale = Mutex<Set<EndpointID>>([])
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

    /// What responses said of these endpoints is recorded: from now on only the database says how
    /// they are, which may have known more.
    func recorded(_ said: [EndpointID: Said]) {
        if said.isEmpty { return }
        let endpoints = current.byID
        for (id, said) in said { endpoints[id]?.known.recorded(upTo: said.times) }
        expire(said.keys)
    }

    private func expire(_ endpoints: some Sequence<EndpointID>) { stale.withLock { $0.formUnion(endpoints) } }

    /// The endpoints as they are now, by somebody who has just asked whether there is something
    /// new.
    func refreshed(hasNews: Bool) async throws -> Snapshot {
        confirmedAt.withLock { $0 = .now }
        return try await hasNews || stale.withLock({ !$0.isEmpty }) ? read() : current
    }

    /// Asks for news, unless a claim has just done so: what waits in memory of an endpoint that was
    /// paused, disabled or deleted must not go out because nobody claims anything meanwhile.
    func confirm(atLeastEvery period: Duration) async throws {
        if .now - confirmedAt.withLock({ $0 }) < period { return }
        let hasNews = try await pool.run { [seen = current.seen] in try $0.hasEndpointNews(since: seen) }
        _ = try await refreshed(hasNews: hasNews)
    }

    /// Some endpoints cannot be called from here: what their secrets are worth only who has the key
    /// can tell.
    var complaint: Complaint? {
        let defective = current.defective.sorted { $0.name < $1.name }
        guard let first = defective.first, let since = defectiveSince.withLock(\.self) else { return nil }
        let names = defective.prefix(3).map { "\($0.name) (\($0.id))" }.joined(separator: ", ")
        return Complaint(
            "endpoint_unusable", age: .now - since,
            detail: "cannot call \(defective.count) endpoints, among them \(names): \(first.defect ?? "")",
            fix: "When it is about a key, start that worker with the right OUTBOX_SECRET_KEY_FILE; "
                + "else correct the endpoint: {endpoint.get \(first.id)}")
    }

    /// Reads what is new.
    @discardableResult
    func read() async throws -> Snapshot {
        while true {
            if let fresh = try await readOnce() { return fresh }
        }
    }

    /// Nil when somebody else has read meanwhile, and may have seen less.
    private func readOnce() async throws -> Snapshot? {
        let known = current
        let some = stale.withLock { stale in
            defer { stale = [] }
            return stale
        }
        let news: EndpointNews
        do {
            news = try await pool.run { [keyring] in
                try $0.endpointNews(since: known.seen, also: some, keyring: keyring)
            }
        } catch {
            expire(some)
            throw error
        }
        for endpoint in news.endpoints {
            if let defect = endpoint.defect, known.byID[endpoint.id]?.defect != defect {
                logger.error(
                    "an endpoint cannot be called from here; its deliveries wait",
                    metadata: ["endpoint": "\(endpoint.name)", "reason": "\(defect)"])
            }
        }
        guard let fresh = take(news, since: known.seen) else {
            expire(some)
            return nil
        }
        defectiveSince.withLock { $0 = fresh.defective.isEmpty ? nil : $0 ?? .now }
        return fresh
    }

    private func take(_ news: EndpointNews, since seen: EndpointsSeen) -> Snapshot? {
        snapshot.withLock { snapshot in
            guard snapshot.seen == seen else { return nil }
            for (id, state) in news.states { snapshot.byID[id]?.known.set(state) }
            if news.isAll || !news.endpoints.isEmpty || !news.gone.isEmpty {
                var endpoints = news.isAll ? [:] : snapshot.byID
                for id in news.gone { endpoints[id] = nil }
                for endpoint in news.endpoints {
                    let known = snapshot.byID[endpoint.id]?.known ?? endpoint.known
                    known.set(endpoint.state)
                    endpoints[endpoint.id] = Endpoint(endpoint, known: known)
                }
                snapshot = Snapshot(seen: news.seen, endpoints: endpoints)
            } else {
                snapshot = snapshot.asSeen(news.seen)
            }
            return snapshot
        }
    }
}
