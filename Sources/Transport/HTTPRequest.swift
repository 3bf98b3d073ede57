/// One HTTP request: sent once, never redirected, never repeated by itself.
public struct HTTPRequest: Sendable {
    /// The methods that a receiver can be called with.
    public enum Method: String, Sendable, CaseIterable {
        case post = "POST"
        case put = "PUT"
        case patch = "PATCH"
        case get = "GET"
    }

    public var method: Method
    /// An absolute http or https URL; its path and query are sent byte for byte.
    public var url: String
    public var headers: [HTTPHeader]
    /// The body's bytes; ignored for GET.
    public var body: [UInt8]
    /// For the whole exchange, name resolution to last body byte.
    public var timeout: Duration
    /// For name resolution, TCP and TLS together.
    public var connectTimeout: Duration

    /// A request with the service's default limits: 15 s as Standard Webhooks advises, 5 s of it to connect.
    public init(
        method: Method = .post, url: String, headers: [HTTPHeader] = [], body: [UInt8] = [],
        timeout: Duration = .seconds(15), connectTimeout: Duration = .seconds(5)
    ) {
        self.method = method
        self.url = url
        self.headers = headers
        self.body = body
        self.timeout = timeout
        self.connectTimeout = connectTimeout
    }
}

/// What came of a request.
public struct HTTPExchange: Sendable {
    /// Why there is no complete answer; the raw values are the error classes of the attempt log.
    public enum Failure: String, Sendable, CaseIterable {
        case dns, connect, tls, timeout
        /// The connection ended before an answer; the receiver may have acted on the request.
        case connectionLost = "connection_lost"
        /// The address policy refused the address; nothing was sent.
        case blockedAddress = "blocked_address"
        /// What came back was not HTTP.
        case protocolError = "protocol_error"
        /// We lacked a descriptor or memory; nothing was sent.
        case localResources = "local_resources"
        /// Stopped by us, at shutdown or because the lease was lost.
        case cancelled
        /// The request could not even be built; nothing was sent.
        case invalidRequest = "invalid_request"
    }

    /// How long each part took; nil where the part did not happen.
    public struct Timing: Sendable {
        public var dns: Duration?
        public var connect: Duration?
        public var tls: Duration?
        /// From the request's last byte to the answer's first.
        public var firstByte: Duration?
        public var total: Duration = .zero
    }

    /// The status, once the answer's header was complete: it decides, also when the body then broke off.
    public internal(set) var status: Int?
    /// Set when there is no status.
    public internal(set) var failure: Failure?
    /// What went wrong, in libcurl's words; safe to store: no header, body or query is in it.
    public internal(set) var message: String?
    /// The first 16 KiB of the body, as sent (never decompressed).
    public internal(set) var body: [UInt8] = []
    /// The value of `Retry-After`, unparsed; with several, the first.
    public internal(set) var retryAfter: String?
    /// The receiver's own id for the request (`X-Request-Id`, `X-Cws-TransactionId` and their like).
    public internal(set) var requestID: String?
    public internal(set) var timing = Timing()
    /// False when certainly no byte of the request reached the receiver.
    public internal(set) var mayHaveBeenSent = false

    init() {}

    /// An exchange that failed before it began.
    static func unsent(_ failure: Failure, _ message: String) -> HTTPExchange {
        var exchange = HTTPExchange()
        exchange.failure = failure
        exchange.message = message
        return exchange
    }
}
