package import Logging
package import Outbox
import Postgres
package import ServiceLifecycle
import Transport

/// A worker process's delivery engine: everything that runs between a commit and a recorded answer.
///
///     cutter ─► (batch) ─► dispatcher ─► sender ─► transport
///                             │             │ ▲
///                             └─► (lane) ◄──┤ └── lane runner
///                                           └─► recorder ─► database
///
/// `services` are to be run by a `ServiceGroup`, which starts them in this order and stops them in
/// reverse: claiming ends first, then what is in flight ends or is stopped, then the last outcomes
/// are recorded, then the connections close.
package struct Engine: Sendable {
    package let services: [any Service]

    /// Checks the schema, keeps house once and reads the endpoints: afterwards the engine is ready
    /// to run.
    ///
    /// Throws a `Migrator.SchemaError` when the schema does not fit, and a `PostgresError` when the
    /// database does not answer.
    package init(_ configuration: EngineConfiguration, keyring: Keyring, logger: Logger) async throws {
        let target = configuration.database
        let (instance, sockets) = try await Self.lookAround(configuration, logger)
        // Every connection sees first of all that it leads to the installation that was looked at
        // here.
        let patience = Patience()
        let session = WorkerSession.setUp(instance: instance, patience: patience)
        func connect(
            _ use: String, size: Int = 1, session: SessionSetUp = session, after others: [ConnectionPool] = [],
            isReserved: Bool = true
        ) throws -> ConnectionPool {
            try ConnectionPool(
                target.named("outbox/\(configuration.worker)\(use)"), size: size, session: session, after: others,
                isReserved: isReserved)
        }
        // First what ends work, then what begins it.
        let recording = try connect(
            "/record", session: session.with(("lock_timeout", "\(Recorder.maxLock.milliseconds)ms")))
        let renewing = try connect("/renew")
        let first = [recording, renewing]
        let pool = try connect("", size: configuration.connections, after: first)
        let lanes = try connect(
            "/lanes", size: configuration.laneConnections,
            session: session.with(("lock_timeout", "\(Self.maxLaneLock.milliseconds)ms")), after: first)
        let keeping = try connect("/keep", after: first, isReserved: false)
        let listener =
            configuration.listens
            ? try connect(
                "/listen", session: WorkerSession.setUp(instance: instance, patience: patience, channel: "outbox"),
                after: first, isReserved: false) : nil
        let filtering = try connect("/filter", after: first, isReserved: false)
        let slowFiltering = try connect("/slow-filter", after: first, isReserved: false)
        let pools = Connections(
            pools: [pool, lanes, keeping, filtering, slowFiltering, recording, renewing] + (listener.map { [$0] } ?? [])
        )

        let clock = DatabaseClock()
        let directory = EndpointDirectory(pool: pool, keyring: keyring, logger: logger)
        do { _ = try await directory.read() } catch {
            await pools.close()
            throw error
        }
        let keeper = LeaseKeeper(pool: renewing, duration: configuration.lease, logger: logger)
        let (claiming, laneWakeups) = (Wakeup(), LaneWakeups(keeper))
        let recorder = Recorder(
            pool: recording, patience: patience, keeper: keeper, waking: claiming, laneWakeups, directory: directory,
            configuration: configuration, logger: logger)
        let transport = try Transport(
            policy: configuration.policy.refusing(sockets), proxy: configuration.proxy,
            capacity: configuration.maxInFlight, threads: configuration.transportThreads)
        let attempts = try AttemptRunner(
            transport: transport, recorder: recorder, directory: directory, clock: clock, instance: instance,
            lease: configuration.lease, logger: logger)
        let sender = Sender(
            attempts: attempts, recorder: recorder, waking: claiming, directory: directory, clock: clock,
            configuration: configuration, logger: logger)
        let parts = EngineParts(
            pool: pool, lanes: lanes, directory: directory, clock: clock, keeper: keeper, recorder: recorder,
            sender: sender,
            filters: FilterGate(batches: pool, lanes: filtering, slow: slowFiltering, logger: logger),
            laneWakeups: laneWakeups, memory: EventMemory(limit: configuration.maxEventBytes), instance: instance,
            configuration: configuration, logger: logger)
        let dispatcher = Dispatcher(parts, wakeup: claiming)
        let laneRunner = LaneRunner(parts)
        let cutter = Cutter(
            pool: pool, listener: listener, configuration: configuration, logger: logger, waking: claiming)
        let budgets = Budgets(
            Budget.all(of: parts, attempts: attempts, transport: transport), logger: logger)
        let janitor = Janitor(pool: keeping, budgets: budgets, configuration: configuration, logger: logger) {
            [recorder.complaint, directory.complaint].compactMap(\.self)
        }
        // Lanes stop after the sender has let go of their requests, and before the last outcomes
        // are recorded.
        let watch = DirectoryWatch(directory: directory, logger: logger)
        services = [pools, recorder, keeper, watch, laneRunner, sender, cutter, dispatcher, budgets, janitor]
    }

    /// As long as a group of records takes. What was not to be had then is tried again later, and
    /// others go on.
    private static let maxLaneLock = Duration.milliseconds(20)

    /// Sees that the database is one that this binary can work in, and a home; returns whose it is
    /// and where its server listens.
    private static func lookAround(
        _ configuration: EngineConfiguration, _ logger: Logger
    ) async throws -> (instance: String, sockets: [SocketAddress]) {
        let pool = try ConnectionPool(
            configuration.database.named("outbox/\(configuration.worker)"), size: 1, session: WorkerSession.planning)
        do {
            let found = try await pool.run { connection in
                try Migrator.check(&connection)
                try connection.requireHome(instance: configuration.instance)
                // Before the first event needs a partition. What is in the way of it is not in the
                // way of deliveries.
                Janitor.report(connection.keepHouse(within: .seconds(2)), to: logger)
                return (try connection.instance(), connection.serverSockets)
            }
            await pool.close()
            return found
        } catch {
            await pool.close()
            throw error
        }
    }
}

/// What the claiming services work with.
struct EngineParts: Sendable {
    let pool: ConnectionPool
    /// For work on one lane: nobody waits there for a lock, since who holds one stops one lane.
    let lanes: ConnectionPool
    let directory: EndpointDirectory
    let clock: DatabaseClock
    let keeper: LeaseKeeper
    let recorder: Recorder
    let sender: Sender
    let filters: FilterGate
    let laneWakeups: LaneWakeups
    let memory: EventMemory
    /// The installation that this process works for; claims in another one find nothing.
    let instance: String
    let configuration: EngineConfiguration
    let logger: Logger
}

/// Sees to it that no endpoint is known as it was more than a second ago.
private struct DirectoryWatch: Service {
    let directory: EndpointDirectory
    let logger: Logger

    func run() async {
        await Wakeup().run(complaint: "cannot ask whether endpoints have changed; trying again", to: logger) {
            try await directory.confirm(atLeastEvery: .milliseconds(800))
            return .milliseconds(400)
        }
    }
}

/// Closes the connections after everybody who uses them has stopped.
private struct Connections: Service {
    let pools: [ConnectionPool]

    func run() async throws {
        do { try await gracefulShutdown() } catch {
            // Cancelled instead of stopped: the connections are closed all the same.
        }
        await close()
    }

    func close() async {
        for pool in pools { await pool.close() }
    }
}
