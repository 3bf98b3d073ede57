import CCurl
import Glibc
import Synchronization
import Threads

/// Sends HTTP requests: one thread, one curl multi handle, thousands of transfers at a time.
///
/// Every request is sent exactly as given and at most once; what becomes of it is always reported, also when it is
/// cancelled or the transport is stopped. Completions run on the transport thread: they must be short and never block.
///
///     submit ─► inbox ─► loop: perform and read results · drain inbox · start some · poll
///
/// The loop's order is immune to a lost `curl_multi_wakeup` (curl issue 22272): the inbox is read between performing and
/// polling, and the poll is bounded.
@safe
package final class Transport: Sendable {
    private struct Inbox {
        var commands: [Command] = []
        var lastID: UInt64 = 0
        /// The thread sleeps, or is about to: the next command must wake it.
        var isAsleep = false
        var isClosed = false
    }

    enum Command: Sendable {
        case start(Start)
        case cancel(id: UInt64)
    }

    struct Start: Sendable {
        let id: UInt64
        let request: HTTPRequest
        let submittedAt: ContinuousClock.Instant
        let completion: @Sendable (HTTPExchange) -> Void
    }

    private let inbox = Mutex(Inbox())
    // The thread's, which frees it at its end. Shared only for curl_multi_wakeup, which libcurl documents as safe from any thread, and
    // which is called under the inbox's lock while that is open.
    private nonisolated(unsafe) let multi: UnsafeMutableRawPointer
    private let thread = Mutex<Thread?>(nil)

    /// Starts the thread. Throws when the system has none left.
    ///
    /// - Parameter capacity: how many requests will be in flight at most. So many connections and handles are kept for later
    ///   requests; with fewer, every request beyond them would connect anew.
    package init(policy: AddressPolicy, proxy: EgressProxy? = nil, capacity: Int = 1024) throws {
        Self.initializeLibrary()
        guard let multi = unsafe curl_multi_init() else { preconditionFailure("curl_multi_init: out of memory") }
        unsafe self.multi = multi
        unsafe curl_multi_set_long(multi, CURLMOPT_MAXCONNECTS, capacity)
        // An idle connection is closed when there would be more: descriptors are for requests. Tokens are asked for beside them.
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

    /// How many requests may be in flight with so many descriptors: each may open two sockets at a time, one for each family of
    /// addresses, and others need some too. Who has none left cannot record what was sent.
    package static func capacity(descriptors: Int) -> Int { max(8, (descriptors - 96) / 2) }

    static func initializeLibrary() { _ = globalInitialization }

    /// libcurl must be initialised once before any thread uses it. SIGPIPE would end the process when a receiver closes
    /// a TLS connection that we write to; the error code tells us the same.
    private static let globalInitialization: Void = {
        // Read while libcurl is initialised: the keys of every connection would be written to that file.
        unsafe unsetenv("SSLKEYLOGFILE")
        curl_global_init(Int(CURL_GLOBAL_ALL))
        signal(SIGPIPE, SIG_IGN)
    }()

    /// Starts a request and returns its number; the completion is called exactly once, on the transport thread.
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

    /// Called under the inbox's lock, and wakes the loop under it: the loop frees the handle after it has seen, under the same lock,
    /// that the inbox is closed, so that nobody wakes a handle that is gone.
    private func append(_ command: Command, to inbox: inout Inbox) {
        if inbox.isAsleep { wakeUp() }
        inbox.isAsleep = false
        inbox.commands.append(command)
    }

    /// Sends a request and waits for what comes of it. Cancelling the task stops the request; its exchange then says so.
    package func send(_ request: HTTPRequest) async -> HTTPExchange {
        let started = Mutex<UInt64?>(nil)
        return await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                // Checked under the lock that the handler takes: the handler of an already cancelled task has run by
                // now, and its cancel would otherwise overtake the start.
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

    /// Stops a request; its completion reports `cancelled`. Unknown and finished numbers are ignored.
    package func cancel(_ id: UInt64) {
        inbox.withLock { inbox in
            if !inbox.isClosed { append(.cancel(id: id), to: &inbox) }
        }
    }

    /// Stops everything: requests in flight report `cancelled`, later ones are refused; waits for the thread.
    package func stop() async {
        inbox.withLock { inbox in
            if !inbox.isClosed { wakeUp() }
            inbox.isClosed = true
        }
        await thread.withLock(\.self)?.end()
    }

    private func wakeUp() {
        unsafe curl_multi_wakeup(multi)
    }

    // MARK: The transport thread

    private func loop(_ policy: AddressPolicy, _ proxy: EgressProxy?, capacity: Int) {
        let loop = unsafe TransportLoop(multi, policy: policy, proxy: proxy, capacity: capacity)
        var commands: [Command] = []
        while true {
            loop.finishReady()
            // Swapped, so that both arrays keep their memory.
            commands.removeAll(keepingCapacity: true)
            let isClosed = inbox.withLock { inbox in
                swap(&commands, &inbox.commands)
                inbox.isAsleep = commands.isEmpty && !loop.isStarting
                return inbox.isClosed
            }
            for command in commands { loop.take(command) }
            if isClosed { return loop.close() }
            loop.startSome()
            if commands.isEmpty, !loop.isStarting { loop.wait() }
        }
    }
}
