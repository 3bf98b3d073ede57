import Logging
package import Outbox
import Postgres
package import Scheduler
import ServiceLifecycle
package import StandardWebhooks
import Synchronization
import Transport

/// A worker inside the test process, with short times.
package final class TestWorker: Sendable {
    private let group: ServiceGroup
    private let task: Task<Void, any Error>
    private let mistakes = Mistakes()

    /// One key for all tests.
    package static let keyLine = Keyring.newKeyLine()
    package static let keyring: Keyring = {
        guard let keyring = try? Keyring(text: keyLine) else { preconditionFailure("a new key line is valid") }
        return keyring
    }()

    package static func configuration(_ database: TestDatabase, name: String = "test") throws -> EngineConfiguration {
        var configuration = EngineConfiguration(
            database: try database.target, worker: name, host: "test", pid: 1,
            policy: AddressPolicy(allowing: ["127.0.0.0/8"].compactMap(Network.init)))
        configuration.lease = .seconds(6)
        configuration.pollInterval = .milliseconds(100)
        configuration.grace = .seconds(3)
        return configuration
    }

    package init(_ configuration: EngineConfiguration) async throws {
        let mistakes = mistakes
        let logger = Logger(label: "test") { _ in mistakes }
        let engine = try await Engine(configuration, keyring: Self.keyring, logger: logger)
        let group = ServiceGroup(
            configuration: ServiceGroupConfiguration(
                services: engine.services.map { .init(service: $0, successTerminationBehavior: .ignore) },
                logger: logger))
        self.group = group
        task = Task { try await group.run() }
    }

    package convenience init(_ database: TestDatabase, name: String = "test") async throws {
        try await self.init(Self.configuration(database, name: name))
    }

    /// Stops gracefully and waits until everything has ended.
    package func stop() async throws {
        await group.triggerGracefulShutdown()
        try await task.value
        if let mistake = mistakes.first { throw mistake }
    }

    /// Runs the body beside a worker and stops the worker afterwards, however the body ends.
    package static func run<Value>(
        _ database: TestDatabase, configure: (inout EngineConfiguration) -> Void = { _ in },
        _ body: () async throws -> Value
    ) async throws -> Value {
        var configuration = try configuration(database)
        configure(&configuration)
        let worker = try await TestWorker(configuration)
        do {
            let value = try await body()
            try await worker.stop()
            return value
        } catch {
            try await worker.stop()
            throw error
        }
    }
}

/// Takes a worker's log for statements that can never work. The worker goes on without them, and
/// much of what they are for still happens in other ways, later.
private struct Mistakes: LogHandler {
    struct Mistake: Error, CustomStringConvertible { let description: String }

    private final class Found: Sendable {
        let first = Mutex<Mistake?>(nil)
    }

    private let found = Found()
    var first: Mistake? { found.first.withLock { $0 } }

    var metadata = Logger.Metadata()
    var logLevel = Logger.Level.warning
    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        let text = "\(event.message) \(event.metadata ?? [:])"
        // Class 42: a syntax error or something that does not exist. 42501 is a privilege that a
        // test took away.
        guard text.contains("SQLSTATE 42"), !text.contains("42501") else { return }
        found.first.withLock { $0 = $0 ?? Mistake(description: text) }
    }
}

extension TestDatabase {
    /// Creates an endpoint with a new secret.
    @discardableResult
    package func endpoint(
        _ name: String, url: String, retries: [Duration] = [.milliseconds(50), .milliseconds(100)],
        change: (inout EndpointConfiguration) throws -> Void = { _ in }
    ) async throws -> (id: EndpointID, secret: SigningSecret) {
        var wish = EndpointConfiguration(name: name, url: url)
        wish.retrySchedule = retries
        // No test is about this one: on a busy machine a receiver may take seconds.
        wish.timeout = .seconds(20)
        try change(&wish)
        let secret = SigningSecret.generate()
        let id = try await pool.run { [wish] in try $0.createEndpoint(wish, secret: secret, keyring: TestWorker.keyring)
        }
        return (id, secret)
    }

    /// Publishes so many events of a type in one transaction and returns their numbers.
    @discardableResult
    package func publish(_ count: Int = 1, type: String = "test", after: String = #"{"n":1}"#) async throws -> [Int64] {
        try await pool.query(
            "SELECT outbox.publish(\(type), \(JSONText(after))) FROM generate_series(1, \(count))", within: .seconds(60)
        ) { row throws(PostgresError) in try row[0] }
    }

    /// The delivery of the event with that number to the endpoint.
    package func deliveryID(_ event: Int64, _ endpoint: EndpointID) async throws -> DeliveryID {
        DeliveryID(event: try await pool.run { try $0.eventKey("\(event)") }, endpoint: endpoint)
    }

    /// How many deliveries are in a state.
    package func deliveries(_ state: String) async throws -> Int {
        try await number("SELECT count(*) FROM outbox.deliveries WHERE state = \(state)")
    }

    /// True when nothing waits anywhere.
    package func isDrained() async throws -> Bool {
        try await number("SELECT coalesce(sum(waiting), 0)::bigint FROM outbox.backlog") == 0
    }
}

extension Connection {
    /// Records a group that is not looked at afterwards.
    package mutating func record(_ group: RecordGroup, worker: String) throws -> RecordReceipt {
        var group = group
        return try record(&group, worker: worker)
    }
}
