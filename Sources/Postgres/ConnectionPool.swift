import Synchronization
import Threads

/// A few connections to one database, each owned by a thread of its own, fed from one queue.
///
/// Work is a synchronous closure that has a connection to itself and runs on that connection's thread; only the boundary
/// is async. Work that was posted always runs: a cancelled task still gets its answer, because a half-known outcome is
/// worse than a late one; the statements' deadlines bound the wait. A connection is made when work first needs it, and
/// anew after it broke; the caller decides whether and when to try again.
///
/// Connections that must not wait behind others (recording, lease renewal) get a pool of size one of their own.
public final class ConnectionPool: Sendable {
    private let queue = WorkQueue()
    private let threads: [Thread]

    /// Starts the threads; connects nothing yet. Throws when the system has no thread left.
    ///
    /// - Parameters:
    ///   - session: how every new connection is set up.
    ///   - isReserved: connections are made at once, and again as soon as one has broken, so that what others take of the process's
    ///     descriptors is not missing here.
    public init(
        _ target: ConnectionTarget, size: Int, session: SessionSetUp = SessionSetUp(), isReserved: Bool = false
    ) throws {
        precondition(size > 0, "a pool needs a connection")
        var threads: [Thread] = []
        do {
            for _ in 0..<size {
                threads.append(
                    try Thread("pg " + (target.name.split(separator: "/").last ?? "")) { [queue] in
                        queue.work(target: target, session: session, isReserved: isReserved)
                    })
            }
        } catch {
            queue.close(waking: threads.count)
            throw error
        }
        self.threads = threads
    }

    /// Runs the closure on a connection and returns what it returns.
    ///
    /// Throws what the closure throws, or a `PostgresError` when no connection could be made or the pool is closed.
    public func run<Value: Sendable>(
        _ body: @escaping @Sendable (inout Connection) throws -> Value
    ) async throws -> Value {
        try await withCheckedThrowingContinuation { continuation in
            let job = WorkQueue.Job(
                run: { connection in continuation.resume(with: Result { try body(&connection) }) },
                fail: { continuation.resume(throwing: $0) })
            if !queue.post(job) {
                continuation.resume(
                    throwing: PostgresError(.unreachable, step: .connect, message: "the connection pool is closed"))
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

    /// Runs a single statement and returns how many rows it touched.
    @discardableResult
    public func execute(_ sql: SQL, within limit: Duration = Connection.defaultDeadline) async throws -> Int {
        try await run { try $0.query(sql, within: limit).affected }
    }

    /// Lets the queued work finish, closes the connections and waits for the threads. Later work is refused.
    public func close() async {
        queue.close(waking: threads.count)
        for thread in threads { await thread.end() }
    }
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
    func work(target: ConnectionTarget, session: SessionSetUp, isReserved: Bool) {
        while !isDone {
            if isReserved {
                do throws(PostgresError) {
                    serve(try Connection.open(target, session: session), first: nil)
                    continue
                } catch {
                    // Whoever has work for it hears why.
                }
            }
            guard let job = next() else { return }
            let connection: Connection
            do throws(PostgresError) { connection = try Connection.open(target, session: session) } catch {
                job.fail(error)
                continue
            }
            serve(connection, first: job)
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

    private func next() -> Job? {
        while true {
            let (job, isClosed) = state.withLock { state in
                (state.jobs.isEmpty ? nil : state.jobs.removeFirst(), state.isClosed)
            }
            if let job { return job }
            if isClosed { return nil }
            // A signal may be left over from a job that was taken without waiting; then this goes round once more.
            signal.wait()
        }
    }
}
