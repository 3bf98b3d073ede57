package import Bytewise

/// One HTTP request: sent once, never redirected, never repeated by itself.
package struct HTTPRequest: Sendable {
    /// The methods that a receiver can be called with.
    package enum Method: String, Sendable, CaseIterable {
        case post = "POST"
        case put = "PUT"
        case patch = "PATCH"
        case get = "GET"
    }

    package var method: Method
    /// An absolute http or https URL; its path and query are sent byte for byte.
    package var url: String
    package var headers: HTTPHeaders
    /// The body's bytes; ignored for GET.
    package var body: [UInt8]
    /// For the whole exchange, name resolution to last body byte.
    package var timeout: Duration
    /// For name resolution, TCP and TLS together.
    package var connectTimeout: Duration

    /// How much of the response's body is kept, in bytes, and how much is read at most so that the connection can be kept.
    package var keptBody = 16 * 1024
    package static let maxBody = 256 * 1024
    /// Whom to trust and who we are, where it is not what the system says.
    package var tls = TLS()
    /// HTTP/2 where the receiver offers it (ALPN); otherwise, and by default, HTTP/1.1.
    package var allowsHTTP2 = false

    /// What a TLS connection is made with; all texts are PEM.
    package struct TLS: Sendable, Equatable {
        /// Certificates to trust in place of the system's.
        package var authorities: ExactText?
        /// The client's certificate and its private key.
        package var certificate: ExactText?
        package var key: ExactText?

        package init(authorities: String? = nil, certificate: String? = nil, key: String? = nil) {
            self.authorities = authorities.map { ExactText($0) }
            self.certificate = certificate.map { ExactText($0) }
            self.key = key.map { ExactText($0) }
        }
    }

    /// A request with the service's default limits: 15 s as Standard Webhooks advises, 5 s of it to connect.
    package init(
        method: Method = .post, url: String, headers: HTTPHeaders = [], body: [UInt8] = [],
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
package struct HTTPExchange: Sendable {
    /// Why there is no complete answer; the raw values are the error classes of the attempt log.
    package enum Failure: String, Sendable, CaseIterable {
        case dns, connect, tls, timeout
        /// The receiver's certificate is not valid any more, or not yet.
        case tlsExpired = "tls_expired"
        /// It is signed by itself.
        case tlsSelfSigned = "tls_self_signed"
        /// Nobody we trust signed it, or the receiver does not send the certificates in between.
        case tlsUnknownIssuer = "tls_unknown_issuer"
        /// It is for another host.
        case tlsWrongHost = "tls_wrong_host"
        /// The receiver speaks no version from TLS 1.2 on.
        case tlsOldProtocol = "tls_old_protocol"
        /// The receiver wants a client certificate, or does not take ours.
        case tlsClientCertificate = "tls_client_certificate"
        /// The connection ended before a response; the receiver may have acted on the request.
        case connectionLost = "connection_lost"
        /// The address policy refused the address; nothing was sent.
        case blockedAddress = "blocked_address"
        /// There was no access token to send it with; the receiver was not asked.
        case auth
        /// The egress proxy refused or failed; the receiver was not asked.
        case proxy
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
    package struct Timing: Sendable {
        /// From `submit` to the start; not part of the total.
        package var queued: Duration = .zero
        package var dns: Duration?
        package var connect: Duration?
        package var tls: Duration?
        /// From the request's last byte to the response's first.
        package var firstByte: Duration?
        package var total: Duration = .zero
    }

    /// The status, once the response's header was complete: it decides, also when the body then broke off.
    package internal(set) var status: Int?
    /// Set when there is no status.
    package internal(set) var failure: Failure?
    /// What went wrong, in libcurl's words; safe to store: no header, body or query is in it.
    package internal(set) var message: String?
    /// The beginning of the body (`HTTPRequest.keptBody`), as sent (never decompressed; nothing of one that is compressed for its transfer).
    package internal(set) var body: [UInt8] = []
    /// True when that is all of it, and it ended as it should.
    package internal(set) var isBodyComplete = false
    /// The value of `Retry-After`, unparsed; with several, the first.
    package internal(set) var retryAfter: String?
    /// The receiver's own id for the request (`X-Request-Id`, `X-Cws-TransactionId` and their like).
    package internal(set) var requestID: String?
    package internal(set) var timing = Timing()
    /// False when certainly no byte of the request reached the receiver.
    package internal(set) var mayHaveBeenSent = false

    init() {}

    /// What a test says came of a request.
    package init(
        status: Int? = nil, failure: Failure? = nil, retryAfter: String? = nil, mayHaveBeenSent: Bool = false,
        body: [UInt8] = []
    ) {
        self.body = body
        isBodyComplete = true
        self.status = status
        self.failure = failure
        self.retryAfter = retryAfter
        self.mayHaveBeenSent = mayHaveBeenSent
    }

    /// An exchange that failed before it began.
    package static func unsent(_ failure: Failure, _ message: String) -> HTTPExchange {
        var exchange = HTTPExchange()
        exchange.failure = failure
        exchange.message = message
        return exchange
    }
}

extension Duration {
    var inMilliseconds: Int64 {
        let (seconds, attoseconds) = components
        return seconds * 1000 + attoseconds / 1_000_000_000_000_000
    }
}
