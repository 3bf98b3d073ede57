import CCurl
import Glibc
import Synchronization
import Threads

/// Sends HTTP requests: one thread, one curl multi handle, thousands of transfers at a time.
///
/// Every request is sent exactly as given and at most once; what becomes of it is always reported, also when it is
/// cancelled or the transport is stopped. Completions run on the transport thread: they must be short and never block.
///
///     submit ─► inbox ─► loop: perform · read results · drain inbox · poll
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

    private enum Command: Sendable {
        case start(id: UInt64, HTTPRequest, completion: @Sendable (HTTPExchange) -> Void)
        case cancel(id: UInt64)
    }

    /// How many handles are kept for later requests.
    private static let mostIdle = 512

    private let inbox = Mutex(Inbox())
    // Shared only for curl_multi_wakeup, which libcurl documents as safe from any thread; freed after the thread ended.
    private nonisolated(unsafe) let multi: UnsafeMutableRawPointer
    private let thread: Mutex<Thread?> = Mutex(nil)

    /// Starts the thread.
    ///
    /// - Parameter idleConnections: how many connections are kept open for the next request.
    package init(policy: AddressPolicy, idleConnections: Int = 1024) {
        Self.initializeLibrary()
        guard let multi = unsafe curl_multi_init() else { preconditionFailure("curl_multi_init: out of memory") }
        unsafe self.multi = multi
        unsafe curl_multi_set_long(multi, CURLMOPT_MAXCONNECTS, idleConnections)
        thread.withLock { $0 = Thread("transport") { self.loop(policy) } }
    }

    static func initializeLibrary() { _ = globalInitialization }

    /// libcurl must be initialised once before any thread uses it. SIGPIPE would end the process when a receiver closes
    /// a TLS connection that we write to; the error code tells us the same.
    private static let globalInitialization: Void = {
        curl_global_init(Int(CURL_GLOBAL_ALL))
        signal(SIGPIPE, SIG_IGN)
        unsafe unsetenv("SSLKEYLOGFILE")
    }()

    /// Starts a request and returns its number; the completion is called exactly once, on the transport thread.
    @discardableResult
    package func submit(_ request: HTTPRequest, completion: @escaping @Sendable (HTTPExchange) -> Void) -> UInt64 {
        let (id, isClosed) = inbox.withLock { inbox in
            inbox.lastID += 1
            if !inbox.isClosed { append(.start(id: inbox.lastID, request, completion: completion), to: &inbox) }
            return (inbox.lastID, inbox.isClosed)
        }
        if isClosed { completion(.unsent(.cancelled, "the transport is stopped")) }
        return id
    }

    /// Called under the inbox's lock, and wakes the loop under it: `stop` closes the inbox under the same lock before it
    /// frees the handle, so that nobody wakes a handle that is gone.
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

    /// Stops everything: requests in flight report `cancelled`, later ones are refused, the thread is joined.
    package func stop() async {
        inbox.withLock { $0.isClosed = true }
        wakeUp()
        guard
            let thread = thread.withLock({ thread in
                defer { thread = nil }
                return thread
            })
        else { return }
        await withCheckedContinuation { continuation in
            Thread.detach {
                thread.join()
                continuation.resume()
            }
        }
        unsafe curl_multi_cleanup(multi)
    }

    private func wakeUp() {
        unsafe curl_multi_wakeup(multi)
    }

    // MARK: The transport thread

    private func loop(_ policy: AddressPolicy) {
        var active: [UInt64: Transfer] = [:]
        var idle: [Transfer] = []
        var commands: [Command] = []
        while true {
            var running: Int32 = 0
            unsafe curl_multi_perform(multi, &running)

            var remaining: Int32 = 0
            while let message = unsafe curl_multi_info_read(multi, &remaining) {
                guard unsafe message.pointee.msg == CURLMSG_DONE, let handle = unsafe message.pointee.easy_handle else {
                    continue
                }
                let result = unsafe curl_message_result(message)
                guard let transfer = unsafe transfer(of: handle) else { continue }
                unsafe curl_multi_remove_handle(multi, handle)
                active[transfer.id] = nil
                transfer.finish(result)
                if idle.count < Self.mostIdle { idle.append(transfer) }
            }

            // Swapped, so that both arrays keep their memory.
            commands.removeAll(keepingCapacity: true)
            let isClosed = inbox.withLock { inbox in
                swap(&commands, &inbox.commands)
                inbox.isAsleep = commands.isEmpty
                return inbox.isClosed
            }
            for command in commands {
                switch command {
                case .start(let id, let request, let completion):
                    guard let transfer = idle.popLast() ?? Transfer(policy: policy) else {
                        completion(.unsent(.localResources, "out of memory"))
                        continue
                    }
                    transfer.prepare(request, id: id, completion: completion)
                    guard unsafe curl_multi_add_handle(multi, transfer.handle) == CURLM_OK else {
                        transfer.finish(CURLE_OUT_OF_MEMORY)
                        continue
                    }
                    active[id] = transfer
                case .cancel(let id):
                    guard let transfer = active.removeValue(forKey: id) else { continue }
                    unsafe curl_multi_remove_handle(multi, transfer.handle)
                    transfer.abandon()
                }
            }
            if isClosed {
                for transfer in active.values {
                    unsafe curl_multi_remove_handle(multi, transfer.handle)
                    transfer.abandon()
                }
                return
            }
            if commands.isEmpty { unsafe curl_multi_poll(multi, nil, 0, 1000, nil) }
        }
    }

    private func transfer(of handle: UnsafeMutableRawPointer) -> Transfer? {
        var context: UnsafeMutableRawPointer?
        unsafe curl_get_pointer(handle, CURLINFO_PRIVATE, &context)
        guard let context = unsafe context else { return nil }
        return unsafe Unmanaged<Transfer>.fromOpaque(context).takeUnretainedValue()
    }
}
