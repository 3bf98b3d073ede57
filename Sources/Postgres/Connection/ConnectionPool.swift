import Synchronization
import Threads

/// A few connections to one database, each owned by its own thread, fed from one queue.
///
/// Work is a synchronous closure that has exclusive use of a connection and runs on that
/// connection's thread; only the boundary is async. Work that was posted always runs: a cancelled
/// task still gets its response, because a half-known outcome is worse than a late one; the
/// statements' deadlines bound the wait. A connection is made when work first needs it, and again
/// after it broke; the caller decides whether and when to retry.
///
/// Connections that must not wait behind others (recording, lease renewal) get a separate pool of
/// size one.
public final class ConnectionPool: Sendable {
    private let queue = WorkQueue()
    private let threads: [Thread]

    /// Starts the threads without connecting yet. Throws when the system has no thread left.
    ///
    /// - Parameters:
    ///   - session: how every new connection is set up.
    ///   - others: pools whose connections come first. As long as one of them has none, this pool
    ///     does not connect: when there are not enough connections for all, work that is not
    ///     started does no harm, and work that cannot be finished does.
    ///   - isReserved: connections are made at once, and again as soon as one has broken, so that
    ///     descriptors used by other parts of the process are not missing here.
    public init(
        _ target: ConnectionTarget, size: Int, session: SessionSetUp = SessionSetUp(),
        after others: [ConnectionPool] = [],
        isReserved: Bool = false
    ) throws {
        precondition(size > 0, "a pool needs a connection")
        var threads: [Thread] = []
        do {
            for _ in 0..<size {
                threads.append(
                    try Thread("pg " + (target.name.split(separator: "/").last ?? "")) { [queue] in
                        queue.work(target: target, session: session, after: others.map(\.queue), isReserved: isReserved)
                    })
            }
        } catch {
            queue.close(waking: threads.count)
            throw error
        }
        self.threads = threads
    }

    /// Runs the closure on a connection and returns its result.
    ///
    /// Throws the closure's error, or a `PostgresError` when no connection could be made, none was
    /// free in time, or the pool is closed.
    ///
    /// - Parameter patience: how long to wait for a free connection; nil for as long as it takes.
    public func run<Value: Sendable>(
        waiting patience: Duration? = nil, _ body: @escaping @Sendable (inout Connection) throws -> Value
    ) async throws -> Value {
        try await withCheckedThrowingContinuation { continuation in
            let work = Work(body, continuation)
            let job = WorkQueue.Job(run: { work.run(on: &$0) }, fail: { work.fail($0) })
            if !queue.post(job) {
                work.fail(PostgresError(.unreachable, step: .connect, message: "the connection pool is closed"))
            }
            guard let patience else { return }
            Task {
                do { try await Task.sleep(for: patience) } catch { return }
                work.fail(PostgresError(.deadline, step: .connect, message: "no connection was free in time"))
            }
        }
    }

    /// Runs a single statement and reads its rows.
    public func query<Value: Sendable>(
        _ sql: SQL, within limit: Duration = Connection.defaultDeadline,
        _ read: @escaping @Sendable (Row) throws(PostgresError) -> Value
    ) async throws -> [Value] {
        try await run { try $0.query(sql, within: limit).map(read) }
    }

    /// Runs a single statement and returns every row's columns, in order, as these types.
    public func query<each Value: PostgresDecodable & Sendable>(
        _ sql: SQL, within limit: Duration = Connection.defaultDeadline, of types: repeat (each Value).Type
    ) async throws -> [(repeat each Value)] {
        try await run { try $0.query(sql, within: limit).all(repeat each types) }
    }

    /// Runs a single statement and returns how many rows it touched.
    @discardableResult
    public func execute(_ sql: SQL, within limit: Duration = Connection.defaultDeadline) async throws -> Int {
        try await run { try $0.query(sql, within: limit).affected }
    }

    /// Finishes the queued work, closes the connections and waits for the threads. Later work is
    /// refused.
    public func close() async {
        queue.close(waking: threads.count)
        for thread in threads { await thread.end() }
    }
}

/// A caller's work, done or given up once: whoever takes it first answers, and what it holds goes
/// with that.
private final class Work<Value: Sendable>: Sendable {
    private struct Parts: Sendable {
        let body: @Sendable (inout Connection) throws -> Value
        let answer: CheckedContinuation<Value, any Error>
    }

    private let parts: Mutex<Parts?>

    init(
        _ body: @escaping @Sendable (inout Connection) throws -> Value,
        _ answer: CheckedContinuation<Value, any Error>
    ) { parts = Mutex(Parts(body: body, answer: answer)) }

    private func take() -> Parts? {
        parts.withLock { parts in
            let taken = parts
            parts = nil
            return taken
        }
    }

    func run(on connection: inout Connection) {
        guard let taken = take() else { return }
        taken.answer.resume(with: Result { try taken.body(&connection) })
    }

    func fail(_ error: any Error) { take()?.answer.resume(throwing: error) }
}

/// The jobs that wait for a connection, and the loop that each connection's thread runs.
private final class WorkQueue: Sendable {
    struct Job: Sendable {
        let run: @Sendable (inout Connection) -> Void
        let fail: @Sendable (any Error) -> Void
    }

    private struct State {
        var jobs: [Job] = []
        var isClosed = false
        /// The number of open connections, and why the last attempt to connect failed.
        var connected = 0
        var failure: PostgresError?
    }

    private let state = Mutex(State())
    private let signal = ThreadSemaphore()

    func post(_ job: Job) -> Bool {
        let isAccepted = state.withLock { state in
            if !state.isClosed { state.jobs.append(job) }
            return !state.isClosed
        }
        if isAccepted { signal.signal() }
        return isAccepted
    }

    func close(waking threads: Int) {
        state.withLock { $0.isClosed = true }
        for _ in 0..<threads { signal.signal() }
    }

    /// Runs jobs until the queue is closed and empty.
    func work(target: ConnectionTarget, session: SessionSetUp, after others: [WorkQueue], isReserved: Bool) {
        var hasFailed = false
        while !isDone {
            // Reserved connections are made at once, and retried at intervals after a failure, even
            // when there is no work.
            let job = isReserved ? (hasFailed ? next(within: .milliseconds(500)) : nil) : next()
            if !isReserved, job == nil { return }
            do throws(PostgresError) {
                for other in others { try other.requireConnection() }
                let connection = try Connection.open(target, session: session)
                hasFailed = false
                note(connected: 1)
                defer { note(connected: -1) }
                serve(connection, first: job)
            } catch {
                hasFailed = true
                state.withLock { $0.failure = error }
                // A caller with work for it gets the error.
                job?.fail(error)
            }
        }
    }

    private func note(connected change: Int) {
        state.withLock { state in
            state.connected += change
            if change > 0 { state.failure = nil }
        }
    }

    /// Waits a moment for a connection of this queue; throws the error when there is none.
    private func requireConnection() throws(PostgresError) {
        let end = ContinuousClock.now + .seconds(2)
        while true {
            let (isConnected, failure) = state.withLock { ($0.connected > 0, $0.failure) }
            if isConnected { return }
            if let failure { throw failure }
            if .now > end {
                throw PostgresError(
                    .unreachable, step: .connect,
                    message: "another connection that is needed first could not be made in time")
            }
            Thread.pause(.milliseconds(2))
        }
    }

    private func serve(_ connection: consuming Connection, first: Job?) {
        var connection = connection
        var job = first ?? next()
        while let current = job {
            current.run(&connection)
            if connection.isBroken { return }
            job = next()
        }
    }

    /// True when it is closed and nothing is left to do.
    private var isDone: Bool { state.withLock { $0.isClosed && $0.jobs.isEmpty } }

    private func next(within limit: Duration? = nil) -> Job? {
        while true {
            let (job, isClosed) = state.withLock { state in
                (state.jobs.isEmpty ? nil : state.jobs.removeFirst(), state.isClosed)
            }
            if let job { return job }
            if isClosed { return nil }
            // A signal may be left over from a job that was taken without waiting; then the loop
            // runs once more.
            guard let limit else {
                signal.wait()
                continue
            }
            if !signal.wait(upTo: limit) { return nil }
        }
    }
}
