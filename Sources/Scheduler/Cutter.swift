import Logging
import Outbox
import Postgres
import ServiceLifecycle

/// Turns newly committed events into batches, and sleeps when there are none.
///
/// Polling is the contract: everything works when no notification ever arrives. The pause between two looks grows from
/// 1 ms while events flow to the poll interval. Before a long pause the worker says that it sleeps, looks once more, and
/// then waits for a producer's notification; see `outbox.wake_worker`.
final class Cutter: Service {
    private let pool: ConnectionPool
    /// A connection that listens; nil behind a transaction pooler.
    private let listener: ConnectionPool?
    private let configuration: EngineConfiguration
    private let logger: Logger
    private let wakeup = Wakeup()
    /// Signalled when there are new batches.
    private let claiming: Wakeup

    init(
        pool: ConnectionPool, listener: ConnectionPool?, configuration: EngineConfiguration, logger: Logger,
        waking claiming: Wakeup
    ) {
        self.pool = pool
        self.listener = listener
        self.configuration = configuration
        self.logger = logger
        self.claiming = claiming
    }

    func run() async {
        var pause = Self.shortest
        var isAhead = false
        await wakeup.run(complaint: "cannot look for new events; trying again", to: logger) {
            switch try await cut(pool) {
            case .events(let count) where count > 0:
                claiming.signal()
                isAhead = false
                pause = Self.shortest * 2
                return count >= configuration.cutBudget ? nil : Self.gathering(after: count)
            case .enough:
                // Some thousand events ahead: time enough for these, not for what others commit meanwhile.
                if !isAhead { claiming.signal() }
                isAhead = true
                pause = Self.shortest
                return Self.betweenLooks
            case .events, .busy: isAhead = false
            }
            if pause >= Self.sleepy, let listener, try await sleep(listener) {
                pause = Self.shortest
                return nil
            }
            defer { pause = min(pause * 2, configuration.pollInterval) }
            return pause
        }
    }

    private static let shortest = Duration.milliseconds(1)

    /// How long to let events gather after a cut of so many: next to nothing while they are few, and up to 10 ms in a
    /// stream of them, where every cut, claim and record would otherwise be made for a handful.
    private static func gathering(after count: Int) -> Duration { shortest * min(max(1, count / 4), 10) }

    /// How soon the events of others are seen while a backlog is delivered.
    private static let betweenLooks = Duration.milliseconds(8)

    /// Pauses from here on are worth the two statements of falling asleep.
    private static let sleepy = Duration.milliseconds(16)

    private func cut(_ pool: ConnectionPool) async throws -> Cut {
        try await pool.run { [configuration] in
            try $0.cut(batchSize: configuration.batchSize, budget: configuration.cutBudget)
        }
    }

    /// Sleeps until a producer notifies; false when this worker may not, and has to poll.
    private func sleep(_ listener: ConnectionPool) async throws -> Bool {
        try await listener.run { [configuration, wakeup, claiming] connection in
            guard try connection.beginSleep() else { return false }
            // Awake again, whatever happens: with the lock left behind, every producer would notify for ever. When even
            // this fails, the connection is lost, and the lock with it.
            defer { do { try connection.endSleep() } catch { connection.abandon() } }
            // Whoever inserted before we said so has committed by now, or we could not have said so. Look once more.
            let last = try connection.cut(batchSize: configuration.batchSize, budget: configuration.cutBudget)
            var wasWoken = false
            if last == .events(0) {
                let deadline = ContinuousClock.now + configuration.pollInterval * 10
                // In short waits, so that a stop is noticed.
                while !wasWoken, !wakeup.isStopped, .now < deadline {
                    wasWoken = try connection.waitForNotification(
                        upTo: min(.milliseconds(100), configuration.pollInterval))
                }
            } else if last != .busy {
                claiming.signal()
                wasWoken = true
            }
            return wasWoken
        }
    }
}
