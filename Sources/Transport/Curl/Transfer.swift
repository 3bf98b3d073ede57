import Bytewise
import CCurl
import Glibc

/// One easy handle with everything that libcurl borrows from it. It belongs to the transport thread
/// and serves many requests, one after the other.
@safe
final class Transfer {
    let handle: UnsafeMutableRawPointer
    private let policy: AddressPolicy
    private let proxy: EgressProxy?
    private let errorText: UnsafeMutablePointer<CChar>
    private let headers = HeaderList()
    private let sockets: Sockets

    private(set) var id: UInt64 = 0
    private(set) var affinity = 0
    /// The last one that it has made ended as a flood.
    private(set) var wasFlooded = false
    /// The host whose addresses the request tells libcurl (`HostNames.entries`).
    var newHost: HostNames.Host?
    private var completion: (@Sendable (HTTPExchange) -> Void)?
    private var exchange = HTTPExchange()
    private var received = 0
    private var keptBody = 0
    /// The handle's current settings; changed only where the next request differs.
    private var tls = HTTPRequest.TLS()
    private var allowsHTTP2 = false
    private var header = ResponseHeader()
    private var sends = 0
    /// The connection that it was sent on.
    private var ends: Sockets.Ends?
    /// Sockets that were opened for it: none when it uses an existing connection.
    private var opened: [Int32] = []
    /// True when the connection that it was given already had unread bytes.
    private(set) var metStaleConnection = false
    /// The time by which it must be over, however often it connects.
    private var deadline = ContinuousClock.now
    /// How long its host's address was waited for.
    private var naming = Duration.zero
    private let resolves = LineList()
    /// Its connection is to bring its response.
    private var isExpected = false
    private var wasBlocked = false
    private var lacksDescriptors = false

    init?(policy: AddressPolicy, proxy: EgressProxy?, sockets: Sockets) {
        guard let handle = unsafe curl_easy_init() else { return nil }
        unsafe self.handle = handle
        self.policy = policy
        self.proxy = proxy
        self.sockets = sockets
        unsafe errorText = .allocate(capacity: Int(CURL_ERROR_SIZE))
        unsafe errorText.initialize(repeating: 0, count: Int(CURL_ERROR_SIZE))
        setConstantOptions()
    }

    deinit {
        unsafe curl_easy_cleanup(handle)
        unsafe errorText.deallocate()
    }

    /// The options that are the same for every request. Unknown options would mean a libcurl older
    /// than 7.88, which the build refuses.
    private func setConstantOptions() {
        let context = unsafe Unmanaged.passUnretained(self).toOpaque()
        unsafe curl_set_pointer(handle, CURLOPT_PRIVATE, context)
        unsafe curl_set_pointer(handle, CURLOPT_ERRORBUFFER, errorText)
        unsafe curl_set_long(handle, CURLOPT_NOSIGNAL, 1)
        unsafe curl_set_string(handle, CURLOPT_PROTOCOLS_STR, "http,https")
        unsafe curl_set_long(handle, CURLOPT_FOLLOWLOCATION, 0)
        // The path is the endpoint's, dots and all.
        unsafe curl_set_long(handle, CURLOPT_PATH_AS_IS, 1)
        unsafe curl_set_long(handle, CURLOPT_HTTP_VERSION, 2)  // CURL_HTTP_VERSION_1_1, a macro Swift cannot see
        unsafe curl_set_long(handle, CURLOPT_SSLVERSION, 6)  // CURL_SSLVERSION_TLSv1_2: the default only since 8.16
        unsafe curl_set_long(handle, CURLOPT_SSL_VERIFYPEER, 1)
        unsafe curl_set_long(handle, CURLOPT_SSL_VERIFYHOST, 2)
        // The environment must not reroute or authenticate a delivery by accident.
        unsafe curl_set_string(handle, CURLOPT_PROXY, proxy?.url ?? "")
        if let proxy, let user = proxy.user {
            unsafe curl_set_string(handle, CURLOPT_PROXYUSERNAME, user)
            unsafe curl_set_string(handle, CURLOPT_PROXYPASSWORD, proxy.password ?? "")
            unsafe curl_set_long(handle, CURLOPT_PROXYAUTH, 1)  // CURLAUTH_BASIC, a macro Swift cannot see
        }
        unsafe curl_set_string(handle, CURLOPT_NOPROXY, "")
        unsafe curl_set_long(handle, CURLOPT_HTTPPROXYTUNNEL, proxy == nil ? 0 : 1)
        // The proxy's response is not the receiver's.
        unsafe curl_set_long(handle, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1)
        unsafe curl_set_long(handle, CURLOPT_NETRC, 0)
        // Without this, name resolution outlives every other time limit (10 s were measured for a
        // limit of 1 s).
        unsafe curl_set_long(handle, CURLOPT_QUICK_EXIT, 1)
        // Addresses that libcurl was given hold until they are replaced.
        if proxy == nil { unsafe curl_set_long(handle, CURLOPT_DNS_CACHE_TIMEOUT, -1) }
        // A TLS peer is verified when it connects; without a bound that trust would last forever.
        unsafe curl_set_long(handle, CURLOPT_MAXLIFETIME_CONN, 300)
        // Idle connections are dropped before common servers drop them, which would race with the
        // next request.
        unsafe curl_set_long(handle, CURLOPT_MAXAGE_CONN, 50)
        unsafe curl_set_data_callback(handle, CURLOPT_WRITEFUNCTION) { bytes, size, count, context in
            guard let transfer = unsafe Transfer.from(context) else { return 0 }
            return unsafe transfer.receive(UnsafeRawBufferPointer(start: bytes, count: size * count))
        }
        unsafe curl_set_pointer(handle, CURLOPT_WRITEDATA, context)
        unsafe curl_set_data_callback(handle, CURLOPT_HEADERFUNCTION) { bytes, size, count, context in
            guard let transfer = unsafe Transfer.from(context) else { return 0 }
            // A smaller count ends the transfer.
            return unsafe transfer.header.read(UnsafeRawBufferPointer(start: bytes, count: size * count))
                ? size * count : 0
        }
        unsafe curl_set_pointer(handle, CURLOPT_HEADERDATA, context)
        unsafe curl_set_open_socket_callback(handle) { context, purpose, address in
            guard let transfer = unsafe Transfer.from(context), let address = unsafe address else { return -1 }
            return unsafe transfer.openSocket(address)
        }
        unsafe curl_set_pointer(handle, CURLOPT_OPENSOCKETDATA, context)
        // Called as long as the connection lives, which is longer than this transfer.
        unsafe curl_set_close_socket_callback(handle) { context, descriptor in
            if let context = unsafe context {
                unsafe Unmanaged<Sockets>.fromOpaque(context).takeUnretainedValue().forget(descriptor)
            }
            return close(descriptor)
        }
        unsafe curl_set_pointer(handle, CURLOPT_CLOSESOCKETDATA, Unmanaged.passUnretained(sockets).toOpaque())
        unsafe curl_set_prereq_callback(handle) { context, remote, local, remotePort, localPort in
            guard let transfer = unsafe Transfer.from(context) else { return 1 }
            let ends: Sockets.Ends? =
                if let local = unsafe local, let remote = unsafe remote {
                    unsafe Sockets.Ends(
                        local: (String(cString: local), Int(localPort)),
                        remote: (String(cString: remote), Int(remotePort)))
                } else { nil }
            return transfer.beforeSending(on: ends)
        }
        unsafe curl_set_pointer(handle, CURLOPT_PREREQDATA, context)
    }

    private static func from(_ context: UnsafeMutableRawPointer?) -> Transfer? {
        guard let context = unsafe context else { return nil }
        return unsafe Unmanaged<Transfer>.fromOpaque(context).takeUnretainedValue()
    }

    /// Loads the next request into the handle.
    func prepare(_ start: TransportThread.Start) {
        let request = start.request
        id = start.id
        affinity = request.affinity
        completion = start.completion
        exchange = HTTPExchange()
        let now = ContinuousClock.now
        exchange.timing.queued = (start.askedAt ?? now) - start.submittedAt
        naming = start.askedAt.map { now - $0 } ?? .zero
        deadline = now + request.timeout - naming
        received = 0
        keptBody = request.keptBody
        header = ResponseHeader()
        unsafe curl_set_long(handle, CURLOPT_FRESH_CONNECT, 0)
        beginConnection()

        unsafe curl_set_list(handle, CURLOPT_HTTPHEADER, headers.load(request.headers))
        unsafe curl_set_string(handle, CURLOPT_URL, request.url)
        unsafe curl_set_long(handle, CURLOPT_TIMEOUT_MS, max(1, Int((request.timeout - naming).inMilliseconds)))
        unsafe curl_set_long(
            handle, CURLOPT_CONNECTTIMEOUT_MS, max(1, Int((request.connectTimeout - naming).inMilliseconds)))
        use(request.tls)
        if request.allowsHTTP2 != allowsHTTP2 {
            allowsHTTP2 = request.allowsHTTP2
            // CURL_HTTP_VERSION_2TLS and CURL_HTTP_VERSION_1_1, macros that Swift cannot see.
            unsafe curl_set_long(handle, CURLOPT_HTTP_VERSION, allowsHTTP2 ? 4 : 2)
        }
        unsafe curl_set_string(handle, CURLOPT_CUSTOMREQUEST, nil)
        if request.method == .get {
            unsafe curl_set_long(handle, CURLOPT_HTTPGET, 1)
            return
        }
        unsafe curl_set_long(handle, CURLOPT_POST, 1)
        if request.method != .post { unsafe curl_set_string(handle, CURLOPT_CUSTOMREQUEST, request.method.rawValue) }
        // The size first: it tells libcurl how much to copy.
        unsafe curl_set_offset(handle, CURLOPT_POSTFIELDSIZE_LARGE, curl_off_t(request.body.count))
        unsafe request.body.withUnsafeBytes { body in
            unsafe _ = curl_set_pointer(handle, CURLOPT_COPYPOSTFIELDS, body.baseAddress ?? UnsafeRawPointer(errorText))
        }
    }

    /// Tells libcurl addresses of hosts (`HostNames.entries`); it remembers them.
    func use(_ entries: [String]) {
        if entries.isEmpty, resolves.isEmpty { return }
        unsafe curl_set_list(handle, CURLOPT_RESOLVE, resolves.load(entries))
    }

    private func beginConnection() {
        sends = 0
        ends = nil
        opened.removeAll(keepingCapacity: true)
        metStaleConnection = false
        wasBlocked = false
        isExpected = false
        lacksDescriptors = false
        unsafe errorText[0] = 0
    }

    /// Starts over on a new connection, because nothing went out on the given one.
    func connectAnew() {
        beginConnection()
        unsafe curl_set_long(handle, CURLOPT_FRESH_CONNECT, 1)
        unsafe curl_set_long(handle, CURLOPT_TIMEOUT_MS, max(1, Int((deadline - .now).inMilliseconds)))
    }

    /// Connections are shared only between requests with the same settings.
    private func use(_ wanted: HTTPRequest.TLS) {
        if wanted == tls { return }
        tls = wanted
        for (option, text) in [
            (CURLOPT_CAINFO_BLOB, wanted.authorities?.text), (CURLOPT_SSLCERT_BLOB, wanted.markedCertificate),
            (CURLOPT_SSLKEY_BLOB, wanted.key?.text),
        ] {
            let bytes = Array((text ?? "").utf8)
            unsafe bytes.withUnsafeBytes { raw in
                _ = unsafe curl_set_blob(handle, option, raw.baseAddress, raw.count)
            }
        }
    }

    /// Reads the result, passes it to the completion, and releases the request.
    func finish(_ result: CURLcode) {
        complete(result)
        if let ends, result == CURLE_OK { sockets.rest(ends, isEmpty: !header.hasForbiddenBody) }
        report()
    }

    /// True when its receiver sends far more than a response, none of it a part of one. Only of a
    /// transfer with a part of its response, of which there are few at a time.
    var isFlooded: Bool { header.hasBegun && ends.map(sockets.isFlooded) ?? false }

    /// Ends a transfer that was taken out of the multi handle before it was done.
    func abandon() {
        exchange.mayHaveBeenSent = sends > 0
        measure()
        if let status = header.answered {
            exchange.status = status
        } else {
            exchange.failure = .cancelled
            exchange.message = "stopped by this service before a response came"
        }
        report()
    }

    /// Passes on the exchange and releases the request: an idle handle keeps neither body nor
    /// response.
    private func report() {
        if let ends, isExpected { sockets.responseEnded(on: ends, bytes: received + header.length) }
        (exchange.retryAfter, exchange.requestID) = (header.retryAfter, header.requestID)
        let exchange = exchange
        let completion = completion
        self.completion = nil
        self.exchange = HTTPExchange()
        unsafe curl_set_pointer(handle, CURLOPT_COPYPOSTFIELDS, nil)
        completion?(exchange)
    }

    // MARK: Callbacks of libcurl, on the transport thread

    private func receive(_ bytes: UnsafeRawBufferPointer) -> Int {
        received += bytes.count
        let room = keptBody - exchange.body.count
        if room > 0 { unsafe exchange.body.append(contentsOf: bytes.prefix(room)) }
        // Taking less than was offered makes libcurl close the connection.
        return received > HTTPRequest.maxBody ? 0 : bytes.count
    }

    private func openSocket(_ address: UnsafeMutablePointer<curl_sockaddr>) -> curl_socket_t {
        guard let offset = MemoryLayout<curl_sockaddr>.offset(of: \.addr) else { return -1 }
        let family = unsafe address.pointee.family
        let ip = unsafe IPAddress(UnsafeRawPointer(address) + offset, family: family)
        let port = unsafe IPAddress.port(UnsafeRawPointer(address) + offset)
        // One forbidden address of the host blocks the transfer: libcurl would otherwise go on to
        // the next address.
        let isAllowed = ip.map {
            proxy?.sockets.contains(SocketAddress($0, port: port)) ?? policy.allows($0, port: port)
        }
        guard !wasBlocked, isAllowed == true else {
            wasBlocked = true
            return -1
        }
        // Where IPv6 is switched off, the system reports such an address as not available, as it
        // does when we have no ports left. Then the next address of the host is tried.
        guard
            unsafe family != AF_INET6
                || Sockets.hasRoute(to: UnsafeRawPointer(address) + offset, length: address.pointee.addrlen)
        else {
            return -1
        }
        let descriptor = unsafe socket(
            family, address.pointee.socktype | Int32(SOCK_CLOEXEC.rawValue), address.pointee.protocol)
        if descriptor >= 0, !Sockets.isReserved(descriptor) {
            opened.append(descriptor)
        } else if descriptor >= 0 {
            close(descriptor)
            lacksDescriptors = true
            return -1
        } else {
            lacksDescriptors = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM
        }
        return descriptor
    }

    /// Called right before a request is written. The second call in one transfer means that a
    /// reused connection died and libcurl is about to send the request again without reporting it:
    /// we must decide and record that.
    private func beforeSending(on ends: Sockets.Ends?) -> Int32 {
        if opened.isEmpty, sends == 0 {
            guard let ends, unsafe sockets.isQuiet(ends, session: curl_tls_session(handle)) else {
                metStaleConnection = true
                return CURL_PREREQFUNC_ABORT
            }
        } else if sends == 0, let ends {
            sockets.note(opened, ends)
        }
        sends += 1
        self.ends = ends
        if let ends, !isExpected {
            isExpected = true
            sockets.expectResponse(on: ends)
        }
        return sends > 1 ? CURL_PREREQFUNC_ABORT : CURL_PREREQFUNC_OK
    }

    // MARK: Results

    private func complete(_ result: CURLcode) {
        measure()
        exchange.mayHaveBeenSent = sends > 0
        // When it was ended from outside the loop, too.
        wasFlooded = result != CURLE_OK && isFlooded
        // The status line decides: a receiver that responded with 2xx has taken the event, however
        // its body ended.
        if let status = header.answered {
            exchange.status = status
            exchange.isBodyComplete = result == CURLE_OK && received <= keptBody
            return
        }
        let text =
            result == CURLE_OK
            ? header.defect
            : unsafe errorText[0] == 0 ? String(cString: curl_easy_strerror(result)) : String(cString: errorText)
        if wasFlooded {
            exchange.failure = .protocolError
            exchange.message = "the receiver keeps sending bytes that are no part of a response"
            return
        }
        let evidence = evidence(result, text)
        exchange.failure = evidence.failure
        exchange.message = evidence.message
    }

    private func evidence(_ result: CURLcode, _ text: String) -> TransferEvidence {
        var verification = 0
        unsafe curl_get_long(handle, CURLINFO_SSL_VERIFYRESULT, &verification)
        var scheme: UnsafeMutableRawPointer?
        unsafe curl_get_pointer(handle, CURLINFO_SCHEME, &scheme)
        let isTLS =
            unsafe scheme.map { unsafe strcasecmp($0.assumingMemoryBound(to: CChar.self), "https") == 0 } ?? false
        var systemError = 0
        unsafe curl_get_long(handle, CURLINFO_OS_ERRNO, &systemError)
        var proxyStatus = 0
        unsafe curl_get_long(handle, CURLINFO_HTTP_CONNECTCODE, &proxyStatus)
        return TransferEvidence(
            result: result, text: text, sends: sends, wasBlocked: wasBlocked,
            lacksDescriptors: lacksDescriptors
                || sends == 0 && result == CURLE_COULDNT_RESOLVE_HOST && !TransferEvidence.canOpenFiles(),
            isTLS: isTLS, verification: verification, systemError: Int32(truncatingIfNeeded: systemError),
            hasProxy: proxy != nil, proxyStatus: proxyStatus, hasAuthorities: tls.authorities != nil)
    }

    private func measure() {
        func time(_ info: CURLINFO) -> Int64 {
            var microseconds: curl_off_t = 0
            unsafe curl_get_offset(handle, info, &microseconds)
            return Int64(microseconds)
        }
        let (dns, connect, tls) = (
            time(CURLINFO_NAMELOOKUP_TIME_T), time(CURLINFO_CONNECT_TIME_T), time(CURLINFO_APPCONNECT_TIME_T)
        )
        let (sent, first) = (time(CURLINFO_PRETRANSFER_TIME_T), time(CURLINFO_STARTTRANSFER_TIME_T))
        exchange.timing.total = .microseconds(time(CURLINFO_TOTAL_TIME_T)) + naming
        if naming > .zero { exchange.timing.dns = naming } else if dns > 0 { exchange.timing.dns = .microseconds(dns) }
        if connect > 0 { exchange.timing.connect = .microseconds(max(0, connect - dns)) }
        if tls > 0 { exchange.timing.tls = .microseconds(max(0, tls - connect)) }
        if first > 0, sent > 0 { exchange.timing.firstByte = .microseconds(max(0, first - sent)) }
    }
}
