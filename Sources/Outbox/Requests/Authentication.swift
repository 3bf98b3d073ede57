package import Bytewise
import Crypto
import FoundationEssentials
package import Transport

/// How a request proves its sender to the receiver.
package struct Authentication: Sendable, Equatable {
    package enum Kind: String, Sendable, Codable, CaseIterable {
        case none
        /// The `Authorization` header's value as given (the Citrix Cloud `authHeaders`).
        case verbatim
        /// User and password (RFC 7617, UTF-8).
        case basic
        /// A bearer token (RFC 6750).
        case bearer
        /// A header of another name.
        case header
        /// A token from the client credentials grant (RFC 6749 4.4).
        case oauth2
    }

    package var kind = Kind.none
    /// The user of `basic`.
    package var user: String?
    /// The header of `header`.
    package var header: String?
    package var tokenURL: String?
    package var clientID: String?
    package var scope: String?
    /// How the client of `oauth2` authenticates; nil for Basic.
    package var clientProof: OAuthClient.Proof?
    /// The value, token, password or client secret; stored apart and sealed (`Credentials`).
    package var secret: EndpointSecret?

    package init() {}

    /// Throws a `Problem` that names what is missing or wrong.
    func validate(_ policy: AddressPolicy?) throws {
        func require(_ value: String?, _ what: String) throws {
            if value?.isEmpty ?? true {
                throw Problem(.invalidValue, "authentication \(kind.rawValue) needs \(what)")
            }
        }
        switch kind {
        case .none: return
        case .verbatim, .bearer: break
        case .basic:
            try require(user, "a user")
            if user?.utf8.contains(UInt8(ascii: ":")) == true {
                throw Problem(.invalidValue, "a user's name has no colon (RFC 7617)")
            }
            if [user, secret?.text].contains(where: { $0?.utf8.contains { $0 < 0x20 || $0 == 0x7F } == true }) {
                throw Problem(.invalidValue, "user or password contains a control character (RFC 7617)")
            }
        case .header: try require(header, "the header's name")
        case .oauth2:
            try require(tokenURL, "a token URL")
            try require(clientID, "a client id")
            try checkURL(tokenURL ?? "", "the token URL", policy)
        }
        // It was checked when it was given.
        if secret == .kept { return }
        try require(secret?.text, kind == .oauth2 ? "the client's secret" : "a secret")
        _ = try constantHeader()
        _ = try oauthClient?.request(timeout: .seconds(1))
    }

    /// Where tokens come from; nil where none are needed.
    var oauthClient: OAuthClient? {
        guard kind == .oauth2 else { return nil }
        return OAuthClient(
            tokenURL: ExactText(tokenURL ?? ""), clientID: ExactText(clientID ?? ""),
            clientSecret: ExactText(secret?.text ?? ""),
            scope: scope.map { ExactText($0) }, proof: clientProof ?? .basic)
    }

    /// The destinations of credentials: the origin of the endpoint's URL (RFC 6454 4) and that of
    /// the token URL; and the authorities that certify them, when they are not the system's.
    func origins(url: String, authorities: String?) -> [String] {
        let digest = authorities.map { "authorities " + hexadecimal(SHA256.hash(data: Array($0.utf8)).prefix(8)) }
        return [url, kind == .oauth2 ? tokenURL : nil].compactMap(\.self).map { text in
            // A URL that cannot be read is never called.
            (try? TargetURL(text)).map { "\($0.scheme)://\($0.host.lowercased()):\($0.port)" } ?? ""
        } + (digest.map { [$0] } ?? [])
    }

    /// The header that is the same in every request; nil where there is none.
    func constantHeader() throws(HTTPHeader.ValidationError) -> HTTPHeader? {
        let secret = secret?.text ?? ""
        return switch kind {
        case .none, .oauth2: nil
        case .verbatim: try HTTPHeader(own: "Authorization", value: secret)
        case .bearer: try HTTPHeader(own: "Authorization", value: "Bearer \(secret)")
        case .basic:
            try HTTPHeader(
                own: "Authorization",
                value: "Basic " + Data("\(user ?? ""):\(secret)".utf8).base64EncodedString())
        case .header: try HTTPHeader(name: header ?? "", value: secret)
        }
    }
}

/// An endpoint's secrets besides its signing secrets: sealed as one JSON object.
package struct Credentials: Sendable, Codable {
    /// The value, token, password or client secret of the authentication.
    package var authentication: String?
    /// The private key of the client certificate, PEM.
    package var clientKey: String?
    /// The values of the headers that are marked secret, in their order.
    package var headers: [SecretHeader] = []
    /// The origins that the credentials were given for, and are sent to.
    package var origins: [String] = []

    /// With its name: the row that has the names is another one, and the two may not fit after a
    /// restore in part.
    package struct SecretHeader: Sendable, Codable, Equatable {
        package let name: ExactText
        package let value: ExactText
    }

    package init() {}

    var isEmpty: Bool { authentication == nil && clientKey == nil && headers.isEmpty }

    /// True when the other credentials are the same, byte for byte.
    func isIdentical(to other: Credentials) -> Bool {
        func exact(_ texts: [String]) -> [ExactText] { texts.map { ExactText($0) } }
        return authentication.map { ExactText($0) } == other.authentication.map { ExactText($0) }
            && clientKey.map { ExactText($0) } == other.clientKey.map { ExactText($0) }
            && headers == other.headers && exact(origins) == exact(other.origins)
    }

    /// These credentials, unless the endpoint now calls an origin that they were not given for: a
    /// URL changed behind our back does not receive them.
    func given(for origins: [String]) throws(Keyring.KeyError) -> Credentials {
        if isEmpty || self.origins == origins { return self }
        throw Keyring.KeyError(
            description:
                "its credentials were given for \(self.origins.joined(separator: " and ")), and are not sent anywhere else"
        )
    }

    func sealed(_ keyring: Keyring, for endpoint: EndpointID) throws -> (keyID: String, bytes: [UInt8]) {
        try keyring.seal(Array(try JSONEncoder().encode(self)), .credentials, for: endpoint)
    }

    init(_ bytes: [UInt8]) throws { self = try JSONDecoder().decode(Credentials.self, from: Data(bytes)) }
}

/// Where an access token is fetched, and by which client. Endpoints with the same client share
/// their token.
package struct OAuthClient: Sendable, Hashable {
    /// How the client authenticates (RFC 6749 2.3.1).
    package enum Proof: String, Sendable, Codable, CaseIterable {
        /// `client_secret_basic`: in a header, which every server accepts.
        case basic
        /// `client_secret_post`: in the body, for servers that accept nothing else.
        case post
    }

    package let tokenURL: ExactText
    package let clientID: ExactText
    package let clientSecret: ExactText
    package let scope: ExactText?
    package let proof: Proof

    package init(
        tokenURL: ExactText, clientID: ExactText, clientSecret: ExactText, scope: ExactText?, proof: Proof = .basic
    ) {
        (self.tokenURL, self.clientID, self.clientSecret) = (tokenURL, clientID, clientSecret)
        (self.scope, self.proof) = (scope, proof)
    }

    /// The request for a token (RFC 6749 4.4.2).
    package func request(timeout: Duration) throws(HTTPHeader.ValidationError) -> HTTPRequest {
        let pair = "\(Self.encoded(clientID)):\(Self.encoded(clientSecret))"
        var headers = HTTPHeaders([
            .userAgent, try HTTPHeader(own: "Content-Type", value: "application/x-www-form-urlencoded"),
            try HTTPHeader(own: "Accept", value: "application/json"),
        ])
        var body = "grant_type=client_credentials"
        switch proof {
        case .basic:
            headers.append(
                try HTTPHeader(own: "Authorization", value: "Basic " + Data(pair.utf8).base64EncodedString()))
        case .post: body += "&client_id=\(Self.encoded(clientID))&client_secret=\(Self.encoded(clientSecret))"
        }
        if let scope { body += "&scope=\(Self.encoded(scope))" }
        var request = HTTPRequest(url: tokenURL.text, headers: headers, body: Array(body.utf8), timeout: timeout)
        request.keptBody = 64 * 1024
        return request
    }

    private static func encoded(_ text: ExactText) -> String {
        var bytes: [UInt8] = []
        bytes.appendPercentEncoded(text.utf8)
        return String(decoding: bytes, as: UTF8.self)
    }
}

/// Checks a URL that requests are to go to, as far as that is possible without resolving its host.
func checkURL(_ url: String, _ what: String, _ policy: AddressPolicy?) throws {
    do {
        let target = try TargetURL(url)
        if let policy, let reason = policy.refusal(of: target) {
            throw Problem(
                .endpointURLNotAllowed, "\(what) \(reason)",
                hint: "If requests may go there, name its network in OUTBOX_ALLOW_NETWORKS, here and for the workers")
        }
    } catch let error as TargetURL.ValidationError {
        throw Problem(
            .endpointURLNotAllowed, "\(what) \(error)", hint: "Expected something like https://example.com/hook")
    }
}
