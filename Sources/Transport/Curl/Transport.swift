package import Bytewise
import CCurl
import Glibc
import Synchronization
import Threads

/// Sends HTTP requests, thousands at a time, on a few threads.
///
///     request ─► (affinity) ─► one of the threads
///        └──── HTTP/2, or TLS of its own ──► a thread apart
///
/// Every request is sent exactly as given and at most once; its result is always reported, even
/// when it is cancelled or the transport is stopped. Completions run on a transport thread: they
/// must be short and never block.
///
/// A receiver of HTTP/2 chooses how many frames libcurl reads in one go, and an endpoint's own
/// certificates are parsed for each connection. Both take time of the thread that the request is
/// on, so these requests have one apart from all others, and so have those to receivers that have
/// flooded us (`Floods`).
package final class Transport: Sendable {
    private let threads: [TransportThread]
    private let apart: TransportThread
    private let flooding: Flooding
    /// Nil where a proxy resolves the names.
    private let resolver: Resolver?

    /// Starts the threads. Throws when the system has none left.
    ///
    /// - Parameters:
    ///   - capacity: the max number of requests in flight. This number of connections and handles
    ///     is kept for later requests; with fewer, every request beyond them would make a new
    ///     connection.
    ///   - threads: one thread sends some ten thousand requests a second, and takes a processor for
    ///     that.
    package convenience init(
        policy: AddressPolicy, proxy: EgressProxy? = nil, capacity: Int = 1024, threads: Int = 1
    ) throws {
        try self.init(
            policy: policy, proxy: proxy, capacity: capacity, threads: threads,
            resolver: proxy == nil ? Resolver() : nil)
    }

    init(policy: AddressPolicy, proxy: EgressProxy?, capacity: Int, threads count: Int = 1, resolver: Resolver?) throws
    {
        self.resolver = resolver
        let flooding = Flooding()
        self.flooding = flooding
        var started: [TransportThread] = []
        func start(_ name: String, kept: Int) throws -> TransportThread {
            let thread = try TransportThread(
                name, policy: policy, proxy: proxy, capacity: capacity, kept: max(1, kept), resolver: resolver,
                flooding: flooding)
            started.append(thread)
            return thread
        }
        do {
            threads = try (1...count).map {
                try start(count == 1 ? "transport" : "transport \($0)", kept: capacity / count)
            }
            apart = try start("transport apart", kept: capacity / 8)
            try Thread("transport watch") { [started] in Self.watch(started) }
        } catch {
            // Those that started would wait for ever.
            resolver?.stop()
            for thread in started { thread.close() }
            throw error
        }
    }

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

    /// A request that was started.
    package struct Ticket: Sendable {
        fileprivate let thread: TransportThread
        fileprivate let id: UInt64
    }

    /// Starts a request; the completion is called exactly once, on a transport thread.
    @discardableResult
    package func submit(_ request: HTTPRequest, completion: @escaping @Sendable (HTTPExchange) -> Void) -> Ticket {
        let thread =
            request.allowsHTTP2 || request.tls != HTTPRequest.TLS() || flooding.contains(request.affinity)
            ? apart : threads[Int(UInt(bitPattern: request.affinity) % UInt(threads.count))]
        return Ticket(thread: thread, id: thread.submit(request, completion: completion))
    }

    /// Ends floods that keep a thread in libcurl; returns when all threads have ended.
    private static func watch(_ threads: [TransportThread]) {
        var last = threads.map { _ in UInt64(0) }
        while threads.contains(where: { !$0.hasEnded }) {
            // Seldom while nothing is read.
            Thread.pause(last.contains { $0 % 2 == 1 } ? .milliseconds(20) : .milliseconds(100))
            for place in threads.indices { last[place] = threads[place].endFloods(since: last[place]) }
        }
    }

    /// Sends a request and waits for its exchange. Cancelling the task stops the request; the
    /// exchange then says so.
    package func send(_ request: HTTPRequest) async -> HTTPExchange {
        let started = Mutex<Ticket?>(nil)
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
            if let ticket = started.withLock({ $0 }) { cancel(ticket) }
        }
    }

    /// How many threads look up a name, how many there may be, and for which parties' names others
    /// are waited for.
    package var names: (running: Int, limit: Int, waiting: [ExactText: Int]) {
        resolver?.taken ?? (0, 0, [:])
    }

    /// How many descriptors this process has open, and how many it may have; nil where the system
    /// does not say.
    package static var descriptors: (open: Int, limit: Int)? {
        var limit = rlimit()
        guard unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0,
            let folder = unsafe opendir("/proc/self/fd")
        else { return nil }
        defer { unsafe closedir(folder) }
        var count = 0
        // Two names are none, and one descriptor is the folder's own.
        while unsafe readdir(folder) != nil { count += 1 }
        return (max(0, count - 3), Int(clamping: limit.rlim_cur))
    }

    /// Stops a request; its completion reports `cancelled`. One that is over is ignored.
    package func cancel(_ ticket: Ticket) { ticket.thread.cancel(ticket.id) }

    /// Stops everything: requests in flight report `cancelled`, later ones are refused; waits for
    /// the threads.
    package func stop() async {
        resolver?.stop()
        for thread in threads + [apart] { await thread.stop() }
    }
}
