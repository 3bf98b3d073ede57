import FoundationEssentials
import Postgres
package import Templates
package import Transport

/// What an operator says about an endpoint; nil leaves a setting as it is, or at its default.
package struct EndpointChange: Sendable {
    package var name: String?
    package var customerID: String?
    package var description: String?
    package var method: HTTPRequest.Method?
    package var url: String?
    package var urlHasParameters: Bool?
    package var headers: [Endpoint.HeaderSetting]?
    package var format: Endpoint.Format?
    package var template: Template?
    package var rules: AnswerRules?
    package var authentication: Authentication?
    /// The secret of the authentication.
    package var authenticationSecret: String?
    /// PEM; an empty text goes back to the system's authorities.
    package var authorities: String?
    /// PEM; an empty text takes the client certificate away.
    package var clientCertificate: String?
    package var clientKey: String?
    package var allowsHTTP2: Bool?
    /// Zero for no limit.
    package var mostBytes: Int?
    package var eventType: String?
    package var changeType: String?
    package var timeout: Duration?
    package var connectTimeout: Duration?
    package var retrySchedule: [Duration]?
    package var maxInFlight: Int?
    /// Zero for no limit.
    package var maxConcurrency: Int?
    package var rates: [RateLimit]?
    package var isOrdered: Bool?
    package var onDead: OnDead?

    /// What happens to the rest of an ordering key when one of its deliveries becomes a dead letter.
    package enum OnDead: String, Sendable, CaseIterable {
        /// It waits until the dead letter is replayed or dropped.
        case block
        /// It goes on.
        case skip
    }

    package init() {}

    /// Takes template, rules and limit of a preset; what was said already stays.
    package mutating func apply(_ preset: Preset) throws {
        format = .template
        template = try template ?? Template(preset.template, kind: preset.kind)
        rules = AnswerRules.standard.merged(with: preset.rules).merged(with: rules ?? AnswerRules())
        mostBytes = mostBytes ?? preset.mostBytes ?? 0
        rates = rates ?? preset.rates
    }

    /// True when something is sealed anew.
    package var changesCredentials: Bool {
        authentication != nil || clientKey != nil || clientCertificate == "" || headers != nil
    }

    /// True when all that is sealed was said anew, or is taken away.
    func replacesAll(of credentials: Credentials) -> Bool {
        (credentials.authentication == nil || authentication != nil)
            && (credentials.clientKey == nil || clientKey != nil || clientCertificate == "")
            && (credentials.headers.isEmpty || headers != nil)
    }

    /// What is sealed afterwards.
    func changed(_ credentials: Credentials) -> Credentials {
        var credentials = credentials
        if authentication != nil { credentials.authentication = authenticationSecret }
        if let clientKey { credentials.clientKey = clientKey }
        if clientCertificate == "" { credentials.clientKey = nil }
        if let headers { credentials.headers = headers.filter(\.isSecret).map(\.value) }
        return credentials
    }

    /// The same as `validate`, as far as it can be seen without knowing where requests may go.
    package func check() throws { try validate(nil) }

    /// Throws an `OperationRefusal` that names the setting, what is wrong with it and what would be right.
    ///
    /// - Parameter policy: where requests may go, as far as it is known here; nil leaves that to the workers.
    func validate(_ policy: AddressPolicy?) throws {
        if let name {
            let isWord =
                name.utf8.allSatisfy { $0 > 0x20 && $0 != 0x7F } && !name.utf8.contains(UInt8(ascii: ":"))
                && !name.utf8.contains(UInt8(ascii: "/"))
            guard (1...128).contains(name.unicodeScalars.count), isWord, UniqueID(name) == nil else {
                throw OperationRefusal(
                    .invalid, "endpoint name \"\(name.prefix(64))\" is not valid",
                    hint: "Use 1 to 128 characters without white space, colon or slash, and not the form of a UUID")
            }
        }
        try validateTarget(policy)
        try validateHeaders()
        try authentication?.validate(secret: authenticationSecret, policy: policy)
        try validateTLS()
        try rules?.validate()
        if let retrySchedule,
            retrySchedule.count > 100 || retrySchedule.contains(where: { $0 < .zero || $0 > .seconds(30 * 86_400) })
        {
            throw OperationRefusal(
                .invalid, "the retry schedule has more than 100 waits, or one that is negative or over 30 days")
        }
        if let timeout, timeout < .milliseconds(100) || timeout > .seconds(300) {
            throw OperationRefusal(.invalid, "the timeout must be 100 ms to 5 min")
        }
        if let connectTimeout, connectTimeout < .milliseconds(100) || connectTimeout > .seconds(60) {
            throw OperationRefusal(.invalid, "the connect timeout must be 100 ms to 1 min")
        }
        if let maxInFlight, !(1...10_000).contains(maxInFlight) {
            throw OperationRefusal(.invalid, "the cap on requests in flight must be 1 to 10000")
        }
        if let maxConcurrency, !(0...10_000).contains(maxConcurrency) {
            throw OperationRefusal(.invalid, "the limit of concurrent requests must be 1 to 10000, or 0 for none")
        }
        if let rates, rates.count > 8 { throw OperationRefusal(.invalid, "more than 8 rates") }
        if let mostBytes, !(0...104_857_600).contains(mostBytes) {
            throw OperationRefusal(.invalid, "the largest body must be 1 byte to 100 MiB, or 0 for any")
        }
        for (value, what) in [(eventType, "event type"), (changeType, "change type"), (customerID, "customer")] {
            if let value, !(1...256).contains(value.unicodeScalars.count) {
                throw OperationRefusal(.invalid, "the \(what) must have 1 to 256 characters")
            }
        }
    }

    private func validateTarget(_ policy: AddressPolicy?) throws {
        guard let url else { return }
        try checkURL(url, "the URL", policy)
        if urlHasParameters == true {
            do { _ = try Template(url, kind: .url) } catch {
                throw OperationRefusal(.invalid, "the URL's parameters cannot be filled: \(error)")
            }
        }
    }

    private func validateHeaders() throws {
        guard let headers else { return }
        guard headers.count <= 100, headers.reduce(0, { $0 + $1.name.utf8.count + $1.value.utf8.count + 4 }) <= 32_768
        else { throw OperationRefusal(.invalid, "more than 100 headers, or more than 32 KiB of them") }
        for header in headers {
            do { _ = try OwnHeader(header) } catch let error as Template.Refusal {
                throw OperationRefusal(.invalid, "header \(header.name.prefix(64)): \(error)")
            }
        }
    }

    private func validateTLS() throws {
        if clientCertificate?.isEmpty == false || clientKey != nil {
            guard let clientCertificate, let clientKey else {
                throw OperationRefusal(.invalid, "a client certificate and its private key belong together")
            }
            try checkPEM(clientCertificate, "the client certificate", "CERTIFICATE")
            try checkPEM(clientKey, "the client's private key", "PRIVATE KEY")
            if let reason = HTTPRequest.TLS(certificate: clientCertificate, key: clientKey).defect {
                throw OperationRefusal(.invalid, reason, hint: "Give the certificate and the key that was made for it")
            }
        }
        if let authorities, !authorities.isEmpty { try checkPEM(authorities, "the CA certificate", "CERTIFICATE") }
    }

    private func checkPEM(_ text: String, _ what: String, _ label: String) throws {
        guard text.contains("-----BEGIN "), text.contains("\(label)-----") else {
            throw OperationRefusal(
                .invalid, "\(what) is not PEM", hint: "Expected a file with -----BEGIN … \(label)-----")
        }
        if text.contains("ENCRYPTED") {
            throw OperationRefusal(
                .invalid, "\(what) is encrypted", hint: "Workers have nobody to ask for a passphrase")
        }
    }
}
