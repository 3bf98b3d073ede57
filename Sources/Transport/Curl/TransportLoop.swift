import CCurl
import DequeModule
import Threads

/// The state of the transport thread: the transfers in progress, those that may be used again, and
/// the requests that are still to be started.
@safe
final class TransportLoop {
    /// How many requests one turn of the loop starts: a few at a time, so that responses that have
    /// already arrived are read first. The number in flight then depends on how long the receivers
    /// take, and not on how many requests are waiting: thousands of requests to a fast receiver
    /// would only wait for each other.
    private static let minStarts = 64

    /// `curl_multi_perform` checks every transfer however few are ready, so with many of them the
    /// loop waits a little for more responses before it calls it again: 4 ms with 2,000 in flight,
    /// which are rarely faster. Measured there, this is as fast as epoll with
    /// `curl_multi_socket_action`, which in turn is a sixth slower with 64.
    private static let minActive = 256
    private static let pausePerTransfer = Duration.microseconds(2)
    private static let minEnded = 4

    private let multi: UnsafeMutableRawPointer
    private let policy: AddressPolicy
    private let proxy: EgressProxy?
    private let resolver: Resolver?
    private let resolved: @Sendable (UInt64, Resolver.Outcome) -> Void
    private let names = HostNames()
    /// Requests that wait for the address of their host.
    private var naming: [UInt64: TransportThread.Start] = [:]
    private var lastExpiry = ContinuousClock.now
    private var lastFlood = ContinuousClock.now
    private static let floodPeriod = Duration.milliseconds(20)
    private let sockets: Sockets
    private let flooding: Flooding
    private let kept: Int
    private var active: [UInt64: Transfer] = [:]
    private var idle: [Transfer] = []
    /// By customer: the many requests of one wait for each other, and not others for them.
    private var waiting = TurnQueue<TransportThread.Start>()
    /// Those whose host has an address now: they have waited already.
    private var named: Deque<TransportThread.Start> = []
    /// How many transfers ended in the last turn.
    private var ended = 0

    /// - Parameter resolved: tells the loop, as a command, what came of the name of a request.
    init(
        _ multi: UnsafeMutableRawPointer, policy: AddressPolicy, proxy: EgressProxy?, resolver: Resolver?,
        kept: Int, sockets: Sockets, flooding: Flooding,
        resolved: @escaping @Sendable (UInt64, Resolver.Outcome) -> Void
    ) {
        unsafe self.multi = multi
        (self.resolver, self.resolved) = (resolver, resolved)
        self.policy = policy
        self.proxy = proxy
        self.kept = kept
        self.sockets = sockets
        self.flooding = flooding
    }

    /// True while requests wait to be started.
    var isStarting: Bool { !waiting.isEmpty || !named.isEmpty }

    /// Runs libcurl, and passes on the transfers that have ended.
    func finishReady() {
        var running: Int32 = 0
        unsafe curl_multi_perform(multi, &running)
        var remaining: Int32 = 0
        ended = 0
        while let message = unsafe curl_multi_info_read(multi, &remaining) {
            guard unsafe message.pointee.msg == CURLMSG_DONE, let handle = unsafe message.pointee.easy_handle else {
                continue
            }
            var result = unsafe curl_message_result(message)
            guard let transfer = unsafe transfer(of: handle) else { continue }
            unsafe curl_multi_remove_handle(multi, handle)
            if transfer.metStaleConnection {
                transfer.connectAnew()
                // libcurl knows them already, and newer ones perhaps.
                transfer.use([])
                if unsafe curl_multi_add_handle(multi, handle) == CURLM_OK { continue }
                result = CURLE_OUT_OF_MEMORY
            }
            end(transfer, result)
            if idle.count < kept { idle.append(transfer) }
        }
    }

    /// Ends transfers whose receivers flood.
    func endFloods() {
        let now = ContinuousClock.now
        guard now - lastFlood > Self.floodPeriod else { return }
        lastFlood = now
        for transfer in active.values where transfer.isFlooded {
            unsafe curl_multi_remove_handle(multi, transfer.handle)
            end(transfer, CURLE_ABORTED_BY_CALLBACK)
        }
    }

    /// It is out of the multi handle.
    private func end(_ transfer: Transfer, _ result: CURLcode) {
        active[transfer.id] = nil
        ended += 1
        transfer.finish(result)
        if transfer.wasFlooded { flooding.add(transfer.affinity) }
    }

    func take(_ command: TransportThread.Command) {
        switch command {
        case .start(let start): waiting.add(start, of: start.request.party)
        case .resolved(let id, let outcome):
            guard var start = naming.removeValue(forKey: id) else { return }
            start.outcome = outcome
            named.append(start)
        case .cancel(let id):
            if let transfer = active.removeValue(forKey: id) {
                unsafe curl_multi_remove_handle(multi, transfer.handle)
                if let host = transfer.newHost { names.forget(host) }
                transfer.abandon()
            } else if let start = naming.removeValue(forKey: id) {
                start.completion(.unsent(.cancelled, "cancelled before it was sent"))
            } else if let place = named.firstIndex(where: { $0.id == id }) {
                named.remove(at: place).completion(.unsent(.cancelled, "cancelled before it was sent"))
            } else if let start = waiting.remove(where: { $0.id == id }).first {
                start.completion(.unsent(.cancelled, "cancelled before it was sent"))
            }
        }
    }

    func startSome() {
        for _ in 0..<max(Self.minStarts, active.count / 8) {
            guard let start = named.popFirst() ?? waiting.next() else { return }
            // The proxy resolves names, so this process never sees the address; a literal address
            // can only be checked here.
            if proxy != nil, let reason = literalRefusal(start.request.url) {
                start.completion(.unsent(.blockedAddress, "the URL \(reason)"))
                continue
            }
            guard let resolver, let host = names.host(of: start.request.url) else {
                begin(start)
                continue
            }
            if let outcome = start.outcome ?? resolver.known(host.name, for: start.request.party) {
                begin(start, to: host, at: outcome)
                continue
            }
            var asking = start
            asking.askedAt = .now
            naming[start.id] = asking
            resolver.resolve(host.name, for: start.request.party) { [id = start.id, resolved] in resolved(id, $0) }
        }
    }

    /// Begins a request to a host whose addresses are known. One forbidden address refuses all of
    /// them: which one a connection is made to is not ours to choose.
    private func begin(_ start: TransportThread.Start, to host: HostNames.Host, at outcome: Resolver.Outcome) {
        switch outcome {
        case .failure(let failure):
            start.completion(.unsent(failure.isOurs ? .localResources : .dns, failure.text))
        case .addresses(let addresses):
            // Addresses that libcurl already has were checked when it got them; each new socket is
            // checked in any case.
            guard names.isTold(host, addresses) || addresses.allSatisfy({ policy.allows($0, port: host.port) }) else {
                return start.completion(.unsent(.blockedAddress, TransferEvidence.blocked))
            }
            begin(start, telling: names.entries(for: host, at: addresses), of: host)
        }
    }

    private func begin(_ start: TransportThread.Start, telling entries: [String] = [], of host: HostNames.Host? = nil) {
        guard let transfer = idle.popLast() ?? Transfer(policy: policy, proxy: proxy, sockets: sockets)
        else {
            if let host { names.forget(host) }
            return start.completion(.unsent(.localResources, "out of memory"))
        }
        transfer.prepare(start)
        // Nothing, too: what the handle was to tell for its last request is old.
        transfer.use(entries)
        transfer.newHost = entries.isEmpty ? nil : host
        guard unsafe curl_multi_add_handle(multi, transfer.handle) == CURLM_OK else {
            if let host { names.forget(host) }
            return transfer.finish(CURLE_OUT_OF_MEMORY)
        }
        active[start.id] = transfer
    }

    /// Gives up requests whose host has no address in the time that a connection may take; those
    /// whose host had one earlier go there.
    func expireNames() {
        let now = ContinuousClock.now
        guard !naming.isEmpty, now - lastExpiry > .milliseconds(100) else { return }
        lastExpiry = now
        for (id, start) in naming {
            let limit = min(start.request.connectTimeout, start.request.timeout)
            guard let askedAt = start.askedAt else { continue }
            if now - askedAt > min(limit / 2, Resolver.patience), let host = names.host(of: start.request.url),
                let old = resolver?.fallBack(host.name)
            {
                take(.resolved(id: id, .addresses(old)))
                continue
            }
            guard now - askedAt > limit else { continue }
            naming[id] = nil
            start.completion(.unsent(.dns, "the host's address was not found within \(limit.inMilliseconds) ms"))
        }
    }

    /// Sleeps until a transfer has work, a command arrives or a second is over.
    func wait() {
        unsafe curl_multi_poll(multi, nil, 0, naming.isEmpty ? 1000 : 100, nil)
        // Of slow receivers few are ready at a time, and those few need not wait for others.
        if active.count > Self.minActive, ended >= Self.minEnded { Thread.pause(Self.pausePerTransfer * active.count) }
    }

    /// Ends everything, and frees libcurl's handle.
    func close() {
        for transfer in active.values {
            unsafe curl_multi_remove_handle(multi, transfer.handle)
            transfer.abandon()
        }
        for start in waiting.remove(where: { _ in true }) + named + naming.values {
            start.completion(.unsent(.cancelled, "the transport is stopped"))
        }
        // Closes the connections, which the sockets are told.
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
