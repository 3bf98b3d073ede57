import ArgumentParser
import EmbeddedPostgres
import Foundation
import Logging
import Outbox
import Postgres
import Scheduler
import ServiceLifecycle
import Synchronization
import Transport
import UnixSignals

/// `outboxctl run`: the daemon.
struct Run: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Deliver events until SIGTERM.",
        discussion: """
            Prints one line when it is ready, logs to stderr, and exits 0 after SIGTERM or SIGINT: it stops claiming, lets \
            requests in flight end within the grace period, records, and leaves. A second signal ends it at once.
            """)

    @OptionGroup var options: GlobalOptions

    @Option(name: .long, help: "How long a claimed batch or lane is held without renewal; more than any timeout.")
    var lease: DurationArgument?

    @Option(name: .long, help: "How long a stop waits for requests in flight.")
    var grace: DurationArgument?

    @Flag(name: .long, help: "Bring the schema up to date first.")
    var migrate = false

    func run() async throws {
        let flags = [Setting.lease.key: lease, Setting.grace.key: grace].compactMapValues {
            $0.map { "\($0.duration.microseconds)us" }
        }
        let settings = try Settings(options, flags: flags)
        let logger = try LineLogHandler.logger(settings)
        let signals = await StopSignals(logger)
        let (policy, proxy) = (try settings.value(of: .allowNetworks), try settings.value(of: .egressProxy))
        let host = ProcessInfo.processInfo.hostName
        let pid = ProcessInfo.processInfo.processIdentifier
        let descriptors = raiseDescriptorLimit()

        let sessions: [Session]
        let urls = try settings.databaseURL() == nil ? settings.value(of: .databases) : []
        if !urls.isEmpty {
            sessions = try urls.map { Session(target: try ConnectionTarget($0), cluster: nil) }
        } else {
            sessions = [try await Session.open(settings)]
        }
        var services: [any Service] = []
        var workers: [String] = []
        let (arrivals, arrive) = AsyncStream<Void>.makeStream()
        do {
            let keyring = try settings.keyring(creating: sessions.contains { $0.cluster != nil })
            for session in sessions {
                if let cluster = session.cluster { services.append(ClusterKeeper(cluster: cluster, logger: logger)) }
            }
            for (index, session) in sessions.enumerated() {
                let worker = "\(host)/\(pid)" + (sessions.count > 1 ? "/\(index + 1)" : "")
                var configuration = EngineConfiguration(
                    database: session.target, worker: worker, host: host, pid: Int(pid), policy: policy)
                configuration.proxy = proxy
                configuration.instance = try settings.value(of: .instance)
                configuration.lease = try settings.value(of: .lease)
                configuration.grace = try settings.value(of: .grace)
                configuration.pollInterval = try settings.value(of: .pollInterval)
                configuration.listens = try settings.value(of: .listenNotifications)
                configuration.transportThreads = try settings.value(of: .transportThreads)
                let inFlight = try settings.value(of: .maxInFlight)
                configuration.maxInFlight = min(
                    inFlight, Transport.capacity(descriptors: descriptors / sessions.count))
                if configuration.maxInFlight < inFlight {
                    logger.warning(
                        "fewer requests are in flight than OUTBOX_MAX_IN_FLIGHT says: this process may not have more open files (ulimit -n)",
                        metadata: ["max_in_flight": "\(configuration.maxInFlight)", "open_files": "\(descriptors)"])
                }
                services.append(
                    DatabaseWorker(
                        session: session, configuration: configuration, keyring: keyring, migrates: migrate,
                        logger: logger, ready: arrive))
                workers.append(worker)
            }
        } catch {
            for session in sessions { try session.cluster?.leave() }
            throw error
        }

        let line =
            "outbox: ready worker=\(workers.joined(separator: ",")) schema=\(Migrator.expectedVersion) version=\(outboxVersion) "
            + (sessions[0].cluster == nil ? "database=configured" : "database=embedded")
        let group = serviceGroup(
            services.map {
                .init(
                    service: $0, successTerminationBehavior: .ignore,
                    failureTerminationBehavior: .gracefullyShutdownGroup)
            } + [
                .init(
                    service: Ready(line: line, arrivals: arrivals, expected: workers.count, signals: signals),
                    successTerminationBehavior: .gracefullyShutdownGroup)
            ], logger)
        let result: Result<Void, any Error>
        do {
            try await group.run()
            result = .success(())
        } catch { result = .failure(error) }
        for session in sessions { try session.cluster?.leave() }
        try result.get()
        logger.info("stopped", metadata: ["sql_statements": "\(Connection.statementsSent)"])
    }
}

/// Starts the embedded PostgreSQL again when it was killed: the daemon is who keeps it up.
private struct ClusterKeeper: Service {
    let cluster: EmbeddedCluster
    let logger: Logger

    func run() async throws {
        await cancelWhenGracefulShutdown {
            while !Task.isCancelled {
                do {
                    try await Task.sleep(for: .seconds(1))
                    if try cluster.restartIfGone() {
                        logger.warning("the embedded PostgreSQL was gone; started it again")
                    }
                } catch is CancellationError {
                    return
                } catch {
                    logger.error("the embedded PostgreSQL is gone and does not start", metadata: ["error": "\(error)"])
                }
            }
        }
    }
}

/// Says that the process is ready, when all its databases were there: the last service to start,
/// which ends at the first signal and so stops the others.
private struct Ready: Service {
    let line: String
    let arrivals: AsyncStream<Void>
    let expected: Int
    let signals: StopSignals

    func run() async {
        await withTaskGroup { group in
            group.addTask {
                var count = 0
                for await _ in arrivals {
                    count += 1
                    guard count == expected else { continue }
                    print(line)
                    fflush(nil)
                }
            }
            await signals.first()
            group.cancelAll()
        }
    }
}

/// The signals that end the process: the first one gracefully, another one at once. Two within a
/// second are one: who stops a group of processes may reach each twice. A hang-up, as of the
/// terminal, ends nothing.
final class StopSignals: Sendable {
    private let arrival: AsyncStream<Void>
    private let began = Mutex<ContinuousClock.Instant?>(nil)

    /// Signals are taken from here on.
    init(_ logger: Logger) async {
        let signals = await UnixSignalsSequence(trapping: .sigterm, .sigint, .sighup)
        let (arrival, report) = AsyncStream<Void>.makeStream()
        self.arrival = arrival
        // The second signal ends the process, however long the stop takes: so this task belongs to
        // the process.
        Task {
            for await signal in signals {
                if signal == .sighup {
                    logger.notice("a hang-up was ignored; settings are read at the start")
                    continue
                }
                let age = began.withLock { began -> Duration? in
                    defer { began = began ?? .now }
                    return began.map { .now - $0 }
                }
                if let age {
                    if age > .seconds(1) { _exit(signal == .sigint ? 130 : 143) }
                } else {
                    report.yield()
                }
            }
        }
    }

    /// True once the process has been asked to end.
    var isRaised: Bool { began.withLock { $0 != nil } }

    /// Waits for the first one, or for the process to end for another reason.
    func first() async { for await _ in arrival.cancelOnGracefulShutdown() { break } }
}
