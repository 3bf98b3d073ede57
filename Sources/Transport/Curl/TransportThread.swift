import CCurl
import Glibc
import Synchronization
import Threads

/// One thread of a transport with one curl multi handle and thousands of transfers at a time.
///
///     submit ─► inbox ─► loop: perform and read results · drain inbox · start some · poll
///
/// The loop's order is immune to a lost `curl_multi_wakeup` (curl issue 22272): the inbox is read
/// between performing and polling, and the poll is bounded.
@safe
final class TransportThread: Sendable {
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
    private let floods = Floods()
    private let flooding: Flooding
    /// Odd while libcurl has the thread, and another number each time.
    private let turn = Atomic<UInt64>(0)
    /// Nil where a proxy resolves the names.
    private let resolver: Resolver?

    /// Starts the thread. Throws when the system has none left.
    ///
    /// - Parameters:
    ///   - name: as operators see it.
    ///   - capacity: the max number of requests in flight.
    ///   - kept: so many idle connections and handles are kept for later requests.
    init(
        _ name: String, policy: AddressPolicy, proxy: EgressProxy?, capacity: Int, kept: Int, resolver: Resolver?,
        flooding: Flooding
    ) throws {
        self.resolver = resolver
        self.flooding = flooding
        Transport.initializeLibrary()
        guard let multi = unsafe curl_multi_init() else { preconditionFailure("curl_multi_init: out of memory") }
        unsafe self.multi = multi
        unsafe curl_multi_set_long(multi, CURLMOPT_MAXCONNECTS, kept)
        // An idle connection is closed when there would be more: descriptors are for requests.
        // Token requests come on top of them.
        unsafe curl_multi_set_long(multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, capacity + Self.spare)
        do {
            let thread = try Thread(name) { self.loop(policy, proxy, kept: kept) }
            self.thread.withLock { $0 = thread }
        } catch {
            unsafe curl_multi_cleanup(multi)
            throw error
        }
    }

    /// Connections for requests that belong to no delivery.
    private static let spare = 16

    /// Starts a request and returns its number; the completion is called exactly once, on the
    /// transport thread.
    func submit(_ request: HTTPRequest, completion: @escaping @Sendable (HTTPExchange) -> Void) -> UInt64 {
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

    /// Stops a request; its completion reports `cancelled`. Unknown and finished numbers are
    /// ignored.
    func cancel(_ id: UInt64) {
        inbox.withLock { inbox in
            if !inbox.isClosed { append(.cancel(id: id), to: &inbox) }
        }
    }

    /// Stops everything: requests in flight report `cancelled`, later ones are refused; waits for
    /// the thread.
    func stop() async {
        close()
        await thread.withLock(\.self)?.end()
    }

    /// True when the thread has ended, or is about to.
    var hasEnded: Bool { ended.load(ordering: .relaxed) }
    private let ended = Atomic(false)

    /// As `stop`, without waiting.
    func close() {
        inbox.withLock { inbox in
            if !inbox.isClosed { wakeUp() }
            inbox.isClosed = true
        }
    }

    private func wakeUp() {
        unsafe curl_multi_wakeup(multi)
    }

    /// Sees to it that no receiver keeps the thread in libcurl for longer than two of these looks;
    /// called now and then by another thread.
    ///
    /// - Parameter last: what the last look has returned.
    func endFloods(since last: UInt64) -> UInt64 {
        let now = turn.load(ordering: .relaxed)
        if now == last, now % 2 == 1 { floods.end() }
        return now
    }

    // MARK: The transport thread

    private func loop(_ policy: AddressPolicy, _ proxy: EgressProxy?, kept: Int) {
        let loop = unsafe TransportLoop(
            multi, policy: policy, proxy: proxy, resolver: resolver, kept: kept,
            sockets: Sockets(floods: floods), flooding: flooding
        ) { [weak self] id, outcome in
            self?.inbox.withLock { inbox in
                if !inbox.isClosed { self?.append(.resolved(id: id, outcome), to: &inbox) }
            }
        }
        var commands: [Command] = []
        while true {
            turn.wrappingAdd(1, ordering: .relaxed)
            loop.finishReady()
            turn.wrappingAdd(1, ordering: .relaxed)
            // Swapped, so that both arrays keep their memory.
            commands.removeAll(keepingCapacity: true)
            let (isClosed, mayWait) = inbox.withLock { inbox in
                swap(&commands, &inbox.commands)
                inbox.isAsleep = commands.isEmpty && !loop.isStarting
                return (inbox.isClosed, inbox.isAsleep)
            }
            for command in commands { loop.take(command) }
            if isClosed {
                loop.close()
                return ended.store(true, ordering: .relaxed)
            }
            loop.expireNames()
            loop.endFloods()
            loop.startSome()
            // Only when the lock says so: nobody wakes a thread that was not about to sleep.
            if mayWait, !loop.isStarting { loop.wait() }
        }
    }
}
