import Logging
import Outbox
import Postgres
import ServiceLifecycle

/// Reports that this process is alive, and keeps house: partitions ahead, retention, rows past
/// their use.
final class Janitor: Service {
    /// Often enough that `outbox.problems` can call 30 seconds without a report a missing worker.
    private static let heartbeat = Duration.seconds(5)
    private static let housekeeping = Duration.seconds(600)

    /// Says what was done, and what was not.
    static func report(_ house: Housekeeping, to logger: Logger) {
        for name in house.dropped { logger.info("dropped an expired partition", metadata: ["partition": "\(name)"]) }
        for (chore, error) in house.failures {
            logger.warning(
                "a part of the housekeeping failed; it is tried again",
                metadata: ["part": "\(chore.rawValue)", "error": "\(error)"])
        }
    }

    private let pool: ConnectionPool
    private let budgets: Budgets
    /// What else to complain of now.
    private let complaints: @Sendable () -> [Complaint]
    private let configuration: EngineConfiguration
    private let logger: Logger
    private let wakeup = Wakeup()

    init(
        pool: ConnectionPool, budgets: Budgets, configuration: EngineConfiguration, logger: Logger,
        complaints: @escaping @Sendable () -> [Complaint]
    ) {
        self.pool = pool
        self.budgets = budgets
        self.complaints = complaints
        self.configuration = configuration
        self.logger = logger
    }

    func run() async {
        await withGracefulShutdownHandler {
            // The engine kept house once before it started.
            var nextHousekeeping = ContinuousClock.now + Self.housekeeping
            var told: Set<String?> = []
            while !wakeup.isStopped && !Task.isCancelled {
                do {
                    // First, since what follows may have to wait for them.
                    let waits = try await pool.run { try $0.lockWaits() }.rows
                    // By what is advised, which names the process: how many wait for it changes.
                    for wait in waits where !told.contains(wait[2]) {
                        logger.error("a lock holds others up", metadata: ["who": "\(wait[1] ?? "")"])
                    }
                    told = Set(waits.map { $0[2] })
                    let complaints = budgets.complaints() + complaints()
                    let readings = budgets.readings.map {
                        BudgetUse(name: $0.kind.rawValue, used: $0.used, limit: $0.limit)
                    }
                    let timeline = try await pool.run { [configuration] in
                        try $0.heartbeat(
                            worker: configuration.worker, host: configuration.host, pid: configuration.pid,
                            complaints: complaints, budgets: readings)
                        return try $0.noteTimeline()
                    }
                    if let timeline {
                        logger.warning(
                            "the database is on a new timeline: a failover, or a recovery to a point in time",
                            metadata: ["timeline": "\(timeline)"])
                    }
                    if .now >= nextHousekeeping {
                        // Set before, so that a failure is not repeated with every heartbeat.
                        nextHousekeeping = .now + Self.housekeeping
                        let house = try await pool.run { $0.keepHouse() }
                        Self.report(house, to: logger)
                        if house.hasLeftovers { nextHousekeeping = .now + .seconds(30) }
                        if house.isUnfinished { nextHousekeeping = .now }
                    }
                } catch {
                    // Others complain about a database that is away; a lock that was not had is
                    // tried again soon.
                    logger.debug("housekeeping was put off", metadata: ["error": "\(error)"])
                }
                await wakeup.wait(upTo: Self.heartbeat)
            }
            do { try await pool.run { [configuration] in try $0.removeWorker(configuration.worker) } } catch {
                logger.debug("the worker's row was left behind", metadata: ["error": "\(error)"])
            }
        } onGracefulShutdown: {
            self.wakeup.stop()
        }
    }
}
