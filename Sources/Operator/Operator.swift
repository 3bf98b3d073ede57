package import Outbox
package import Postgres
package import Transport

/// Every use case of an operator, once, for every interface: command line, HTTP API or console.
///
/// A use case has one name: `endpoints.pause` here is `endpoint.pause` in the audit log and
/// `outboxctl endpoint pause`. A refusal is a `Problem`. This target has the rules for all
/// interfaces, such as that many dead letters are replayed only with a reason; the SQL is in
/// `Outbox`.
package struct Operator: Sendable {
    let pool: ConnectionPool
    /// The actor in every row of the audit log.
    let actor: Actor
    /// How long a use case waits for a free connection; nil for as long as it takes.
    let patience: Duration?
    /// The installation's keys; read only by use cases that need them.
    let keyring: @Sendable () throws -> Keyring
    /// Where requests may go; the sockets of the database server are refused in any case.
    let policy: @Sendable () throws -> AddressPolicy

    /// - Parameter pool: connections with the rights of an operator (role `outbox_operator`), set
    ///   up by `OperatorSession`.
    package init(
        pool: ConnectionPool, actor: Actor, patience: Duration? = nil,
        keyring: @escaping @Sendable () throws -> Keyring, policy: @escaping @Sendable () throws -> AddressPolicy
    ) {
        (self.pool, self.actor, self.patience, self.keyring, self.policy) = (pool, actor, patience, keyring, policy)
    }

    package var endpoints: EndpointUseCases { EndpointUseCases(self) }
    package var endpointTests: EndpointTestUseCases { EndpointTestUseCases(self) }
    package var secrets: SecretUseCases { SecretUseCases(self) }
    package var deliveries: DeliveryUseCases { DeliveryUseCases(self) }
    package var dead: DeadLetterUseCases { DeadLetterUseCases(self) }
    package var attempts: AttemptUseCases { AttemptUseCases(self) }
    package var events: EventUseCases { EventUseCases(self) }
    package var tokens: TokenUseCases { TokenUseCases(self) }

    /// The same use cases in the name of another actor.
    package func acting(as actor: Actor) -> Operator {
        Operator(pool: pool, actor: actor, patience: patience, keyring: keyring, policy: policy)
    }

    /// What the process needs to do its work, and whether it has it.
    package func readiness() async -> [(name: String, isWell: Bool)] {
        let hasKey = (try? keyring()).map { !$0.isEmpty } ?? false
        let isThere: Bool
        let fits: Bool
        do {
            try await run { try Migrator.check(&$0) }
            (isThere, fits) = (true, true)
        } catch is Migrator.SchemaError { (isThere, fits) = (true, false) } catch { (isThere, fits) = (false, false) }
        return [("database", isThere), ("schema", fits), ("key", hasKey)]
    }

    /// The installation on one screen, and its problems.
    package func status() async throws -> (status: Listing, problems: Listing) {
        try await run { connection in
            let problems = try connection.problems()
            return (try connection.status(problems: problems.rows.count), problems)
        }
    }

    /// What is wrong, and what to do about it. Beside the question, on a second connection of the
    /// pool, the locks are watched: whoever holds one that the question waits for is the answer
    /// then.
    ///
    /// - Parameter checking: throws when the database is not one to be asked.
    package func problems(
        checking check: @escaping @Sendable (inout Connection) throws -> Void = { _ in }
    ) async throws -> Listing {
        // Without the keys here, what the endpoints' secrets are worth only the workers know.
        let keyring = (try? keyring()) ?? .empty
        return try await withThrowingTaskGroup(of: Listing.self) { group in
            group.addTask {
                while true {
                    let waits = try await pool.run { try $0.lockWaits() }
                    if !waits.rows.isEmpty { return waits }
                    try await Task.sleep(for: .seconds(1))
                }
            }
            group.addTask {
                try await pool.run { connection in
                    try check(&connection)
                    return try connection.problems(keyring: keyring)
                }
            }
            defer { group.cancelAll() }
            guard let problems = try await group.next() else { throw CancellationError() }
            return problems
        }
    }

    func run<Value: Sendable>(_ body: @escaping @Sendable (inout Connection) throws -> Value) async throws -> Value {
        try await pool.run(waiting: patience, body)
    }
}

/// The delivery that an operator means: an event by its number or `webhook-id`, and an endpoint by
/// its name or id.
package struct DeliveryReference: Sendable {
    package let event: String
    package let endpoint: String

    package init(event: String, endpoint: String) { (self.event, self.endpoint) = (event, endpoint) }

    func resolve(_ connection: inout Connection) throws -> DeliveryID {
        let endpoint = try connection.endpointID(endpoint)
        return DeliveryID(event: try connection.eventKey(event), endpoint: endpoint)
    }
}
