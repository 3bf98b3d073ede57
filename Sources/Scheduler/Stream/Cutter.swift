import Logging
import Outbox
import Postgres
import ServiceLifecycle
import Synchronization

/// Turns newly committed events into batches, and sleeps when there are none.
///
/// Polling is the contract: everything works when no notification ever arrives. The pause between
/// two looks grows from 1 ms while events flow to the poll interval. Before a long pause the worker
/// says that it sleeps, looks once more, and then a producer's notification ends the pause; see
/// `outbox.wake_worker`. Only a transaction that had written before and commits after may be missed
/// by it, and waits as long as this worker has slept, at most a poll interval.
final class Cutter: Service {
    private let pool: ConnectionPool
    /// A connection that listens; nil behind a transaction pooler.
    private let listener: ConnectionPool?
    private let configuration: EngineConfiguration
    private let logger: Logger
    private let wakeup = Wakeup()
    /// Signalled when there are new batches.
    private let claiming: Wakeup
    private let budget: Mutex<CutBudget>

    init(
        pool: ConnectionPool, listener: ConnectionPool?, configuration: EngineConfiguration, logger: Logger,
        waking claiming: Wakeup
    ) {
        self.pool = pool
        self.listener = listener
        self.configuration = configuration
        self.logger = logger
        self.claiming = claiming
        budget = Mutex(CutBudget(most: configuration.cutBudget))
    }

    func run() async {
        var pace = CutPace(longest: configuration.pollInterval)
        await wakeup.run(complaint: "cannot look for new events; trying again", to: logger) {
            let most = budget.withLock { $0.events }
            let step = pace.cut(try await pool.run { try self.cut(&$0) }, most: most)
            if step.wakesDispatcher { claiming.signal() }
            switch step.next {
            case .again: return nil
            case .pause(let pause): return pause
            case .sleep(let pause):
                guard let listener, try await sleep(listener, from: pause) else { return pause }
                pace.woke()
                return .zero
            }
        }
    }

    /// One cut, of as many events as fit its deadline. One that does not is said: nobody gets new
    /// events meanwhile.
    private func cut(_ connection: inout Connection) throws -> Cut {
        let most = budget.withLock { $0.events }
        let begin = ContinuousClock.now
        do {
            let cut = try connection.cut(batchSize: configuration.batchSize, budget: most)
            if case .events(let count) = cut { budget.withLock { $0.cut(count, took: .now - begin) } }
            return cut
        } catch let error as PostgresError where error.isOutOfTime {
            budget.withLock { $0.ranOutOfTime() }
            logger.warning(
                "a cut took longer than its deadline and is tried again with fewer events",
                metadata: ["events": "\(most)", "next": "\(budget.withLock { $0.events })"])
            throw error
        }
    }

    /// Sleeps until a producer notifies or a look finds something, and looks at growing intervals
    /// meanwhile. False when nobody would notify, or at a stop: then poll.
    private func sleep(_ listener: ConnectionPool, from shortest: Duration) async throws -> Bool {
        try await listener.run { [self] connection in
            if connection.isPooled { return false }
            var pause = shortest
            while !wakeup.isStopped {
                guard try connection.sleep(for: pause) else { return false }
                // What was inserted before that and is committed by now is seen by one more look.
                switch try cut(&connection) {
                case .events(0), .busy: break
                case .events, .more, .enough:
                    claiming.signal()
                    try connection.wake()
                    return true
                }
                let deadline = ContinuousClock.now + pause
                // In short waits, so that a stop is noticed.
                while !wakeup.isStopped, .now < deadline {
                    if try connection.waitForNotification(upTo: min(.milliseconds(100), deadline - .now)) {
                        try connection.wake()
                        return true
                    }
                }
                pause = min(pause * 2, configuration.pollInterval)
            }
            return false
        }
    }
}
