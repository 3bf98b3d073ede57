import CPostgres
import Glibc
import Synchronization
import Threads

/// One connection to PostgreSQL. It belongs to one thread (see `ConnectionPool`) and blocks that
/// thread while it waits, but never longer than the deadline of the statement.
@safe
public struct Connection: ~Copyable {
    /// How long a statement may take unless the caller sets another deadline: well under a lease,
    /// well over any healthy statement.
    public static let defaultDeadline = Duration.seconds(10)

    /// The number of statements that this process has sent to any database, including `BEGIN` and
    /// `COMMIT`.
    public static var statementsSent: Int { sent.load(ordering: .relaxed) }
    private static let sent = Atomic<Int>(0)

    private let handle: OpaquePointer
    private var prepared: [String: String] = [:]
    private var statementsMade = 0
    package private(set) var isInTransaction = false
    private let session: SessionSetUp
    private let target: ConnectionTarget
    /// True when a pooler between us and the server may give each transaction another server
    /// connection: then no statement is prepared, and every transaction is set up again.
    public private(set) var isPooled = false
    /// True once the connection can no longer be used.
    private(set) var isBroken = false

    private init(owning handle: OpaquePointer, to target: ConnectionTarget, session: SessionSetUp) {
        unsafe self.handle = handle
        self.target = target
        self.session = session
    }

    /// Connects and sets up the session.
    static func open(_ target: ConnectionTarget, session: SessionSetUp) throws(PostgresError) -> Connection {
        let parameters = target.parameters
        let keys = CStringArray(parameters.map(\.key))
        let values = CStringArray(parameters.map(\.value))
        let opened = unsafe keys.withPointers { keys in
            unsafe values.withPointers { values in unsafe PQconnectdbParams(keys, values, 1) }
        }
        guard let opened = unsafe opened else {
            throw PostgresError(.unreachable, step: .connect, message: "out of memory while connecting")
        }
        var connection = unsafe Connection(owning: opened, to: target, session: session)
        guard unsafe PQstatus(opened) == CONNECTION_OK else {
            let message = unsafe PostgresError.ownWords(of: opened)
            throw PostgresError(.unreachable, step: .connect, message: message)
        }
        unsafe PQsetNoticeProcessor(opened, { _, _ in }, nil)
        guard unsafe PQsetnonblocking(opened, 1) == 0 else {
            throw PostgresError(.unreachable, step: .connect, message: "the connection refuses non-blocking mode")
        }
        try connection.begin()
        return connection
    }

    private mutating func begin() throws(PostgresError) {
        // A pooler reports its own process numbers.
        let deadline = ContinuousClock.now + Self.defaultDeadline
        try check(unsafe PQsendQuery(handle, "SELECT pg_catalog.pg_backend_pid()"))
        Self.sent.add(1, ordering: .relaxed)
        let process = try collect(deadline: deadline, step: .statement)
            .first(String.self)
        isPooled = process != "\(unsafe PQbackendPID(handle))"
        if !isPooled { try script(session.forSession) }
        try session.check(&self)
    }

    deinit {
        unsafe PQfinish(handle)
    }

    /// The address and the port of the server; without an address over a local socket.
    package var server: (address: String?, port: Int) {
        let address = unsafe PQhostaddr(handle).map { unsafe String(cString: $0) } ?? ""
        let port = unsafe PQport(handle).map { unsafe String(cString: $0) } ?? ""
        return (address.isEmpty ? nil : address, Int(port) ?? 5432)
    }

    // MARK: Statements

    /// Runs one statement with its values as parameters and returns its rows.
    ///
    /// The statement is prepared on its first use and then kept for the connection's life (at the
    /// protocol's level, so that a transaction pooler can follow). Past the deadline it is
    /// cancelled; when even the cancel gets no response, the connection is given up and the outcome
    /// is unknown (`PostgresError.isOutcomeUnknown`).
    ///
    /// - Parameters:
    ///   - asText: every column comes as text and can be read as a `String` only, regardless of its
    ///     type.
    ///   - mayCancel: false for a statement whose commit must not be cancelled (see `step`).
    @discardableResult
    public mutating func query(
        _ sql: SQL, within limit: Duration = defaultDeadline, asText: Bool = false, mayCancel: Bool = true
    ) throws(PostgresError) -> Rows {
        let deadline = ContinuousClock.now + limit
        for bind in sql.binds where bind.isTextWithNUL {
            throw PostgresError(.value, step: .statement, message: "a text value contains a NUL byte")
        }
        let text = sql.text
        if isPooled { return try queryPooled(sql, text, deadline: deadline, asText: asText, mayCancel: mayCancel) }
        do throws(PostgresError) {
            let name = try prepare(sql, text, deadline: deadline)
            return try send(sql, prepared: name, deadline: deadline, asText: asText, mayCancel: mayCancel)
        } catch {
            // A pooler or DISCARD ALL removed the statement: prepare it again, once, where that is
            // safe.
            guard error.sqlState == "26000" else { throw error }
            prepared[text] = nil
            if isInTransaction { throw error }
            let name = try prepare(sql, text, deadline: deadline)
            return try send(sql, prepared: name, deadline: deadline, asText: asText, mayCancel: mayCancel)
        }
    }

    /// Runs a script of several statements without parameters, as one implicit transaction.
    public mutating func script(_ text: String, within limit: Duration = defaultDeadline) throws(PostgresError) {
        try script(text, within: limit, mayCancel: true)
    }

    private mutating func script(_ text: String, within limit: Duration, mayCancel: Bool) throws(PostgresError) {
        let deadline = ContinuousClock.now + limit
        let text = isPooled && !isInTransaction ? session.forTransaction + "; " + text : text
        try check(unsafe PQsendQuery(handle, text))
        Self.sent.add(1, ordering: .relaxed)
        _ = try collect(deadline: deadline, step: .statement, mayCancel: mayCancel)
    }

    /// Runs the body inside a transaction: commits when it returns, rolls back and rethrows when it
    /// throws.
    ///
    /// A `PostgresError` says which step failed; when the step is `commit` and the outcome is
    /// unknown, the caller must read the outcome back.
    public mutating func transaction<Value>(_ body: (inout Connection) throws -> Value) throws -> Value {
        precondition(!isInTransaction, "transactions do not nest")
        isInTransaction = true
        defer { isInTransaction = false }
        try step(.begin, isPooled ? session.begin : "BEGIN")
        let value: Value
        do {
            value = try body(&self)
        } catch {
            // The first error is the one to report; a rollback that fails means that the connection
            // is lost anyway.
            if !isBroken { do { try step(.rollback, "ROLLBACK") } catch { isBroken = true } }
            throw error
        }
        try step(.commit, "COMMIT")
        return value
    }

    /// Waits until a notification arrives on a channel that this session listens to; false when the
    /// time is up.
    public mutating func waitForNotification(upTo limit: Duration) throws(PostgresError) -> Bool {
        let deadline = ContinuousClock.now + limit
        while true {
            try check(unsafe PQconsumeInput(handle))
            var arrived = false
            while let notification = unsafe PQnotifies(handle) {
                unsafe PQfreemem(notification)
                arrived = true
            }
            if arrived { return true }
            guard try poll(for: POLLIN, until: deadline) else { return false }
        }
    }

    /// Gives up the connection: the next work gets a new one.
    public mutating func abandon() {
        isBroken = true
    }

    // MARK: The conversation

    private mutating func step(_ step: PostgresError.Step, _ text: String) throws(PostgresError) {
        // A COMMIT is never cancelled: one that waits for a standby would then count as done
        // without having reached the standby.
        do throws(PostgresError) { try script(text, within: Self.defaultDeadline, mayCancel: step != .commit) } catch {
            var error = error
            error.step = step
            throw error
        }
    }

    private mutating func prepare(
        _ sql: SQL, _ text: String, deadline: ContinuousClock.Instant
    ) throws(PostgresError) -> String {
        if let name = prepared[text] { return name }
        statementsMade += 1
        let name = "s\(statementsMade)"
        let types = sql.binds.map(\.type)
        let sent = unsafe types.withUnsafeBufferPointer {
            unsafe PQsendPrepare(handle, name, text, Int32(types.count), $0.baseAddress)
        }
        try check(sent)
        _ = try collect(deadline: deadline, step: .statement)
        prepared[text] = name
        return name
    }

    private mutating func send(
        _ sql: SQL, prepared name: String, deadline: ContinuousClock.Instant, asText: Bool, mayCancel: Bool
    ) throws(PostgresError) -> Rows {
        let values = Parameters(sql.binds)
        let sent = unsafe values.withPointers { values, lengths, formats in
            unsafe PQsendQueryPrepared(
                handle, name, Int32(sql.binds.count), values, lengths, formats, asText ? 0 : 1)
        }
        try check(sent)
        Self.sent.add(1, ordering: .relaxed)
        return try collect(deadline: deadline, step: .statement, mayCancel: mayCancel)
    }

    /// Runs one statement without a name: unchanged inside a transaction, otherwise in a separate
    /// transaction with its settings, in one round trip.
    private mutating func queryPooled(
        _ sql: SQL, _ text: String, deadline: ContinuousClock.Instant, asText: Bool, mayCancel: Bool
    ) throws(PostgresError) -> Rows {
        let isAlone = !isInTransaction
        if isAlone {
            try check(unsafe PQenterPipelineMode(handle))
            try check(unsafe PQsendQueryParams(handle, SessionSetUp.begin, 0, nil, nil, nil, nil, 1))
            try check(unsafe PQsendQueryParams(handle, session.forTransaction, 0, nil, nil, nil, nil, 1))
        }
        let values = Parameters(sql.binds)
        let types = sql.binds.map(\.type)
        let sent = unsafe types.withUnsafeBufferPointer { types in
            unsafe values.withPointers { values, lengths, formats in
                unsafe PQsendQueryParams(
                    handle, text, Int32(types.count), types.baseAddress, values, lengths, formats, asText ? 0 : 1)
            }
        }
        try check(sent)
        Self.sent.add(1, ordering: .relaxed)
        guard isAlone else { return try collect(deadline: deadline, step: .statement, mayCancel: mayCancel) }
        try check(unsafe PQsendQueryParams(handle, "COMMIT", 0, nil, nil, nil, nil, 1))
        try check(unsafe PQpipelineSync(handle))
        do throws(PostgresError) {
            let rows = try collect(deadline: deadline, step: .statement, mayCancel: mayCancel, keeping: 2)
            try check(unsafe PQexitPipelineMode(handle))
            return rows
        } catch {
            if !isBroken {
                try check(unsafe PQexitPipelineMode(handle))
                // The transaction is still open; an error in ending it means that the connection is
                // lost.
                isInTransaction = true
                defer { isInTransaction = false }
                do throws(PostgresError) { try step(.rollback, "ROLLBACK") } catch { isBroken = true }
            }
            throw error
        }
    }

    /// Sends pending output and reads results until the server is ready again; keeps the last one.
    ///
    /// - Parameter kept: in a pipeline, which statement's result to keep, counted from 0.
    private mutating func collect(
        deadline: ContinuousClock.Instant, step: PostgresError.Step, mayCancel: Bool = true, keeping kept: Int? = nil
    ) throws(PostgresError) -> Rows {
        var number = 0
        var last: OpaquePointer?
        var failure: PostgresError?
        var deadline = deadline
        var isCancelled = false
        var waits = 0
        while true {
            if unsafe PQisBusy(handle) == 1 {
                let unsent = unsafe PQflush(handle)
                if unsent < 0 { throw unsafe lost(clearing: last) }
                guard let isReady = try? poll(for: unsent == 1 ? POLLIN | POLLOUT : POLLIN, until: deadline) else {
                    throw unsafe lost(clearing: unsafe last)
                }
                if !isReady, !mayCancel, session.patience?.lasts == true {
                    waits += 1
                    // Checked at the first deadline and then at intervals, since the check takes a
                    // connection.
                    if waits % 10 == 1, !isStillCommitting() { throw unsafe lost(clearing: unsafe last) }
                    deadline = .now + .seconds(1)
                } else if !isReady {
                    // Past the deadline: ask the server to stop, then give it a moment to report
                    // the result.
                    if isCancelled || !mayCancel || !requestCancel() { throw unsafe lost(clearing: unsafe last) }
                    isCancelled = true
                    deadline = .now + .seconds(2)
                } else if unsafe PQconsumeInput(handle) == 0, unsafe PQisBusy(handle) == 1 {
                    // The end of the connection; a last message of the server would have been read
                    // before it.
                    throw unsafe lost(clearing: last)
                }
                continue
            }
            guard let result = unsafe PQgetResult(handle) else {
                if kept == nil { break }
                // In a pipeline: the end of one statement's results.
                if unsafe PQstatus(handle) != CONNECTION_OK { throw unsafe lost(clearing: unsafe last, after: failure) }
                number += 1
                continue
            }
            let status = unsafe PQresultStatus(result)
            if status == PGRES_PIPELINE_SYNC {
                unsafe PQclear(result)
                break
            }
            if status == PGRES_FATAL_ERROR || status == PGRES_BAD_RESPONSE {
                failure = unsafe failure ?? PostgresError(result, step: step, isCancelled: isCancelled)
                unsafe PQclear(result)
                // A connection that dies reports an error result without a code.
                if unsafe PQstatus(handle) != CONNECTION_OK { throw unsafe lost(clearing: unsafe last, after: failure) }
            } else if kept == nil || kept == number {
                unsafe PQclear(last)
                unsafe last = result
            } else {
                unsafe PQclear(result)
            }
        }
        if let failure {
            unsafe PQclear(last)
            throw failure
        }
        guard let result = unsafe last else { throw unsafe lost(clearing: nil) }
        return unsafe Rows(owning: result)
    }

    private mutating func lost(clearing result: OpaquePointer?, after failure: PostgresError? = nil) -> PostgresError {
        unsafe PQclear(result)
        isBroken = true
        // The server's own last message, such as "terminating connection due to administrator
        // command", means that it rolled back: the outcome is known.
        if let failure, failure.kind == .server { return failure }
        return PostgresError(
            .connectionLost, step: .statement, message: "the connection to the database was lost",
            detail: unsafe PostgresError.ownWords(of: handle))
    }

    private mutating func check(_ succeeded: Int32) throws(PostgresError) {
        if succeeded == 0 { throw unsafe lost(clearing: nil) }
    }

    /// Asks the server to stop the statement; false when the request could not be sent in time.
    /// libpq waits without a limit for the other side, so a separate thread does it, which is
    /// abandoned when it does not return.
    private func requestCancel() -> Bool {
        guard let cancel = unsafe PQgetCancel(handle) else { return false }
        let request = unsafe CancelRequest(cancel)
        guard (try? Thread("pg cancel", request.send)) != nil else { return false }
        return request.isDelivered(within: .seconds(2))
    }

    /// True while the server is still working on a commit that takes long. False when the server
    /// says that this session is idle, or does not exist: then the response was lost on its way, as
    /// when a firewall drops a connection.
    private func isStillCommitting() -> Bool {
        let process = Int(unsafe PQbackendPID(handle))
        // Without a connection for the check there is no reason to give up.
        guard !isPooled, var other = try? Connection.open(target, session: SessionSetUp()) else { return true }
        do throws(PostgresError) {
            let states = try other.query(
                "SELECT state FROM pg_catalog.pg_stat_activity WHERE pid = \(process) AND usename = current_user",
                within: .seconds(2)
            ).all(String?.self)
            return states.contains { $0 != "idle" }
        } catch { return true }
    }

    /// Waits for the socket; false when the deadline passed first.
    private mutating func poll(for events: Int32, until deadline: ContinuousClock.Instant) throws(PostgresError) -> Bool
    {
        while true {
            let left = (deadline - .now).milliseconds
            var descriptor = pollfd(fd: unsafe PQsocket(handle), events: Int16(events), revents: 0)
            let ready = unsafe Glibc.poll(&descriptor, 1, Int32(max(0, min(left + 1, 60_000))))
            if ready > 0 { return true }
            if ready < 0, errno != EINTR { throw unsafe lost(clearing: nil) }
            if left <= 0 { return false }
        }
    }
}

/// A request to stop a statement, in progress.
@safe
private final class CancelRequest: Sendable {
    // Used and freed by the thread that sends it.
    private nonisolated(unsafe) let cancel: OpaquePointer
    private let isSent = Atomic(false)
    private let end = ThreadSemaphore()

    init(_ cancel: OpaquePointer) { unsafe self.cancel = cancel }

    @Sendable func send() {
        let isSent = unsafe withUnsafeTemporaryAllocation(of: CChar.self, capacity: 256) { buffer in
            unsafe PQcancel(cancel, buffer.baseAddress, 256) == 1
        }
        unsafe PQfreeCancel(cancel)
        self.isSent.store(isSent, ordering: .relaxed)
        end.signal()
    }

    func isDelivered(within limit: Duration) -> Bool { end.wait(upTo: limit) && isSent.load(ordering: .relaxed) }
}
