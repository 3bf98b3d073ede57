/// The result of a request.
package struct HTTPExchange: Sendable {
    /// Why there is no complete response; the raw values are the error classes of the attempt log.
    package enum Failure: String, Sendable, CaseIterable {
        case dns, connect, tls, timeout
        /// The receiver's certificate is not valid any more, or not yet.
        case tlsExpired = "tls_expired"
        /// It is signed by itself.
        case tlsSelfSigned = "tls_self_signed"
        /// No trusted authority signed it, or the receiver does not send the intermediate
        /// certificates.
        case tlsUnknownIssuer = "tls_unknown_issuer"
        /// It is for another host.
        case tlsWrongHost = "tls_wrong_host"
        /// The receiver speaks no version from TLS 1.2 on.
        case tlsOldProtocol = "tls_old_protocol"
        /// The receiver requires a client certificate, or does not accept ours.
        case tlsClientCertificate = "tls_client_certificate"
        /// The connection ended before a response; the receiver may have acted on the request.
        case connectionLost = "connection_lost"
        /// The address policy refused the address; nothing was sent.
        case blockedAddress = "blocked_address"
        /// There was no access token for the request; the receiver got no request.
        case auth
        /// The egress proxy refused or failed; the receiver got no request.
        case proxy
        /// The received bytes were not HTTP.
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

    /// The status, once the response's header was complete: it decides, even when the body then
    /// broke off.
    package internal(set) var status: Int?
    /// Set when there is no status.
    package internal(set) var failure: Failure?
    /// The error, in libcurl's words; safe to store: no header, body or query is in it.
    package internal(set) var message: String?
    /// The beginning of the body (`HTTPRequest.keptBody`), as sent (never decompressed; empty when
    /// the body is compressed for its transfer).
    package internal(set) var body: [UInt8] = []
    /// True when that is the whole body, and it ended properly.
    package internal(set) var isBodyComplete = false
    /// The value of `Retry-After`, unparsed; with several, the first.
    package internal(set) var retryAfter: String?
    /// The receiver's own id for the request (`X-Request-Id`, `X-Cws-TransactionId` and their
    /// like).
    package internal(set) var requestID: String?
    package internal(set) var timing = Timing()
    /// False when certainly no byte of the request reached the receiver.
    package internal(set) var mayHaveBeenSent = false

    init() {}

    /// An exchange as given by a test.
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
