import CCurl
import Glibc
import Synchronization
import Threads

/// Sends HTTP requests: one thread, one curl multi handle, thousands of transfers at a time.
///
/// Every request is sent exactly as given and at most once; its result is always reported, even
/// when it is cancelled or the transport is stopped. Completions run on the transport thread: they
/// must be short and never block.
///
///     submit ─► inbox ─► loop: perform and read results · drain inbox · start some · poll
///
/// The loop's order is immune to a lost `curl_multi_wakeup` (curl issue 22272): the inbox is read
/// between performing and polling, and the poll is bounded.
@safe
package final class Transport: Sendable {
    private struct Inbox {
        var commands: [Command] = []
        var lastID: UInt64 = 0
        /// True when the thread sleeps, or is about to: the next command must wake it.
        var isAsleep = false
        var isClosed = false
    }

    enum Command: Sendable {
        case start(Start)
        case cancel(id: UInt64)
        /// The result of resolving the name of a waiting request.
        case resolved(id: UInt64, Resolver.Outcome)
    }

    struct Start: Sendable {
        let id: UInt64
        /// When its name was asked for, where that had to be waited for.
        var askedAt: ContinuousClock.Instant?
        /// What came of that.
        var outcome: Resolver.Outcome?
        let request: HTTPRequest
        let submittedAt: ContinuousClock.Instant
        let completion: @Sendable (HTTPExchange) -> Void
    }

    private let inbox = Mutex(Inbox())
    // Owned by the thread, which frees it at its end. Shared only for curl_multi_wakeup, which
    // libcurl documents as safe from any thread, and which is called under the inbox's lock while
    // that is open.
    private nonisolated(unsafe) let multi: UnsafeMutableRawPointer
    private let thread = Mutex<Thread?>(nil)
    /// Nil where a proxy resolves the names.
    private let resolver: Resolver?

    /// Starts the thread. Throws when the system has none left.
    ///
    /// - Parameter capacity: the max number of requests in flight. This number of connections and
    ///   handles is kept for later requests; with fewer, every request beyond them would make a new
    ///   connection.
    package convenience init(policy: AddressPolicy, proxy: EgressProxy? = nil, capacity: Int = 1024) throws {
        try self.init(policy: policy, proxy: proxy, capacity: capacity, resolver: proxy == nil ? Resolver() : nil)
    }

    init(policy: AddressPolicy, proxy: EgressProxy?, capacity: Int, resolver: Resolver?) throws {
        self.resolver = resolver
        Self.initializeLibrary()
        guard let multi = unsafe curl_multi_init() else { preconditionFailure("curl_multi_init: out of memory") }
        unsafe self.multi = multi
        unsafe curl_multi_set_long(multi, CURLMOPT_MAXCONNECTS, capacity)
        // An idle connection is closed when there would be more: descriptors are for requests.
        // Token requests come on top of them.
        unsafe curl_multi_set_long(multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, capacity + Self.spare)
        do {
            let thread = try Thread("transport") { self.loop(policy, proxy, capacity: capacity) }
            self.thread.withLock { $0 = thread }
        } catch {
            unsafe curl_multi_cleanup(multi)
            throw error
        }
    }

    /// Connections for requests that belong to no delivery.
    private static let spare = 16

    /// How many requests may be in flight with a number of descriptors: each request may open two
    /// sockets at a time, one for each family of addresses, and other parts of the process need
    /// some too. A process without descriptors cannot record its requests.
    package static func capacity(descriptors: Int) -> Int { max(8, (descriptors - 96) / 2) }

    static func initializeLibrary() { _ = globalInitialization }

    /// libcurl must be initialised once before any thread uses it. SIGPIPE would end the process
    /// when a receiver closes a TLS connection that we write to; the error code reports the same.
    private static let globalInitialization: Void = {
        // Read while libcurl is initialised: the keys of every connection would be written to that
        // file.
        unsafe unsetenv("SSLKEYLOGFILE")
        curl_global_init(Int(CURL_GLOBAL_ALL))
        signal(SIGPIPE, SIG_IGN)
    }()

    /// Starts a request and returns its number; the completion is called exactly once, on the
    /// transport thread.
    @discardableResult
    package func submit(_ request: HTTPRequest, completion: @escaping @Sendable (HTTPExchange) -> Void) -> UInt64 {
        let now = ContinuousClock.now
        let (id, isClosed) = inbox.withLock { inbox in
            inbox.lastID += 1
            if !inbox.isClosed {
                append(
                    .start(Start(id: inbox.lastID, request: request, submittedAt: now, completion: completion)),
                    to: &inbox)
            }
            return (inbox.lastID, inbox.isClosed)
        }
        if isClosed { completion(.unsent(.cancelled, "the transport is stopped")) }
        return id
    }

    /// Called under the inbox's lock, and wakes the loop under it: the loop frees the handle after
    /// it has seen, under the same lock, that the inbox is closed, so that no thread wakes a freed
    /// handle.
    private func append(_ command: Command, to inbox: inout Inbox) {
        if inbox.isAsleep { wakeUp() }
        inbox.isAsleep = false
        inbox.commands.append(command)
    }

    /// Sends a request and waits for its exchange. Cancelling the task stops the request; the
    /// exchange then says so.
    package func send(_ request: HTTPRequest) async -> HTTPExchange {
        let started = Mutex<UInt64?>(nil)
        return await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                // Checked under the lock that the handler takes: the handler of an already
                // cancelled task has run by now, and its cancel would otherwise overtake the start.
                let isCancelled = started.withLock { started in
                    if !Task.isCancelled { started = submit(request) { continuation.resume(returning: $0) } }
                    return Task.isCancelled && started == nil
                }
                if isCancelled { continuation.resume(returning: .unsent(.cancelled, "cancelled before it was sent")) }
            }
        } onCancel: {
            if let id = started.withLock({ $0 }) { cancel(id) }
        }
    }

    /// Stops a request; its completion reports `cancelled`. Unknown and finished numbers are
    /// ignored.
    package func cancel(_ id: UInt64) {
        inbox.withLock { inbox in
            if !inbox.isClosed { append(.cancel(id: id), to: &inbox) }
        }
    }

    /// Stops everything: requests in flight report `cancelled`, later ones are refused; waits for
    /// the thread.
    package func stop() async {
        inbox.withLock { inbox in
            if !inbox.isClosed { wakeUp() }
            inbox.isClosed = true
        }
        resolver?.stop()
        await thread.withLock(\.self)?.end()
    }

    private func wakeUp() {
        unsafe curl_multi_wakeup(multi)
    }

    // MARK: The transport thread

    private func loop(_ policy: AddressPolicy, _ proxy: EgressProxy?, capacity: Int) {
        let loop = unsafe TransportLoop(
            multi, policy: policy, proxy: proxy, resolver: resolver, capacity: capacity
        ) { [weak self] id, outcome in
            self?.inbox.withLock { inbox in
                if !inbox.isClosed { self?.append(.resolved(id: id, outcome), to: &inbox) }
            }
        }
        var commands: [Command] = []
        while true {
            loop.finishReady()
            // Swapped, so that both arrays keep their memory.
            commands.removeAll(keepingCapacity: true)
            let (isClosed, mayWait) = inbox.withLock { inbox in
                swap(&commands, &inbox.commands)
                inbox.isAsleep = commands.isEmpty && !loop.isStarting
                return (inbox.isClosed, inbox.isAsleep)
            }
            for command in commands { loop.take(command) }
            if isClosed { return loop.close() }
            loop.expireNames()
            loop.startSome()
            // Only when the lock says so: nobody wakes a thread that was not about to sleep.
            if mayWait, !loop.isStarting { loop.wait() }
        }
    }
}
