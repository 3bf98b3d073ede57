import CCurl
import Glibc

/// The evidence of a transfer that ended without a response, and its meaning.
struct TransferEvidence {
    let result: CURLcode
    /// libcurl's words.
    let text: String
    /// How often the request was written, or was about to be.
    let sends: Int
    let wasBlocked: Bool
    let lacksDescriptors: Bool
    let isTLS: Bool
    /// The verification's own code (X509_V_ERR_…).
    let verification: Int
    /// The system's error of the last connection.
    var systemError: Int32 = 0
    /// True when requests go through our proxy.
    var hasProxy = false
    /// The proxy's status, 0 for none.
    var proxyStatus = 0
    /// True when the endpoint has its own authorities.
    var hasAuthorities = false

    var failure: HTTPExchange.Failure {
        if wasBlocked { return .blockedAddress }
        if lacksDescriptors || isOurShortage { return .localResources }
        if sends > 1 { return .connectionLost }
        // The text decides only where it is libcurl's own: other messages quote a receiver's
        // certificate.
        if result == CURLE_PROXY || result == CURLE_RECV_ERROR && text.hasPrefix("CONNECT tunnel failed") {
            return .proxy
        }
        if let tlsFailure { return tlsFailure }
        if result == CURLE_RECV_ERROR && text.hasPrefix("Too large response headers") { return .protocolError }
        return switch result {
        case CURLE_COULDNT_RESOLVE_HOST: .dns
        case CURLE_COULDNT_CONNECT: .connect
        case CURLE_OPERATION_TIMEDOUT: .timeout
        case CURLE_SSL_CONNECT_ERROR, CURLE_PEER_FAILED_VERIFICATION, CURLE_SSL_CERTPROBLEM, CURLE_SSL_CIPHER,
            CURLE_SSL_CACERT_BADFILE, CURLE_SSL_ISSUER_ERROR, CURLE_USE_SSL_FAILED, CURLE_SSL_INVALIDCERTSTATUS:
            .tls
        case CURLE_GOT_NOTHING, CURLE_SEND_ERROR, CURLE_RECV_ERROR, CURLE_PARTIAL_FILE, CURLE_HTTP2, CURLE_HTTP2_STREAM:
            .connectionLost
        // The last of them also means that the received bytes were not HTTP.
        case CURLE_URL_MALFORMAT, CURLE_BAD_FUNCTION_ARGUMENT, CURLE_UNSUPPORTED_PROTOCOL:
            sends == 0 ? .invalidRequest : .protocolError
        default: .protocolError
        }
    }

    /// True when we, and not the receiver, lacked a resource: before anything went out. Afterwards
    /// libcurl also calls a response that is too large for it "out of memory".
    private var isOurShortage: Bool {
        guard sends == 0 else { return false }
        // The proxy is ours. A proxy that reports that it cannot reach the receiver, or is still
        // trying, is not our shortage.
        if hasProxy, proxyStatus == 407 { return true }
        switch result {
        case CURLE_OUT_OF_MEMORY, CURLE_FAILED_INIT, CURLE_NOT_BUILT_IN, CURLE_UNKNOWN_OPTION, CURLE_UNRECOVERABLE_POLL,
            CURLE_SSL_ENGINE_NOTFOUND, CURLE_SSL_ENGINE_SETFAILED, CURLE_SSL_ENGINE_INITFAILED:
            return true
        // The system's own list of authorities is missing.
        case CURLE_SSL_CACERT_BADFILE: return !hasAuthorities
        // The proxy is ours, and the receiver got no request.
        case CURLE_COULDNT_RESOLVE_PROXY: return true
        // A resolver's thread that could not be started is reported as a name that does not
        // resolve.
        case CURLE_COULDNT_RESOLVE_HOST: return text.hasPrefix("getaddrinfo() thread failed to start")
        case CURLE_RECV_ERROR, CURLE_SEND_ERROR, CURLE_GOT_NOTHING, CURLE_WEIRD_SERVER_REPLY:
            return hasProxy && proxyStatus == 0
        case CURLE_COULDNT_CONNECT:
            return hasProxy || [EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM, EAGAIN].contains(systemError)
        default: return false
        }
    }

    /// The exact fault of the receiver's TLS: by the verification's code where there is one,
    /// otherwise by the library's message.
    private var tlsFailure: HTTPExchange.Failure? {
        // In TLS 1.3 a client is refused after its handshake is over. Where the connection is gone
        // before libcurl could read the address of its other end, that error is the only evidence.
        let words = ["certificate required", "alert bad certificate", "alert unknown ca", "getpeername() failed"]
        // When we refuse a certificate, the message quotes the certificate's text.
        if isTLS, result != CURLE_PEER_FAILED_VERIFICATION, words.contains(where: text.contains) {
            return .tlsClientCertificate
        }
        switch result {
        case CURLE_PEER_FAILED_VERIFICATION:
            switch verification {
            case 9, 10: return .tlsExpired
            case 18: return .tlsSelfSigned
            case 2, 19, 20, 21: return .tlsUnknownIssuer
            case 62, 63, 64: return .tlsWrongHost
            default:
                return text.contains("does not match") || text.contains("no alternative certificate")
                    ? .tlsWrongHost : .tls
            }
        case CURLE_SSL_CONNECT_ERROR:
            let isOld = ["unsupported protocol", "protocol version", "wrong version number"].contains(
                where: text.contains)
            return isOld ? .tlsOldProtocol : nil
        default: return nil
        }
    }

    /// The message: libcurl's, or ours where it says more.
    var message: String {
        switch failure {
        case .tlsClientCertificate where text.hasPrefix("getpeername"):
            "the receiver ended the connection right after the TLS handshake: it wants a client certificate, or does not take this one"
        case .localResources where hasProxy && proxyStatus == 407:
            "the egress proxy wants other credentials than OUTBOX_EGRESS_PROXY has: \(text)"
        case .localResources where hasProxy && result == CURLE_COULDNT_CONNECT:
            "the egress proxy cannot be reached: \(text)"
        case .localResources where hasProxy: "the egress proxy gave no response: \(text)"
        case .blockedAddress: Self.blocked
        case _ where sends > 1: "the receiver closed the connection without a response"
        case .protocolError where result == CURLE_OUT_OF_MEMORY: "a line of the response's header is too long"
        default: text
        }
    }

    static let blocked =
        "the host's address is private, local or otherwise special; OUTBOX_ALLOW_NETWORKS lets networks through"

    /// Whether there are descriptors for a resolver: without any, every name looks as if it did not
    /// exist.
    static func canOpenFiles() -> Bool {
        let descriptors = (0..<3).map { _ in unsafe open("/dev/null", O_RDONLY | O_CLOEXEC) }
        defer { for descriptor in descriptors where descriptor >= 0 { close(descriptor) } }
        return descriptors.allSatisfy { $0 >= 0 }
    }
}
