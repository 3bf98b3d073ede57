import Foundation
import Logging
import Outbox
import Postgres
import Scheduler
import ServiceLifecycle

/// One database's worker: it waits until the database is there, and then runs its engine. Each of
/// several has one, so that one database that is away holds up no other.
struct DatabaseWorker: Service {
    let session: Session
    let configuration: EngineConfiguration
    let keyring: Keyring
    /// Bring the schema up to date first.
    let migrates: Bool
    let logger: Logger
    /// Told when the engine is ready to run.
    let ready: AsyncStream<Void>.Continuation

    func run() async throws {
        guard let engine = try await whenDatabaseIsThere() else { return }
        ready.yield()
        try await serviceGroup(
            engine.services.map {
                .init(
                    service: $0, successTerminationBehavior: .ignore,
                    failureTerminationBehavior: .gracefullyShutdownGroup)
            }, logger
        ).run()
    }

    /// The engine, as soon as its database is there: who starts both may start this first. Nil when
    /// the process was asked to end meanwhile.
    private func whenDatabaseIsThere() async throws -> Engine? {
        var tries = 0
        while !isStopping {
            do {
                if migrates { try await session.use { _ = try Migrator.migrate(&$0) } }
                return try await Engine(configuration, keyring: keyring, logger: logger)
            } catch let error as PostgresError where error.mayPass {
                if tries.isMultiple(of: 20) {
                    logger.warning(
                        error.kind == .unreachable || error.kind == .connectionLost
                            ? "the database is not there yet; waiting for it"
                            : "the database does not let this worker begin yet; trying again",
                        metadata: ["worker": "\(configuration.worker)", "error": "\(error)"])
                }
                tries += 1
            }
            for _ in 0..<5 where !isStopping { try? await Task.sleep(for: .milliseconds(100)) }
        }
        return nil
    }

    private var isStopping: Bool { Task.isShuttingDownGracefully || Task.isCancelled }
}

/// Services that start in this order, and stop in reverse.
func serviceGroup(_ services: [ServiceGroupConfiguration.ServiceConfiguration], _ logger: Logger) -> ServiceGroup {
    // The group's own messages about each service are noise at info.
    var quiet = logger
    quiet.logLevel = max(logger.logLevel, .warning)
    return ServiceGroup(configuration: ServiceGroupConfiguration(services: services, logger: quiet))
}
