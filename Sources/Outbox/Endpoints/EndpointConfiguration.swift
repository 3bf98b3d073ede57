import Postgres
package import Templates
package import Transport

/// All that an operator sets about an endpoint: who gets which events, and how. It is complete; an
/// unset member has its default. The same value is created, replaced, changed, stored
/// (`EndpointStore`), shown, exported and imported (`EndpointDocument`), and used by workers
/// (`Endpoint`).
package struct EndpointConfiguration: Sendable, Equatable {
    /// Unique per customer.
    package var name: String
    /// The customer whose events it gets; `*` for every customer's.
    package var customerID = "*"
    package var description: String?

    // Which events.
    package var eventTypes: [EventPattern] = [.any]
    package var changeTypes: [EventPattern] = [.any]
    /// A SQL/JSON path on the event; the endpoint gets only events for which it holds. Nil for all.
    package var filter: String?

    // The request.
    package var url: String
    /// Parameters in the URL's path and query are filled as well.
    package var urlHasParameters = false
    package var method = HTTPRequest.Method.post
    package var format = Endpoint.Format.standard
    /// The body, when the format is `template`; it is kept while another format is chosen.
    package var template: Template?
    package var headers: [Header] = []
    package var authentication = Authentication()
    package var tls = TLS()
    package var allowsHTTP2 = false
    /// The largest body that the receiver accepts, in bytes; nil when it states none.
    package var maxBodyBytes: Int?

    // The response, and its consequences.
    package var rules = ResponseRules()
    /// For the whole request.
    package var timeout = Duration.seconds(15)
    /// For name resolution, TCP and TLS.
    package var connectTimeout = Duration.seconds(5)
    /// The waits after the first, second … failure, about three days together. After the last one
    /// the delivery is a dead letter.
    package var retrySchedule: [Duration] = [
        .seconds(5), .seconds(30), .seconds(120), .seconds(600), .seconds(1800), .seconds(3600), .seconds(3 * 3600),
        .seconds(6 * 3600), .seconds(12 * 3600), .seconds(86_400), .seconds(86_400),
    ]

    // Limits and order.
    /// The most requests that one worker process has in flight to it.
    package var maxInFlight = 128
    /// The most requests that all workers together have in flight to it; nil for no such limit.
    package var maxConcurrency: Int?
    /// How many requests all workers together may start in a period; every rate holds.
    package var rates: [RateLimit] = []
    /// One delivery of an ordering key at a time, in the order of the stream.
    package var isOrdered = false
    package var onDead = OnDead.block

    package init(name: String, url: String) { (self.name, self.url) = (name, url) }

    /// How the rest of an ordering key proceeds when one of its deliveries becomes a dead letter.
    package enum OnDead: String, Sendable, CaseIterable, Codable {
        /// It waits until the dead letter is replayed or dropped.
        case block
        /// It goes on.
        case skip
    }

    /// A header that the endpoint's owner asked for. A value that is not secret may have
    /// parameters.
    package struct Header: Sendable, Equatable {
        package var name: String
        package var value: EndpointSecret
        /// Sealed, and never shown.
        package var isSecret: Bool

        package init(name: String, value: EndpointSecret, isSecret: Bool = false) {
            (self.name, self.value, self.isSecret) = (name, value, isSecret)
        }

        package init(name: String, value: String, isSecret: Bool = false) {
            self.init(name: name, value: .text(value), isSecret: isSecret)
        }
    }

    /// Which authorities it trusts, and how it identifies itself; all in PEM.
    package struct TLS: Sendable, Equatable {
        /// Trusted in place of the system's; nil for the system's.
        package var caCertificates: String?
        package var clientCertificate: String?
        package var clientKey: EndpointSecret?
    }

    /// Takes over format, template, rules and limits of a preset.
    package mutating func apply(_ preset: Preset) throws {
        format = .template
        template = try Template(preset.template, kind: preset.kind)
        rules = preset.rules
        maxBodyBytes = preset.maxBodyBytes
        rates = preset.rates
    }
}

/// A secret of an endpoint, as held by code that changes or uses the endpoint. Written as text it
/// is `***`.
package enum EndpointSecret: Sendable, Equatable, ExpressibleByStringLiteral {
    /// The stored secret, which stays as it is.
    case kept
    case text(String)

    package init(stringLiteral text: String) { self = .text(text) }

    /// Empty when it is not known here.
    package var text: String { if case .text(let text) = self { text } else { "" } }
}

// MARK: Refusals

extension EndpointConfiguration {
    /// Throws a `Problem` that names the setting, what is wrong with it and what would be valid.
    ///
    /// - Parameter policy: where requests may go, as far as that is known here; nil leaves the
    ///   check to the workers.
    package func validate(_ policy: AddressPolicy? = nil) throws {
        let isWord =
            name.utf8.allSatisfy { $0 > 0x20 && $0 != 0x7F } && !name.utf8.contains(UInt8(ascii: ":"))
            && !name.utf8.contains(UInt8(ascii: "/"))
        guard (1...128).contains(name.unicodeScalars.count), isWord, UniqueID(name) == nil else {
            throw Problem(
                .invalidValue, "endpoint name \"\(name.prefix(64))\" is not valid",
                hint: "Use 1 to 128 characters without white space, colon or slash, and not the form of a UUID")
        }
        guard (1...256).contains(customerID.unicodeScalars.count) else {
            throw Problem(.invalidValue, "the customer must have 1 to 256 characters")
        }
        guard description?.unicodeScalars.count ?? 0 <= 4096 else {
            throw Problem(.invalidValue, "the description has more than 4096 characters")
        }
        if let member = try memberWithNUL() {
            throw Problem(.invalidValue, "\(member) contains U+0000", hint: "The database has no such character")
        }
        for (patterns, what) in [(eventTypes, "event types"), (changeTypes, "change types")]
        where !(1...100).contains(patterns.count) {
            throw Problem(.invalidValue, "there must be 1 to 100 \(what)", hint: "For all of them write *")
        }
        for (secret, what) in headers.map({ ($0.value, "the header \($0.name.prefix(64))") }) + [
            (authentication.secret, "the authentication's secret"), (tls.clientKey, "the client's private key"),
        ] where secret == .text(Masking.mask) {
            throw Problem(.maskedValue, "\(what) cannot be ***: that stands for what is stored", hint: "Give its value")
        }
        try validateRequest(policy)
        try validateTLS()
        try rules.validate()
        try validateLimits()
    }

    private func validateRequest(_ policy: AddressPolicy?) throws {
        try checkURL(url, "the URL", policy)
        if urlHasParameters {
            do { _ = try Template(url, kind: .url) } catch {
                throw Problem(.invalidValue, "the URL's parameters cannot be filled: \(error)")
            }
        }
        if format == .template, template == nil {
            throw Problem(
                .templateInvalid, "the format template needs a template",
                hint: "Give one, or a preset", next: UseCase("template.presets"))
        }
        guard headers.count <= 100,
            headers.reduce(0, { $0 + $1.name.utf8.count + $1.value.text.utf8.count + 4 }) <= 32_768
        else { throw Problem(.headerInvalid, "more than 100 headers, or more than 32 KiB of them") }
        for header in headers where header.value != .kept {
            do { _ = try ConfiguredHeader(header) } catch let error as Template.ValidationError {
                throw Problem(.headerInvalid, "header \(header.name.prefix(64)): \(error)")
            }
        }
        try authentication.validate(policy)
        if let maxBodyBytes, !(1...104_857_600).contains(maxBodyBytes) {
            throw Problem(.invalidValue, "the largest body must be 1 byte to 100 MiB, or any")
        }
    }

    private func validateTLS() throws {
        if tls.clientCertificate != nil || tls.clientKey != nil {
            guard let certificate = tls.clientCertificate, let key = tls.clientKey else {
                throw Problem(.invalidValue, "a client certificate and its private key belong together")
            }
            try checkPEM(certificate, "the client certificate", "CERTIFICATE")
            if case .text(let key) = key {
                try checkPEM(key, "the client's private key", "PRIVATE KEY")
                if let reason = HTTPRequest.TLS(certificate: certificate, key: key).defect {
                    throw Problem(
                        .invalidValue, reason, hint: "Give the certificate and the key that was made for it")
                }
            }
        }
        if let authorities = tls.caCertificates { try checkPEM(authorities, "the CA certificate", "CERTIFICATE") }
    }

    private func checkPEM(_ text: String, _ what: String, _ label: String) throws {
        guard text.contains("-----BEGIN "), text.contains("\(label)-----") else {
            throw Problem(
                .invalidValue, "\(what) is not PEM", hint: "Expected a file with -----BEGIN … \(label)-----")
        }
        if text.contains("ENCRYPTED") {
            throw Problem(
                .invalidValue, "\(what) is encrypted", hint: "Workers cannot ask for a passphrase")
        }
    }

    private func validateLimits() throws {
        if retrySchedule.count > 100 || retrySchedule.contains(where: { $0 < .zero || $0 > .seconds(30 * 86_400) }) {
            throw Problem(
                .invalidValue, "the retry schedule has more than 100 waits, or one that is negative or over 30 days")
        }
        if timeout < .milliseconds(100) || timeout > .seconds(300) {
            throw Problem(.invalidValue, "the timeout must be 100 ms to 5 min")
        }
        if connectTimeout < .milliseconds(100) || connectTimeout > .seconds(60) {
            throw Problem(.invalidValue, "the connect timeout must be 100 ms to 1 min")
        }
        if !(1...10_000).contains(maxInFlight) {
            throw Problem(.invalidValue, "the cap on requests in flight must be 1 to 10000")
        }
        if let maxConcurrency, !(1...10_000).contains(maxConcurrency) {
            throw Problem(.invalidValue, "the limit of concurrent requests must be 1 to 10000, or none")
        }
        if rates.count > 8 { throw Problem(.invalidValue, "more than 8 rates") }
    }
}
