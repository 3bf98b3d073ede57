import CCurl
import DequeModule
import Threads

/// What the transport thread works with: the transfers under way, those that may be used again, and the requests that
/// are still to be started.
@safe
final class TransportLoop {
    /// How many requests one turn of the loop starts: a few at a time, so that responses which are there already are read
    /// first. What is in flight then follows from how long the receivers take, and not from how much is waiting:
    /// thousands of requests to a fast receiver would only wait for each other.
    private static let minStarts = 64

    /// `curl_multi_perform` looks at every transfer however few are ready, so with many of them the loop waits a little
    /// for more responses before it looks again: 4 ms with 2,000 in flight, which are seldom faster. Measured there, this is
    /// as fast as epoll with `curl_multi_socket_action`, which in turn is a sixth slower with 64.
    private static let minActive = 256
    private static let pausePerTransfer = Duration.microseconds(2)

    private let multi: UnsafeMutableRawPointer
    private let policy: AddressPolicy
    private let proxy: EgressProxy?
    private let sockets = Sockets()
    private let capacity: Int
    private var active: [UInt64: Transfer] = [:]
    private var idle: [Transfer] = []
    private var waiting: Deque<Transport.Start> = []

    init(_ multi: UnsafeMutableRawPointer, policy: AddressPolicy, proxy: EgressProxy?, capacity: Int) {
        unsafe self.multi = multi
        self.policy = policy
        self.proxy = proxy
        self.capacity = capacity
    }

    /// True while requests wait to be started.
    var isStarting: Bool { !waiting.isEmpty }

    /// Lets libcurl work, and hands over what has ended.
    func finishReady() {
        var running: Int32 = 0
        unsafe curl_multi_perform(multi, &running)
        var remaining: Int32 = 0
        while let message = unsafe curl_multi_info_read(multi, &remaining) {
            guard unsafe message.pointee.msg == CURLMSG_DONE, let handle = unsafe message.pointee.easy_handle else {
                continue
            }
            var result = unsafe curl_message_result(message)
            guard let transfer = unsafe transfer(of: handle) else { continue }
            unsafe curl_multi_remove_handle(multi, handle)
            if transfer.metStaleConnection {
                transfer.connectAnew()
                if unsafe curl_multi_add_handle(multi, handle) == CURLM_OK { continue }
                result = CURLE_OUT_OF_MEMORY
            }
            active[transfer.id] = nil
            transfer.finish(result)
            if idle.count < capacity { idle.append(transfer) }
        }
    }

    func take(_ command: Transport.Command) {
        switch command {
        case .start(let start): waiting.append(start)
        case .cancel(let id):
            if let transfer = active.removeValue(forKey: id) {
                unsafe curl_multi_remove_handle(multi, transfer.handle)
                transfer.abandon()
            } else if let place = waiting.firstIndex(where: { $0.id == id }) {
                waiting.remove(at: place).completion(.unsent(.cancelled, "cancelled before it was sent"))
            }
        }
    }

    func startSome() {
        for _ in 0..<max(Self.minStarts, active.count / 8) {
            guard let start = waiting.popFirst() else { return }
            // The proxy resolves names, so nobody here sees the address; a literal one is seen now or never.
            if proxy != nil, let reason = literalRefusal(start.request.url) {
                start.completion(.unsent(.blockedAddress, "the URL \(reason)"))
                continue
            }
            guard let transfer = idle.popLast() ?? Transfer(policy: policy, proxy: proxy, sockets: sockets) else {
                start.completion(.unsent(.localResources, "out of memory"))
                continue
            }
            transfer.prepare(start)
            guard unsafe curl_multi_add_handle(multi, transfer.handle) == CURLM_OK else {
                transfer.finish(CURLE_OUT_OF_MEMORY)
                continue
            }
            active[start.id] = transfer
        }
    }

    /// Sleeps until a transfer has something to do, a command arrives or a second is over.
    func wait() {
        unsafe curl_multi_poll(multi, nil, 0, 1000, nil)
        if active.count > Self.minActive { Thread.pause(Self.pausePerTransfer * active.count) }
    }

    /// Ends everything, and frees libcurl's handle.
    func close() {
        for transfer in active.values {
            unsafe curl_multi_remove_handle(multi, transfer.handle)
            transfer.abandon()
        }
        for start in waiting { start.completion(.unsent(.cancelled, "the transport is stopped")) }
        // Closes the connections, which are told to the sockets.
        unsafe curl_multi_cleanup(multi)
    }

    private func literalRefusal(_ url: String) -> String? {
        do throws(TargetURL.ValidationError) { return policy.refusal(of: try TargetURL(url)) } catch {
            return error.description
        }
    }

    private func transfer(of handle: UnsafeMutableRawPointer) -> Transfer? {
        var context: UnsafeMutableRawPointer?
        unsafe curl_get_pointer(handle, CURLINFO_PRIVATE, &context)
        guard let context = unsafe context else { return nil }
        return unsafe Unmanaged<Transfer>.fromOpaque(context).takeUnretainedValue()
    }
}
