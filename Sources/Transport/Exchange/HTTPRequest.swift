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
    /// For the whole exchange, from name resolution to the last body byte.
    package var timeout: Duration
    /// For name resolution, TCP and TLS together.
    package var connectTimeout: Duration

    /// How much of the response's body is kept, in bytes, and the max that is read so that the
    /// connection can be kept.
    package var keptBody = usuallyKeptBody
    package static let usuallyKeptBody = 16 * 1024
    package static let maxBody = 256 * 1024
    /// The trusted authorities and our identity, where they differ from the system's.
    package var tls = TLS()
    /// The customer that the request is for: what takes long for one, such as a name that does not
    /// resolve, delays no other.
    package var party = ExactText("")
    /// Requests of the same affinity share connections; others may go through another thread.
    package var affinity = 0
    /// HTTP/2 where the receiver offers it (ALPN); otherwise, and by default, HTTP/1.1.
    package var allowsHTTP2 = false

    /// The material of a TLS connection; all texts are PEM.
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

    /// A request with the service's default limits: 15 s as Standard Webhooks advises, 5 s of it to
    /// connect.
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
