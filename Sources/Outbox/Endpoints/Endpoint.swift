package import Bytewise
package import Postgres
import Templates
package import Transport

/// Who gets which events, and how: an operator's configuration, and what follows from it for every
/// request.
package final class Endpoint: Sendable {
    /// How the body of a request is made from an event.
    package enum Format: String, Sendable, CaseIterable {
        /// `{"type","timestamp","data"}`, the shape that Standard Webhooks recommends.
        case standard
        /// The Citrix Cloud callback: eight members, Before/After as string-encoded JSON.
        case citrix
        /// The bytes of the event's `after`.
        case raw
        /// CloudEvents 1.0 in structured mode: one JSON object.
        case cloudevents
        /// CloudEvents 1.0 in binary mode: attributes as `ce-` headers, the body is the event's
        /// `after`.
        case cloudeventsBinary = "cloudevents-binary"
        /// The endpoint's own template.
        case template
    }

    package let id: EndpointID
    /// As its operator set it, with secrets in clear.
    package let configuration: EndpointConfiguration
    /// The secrets to sign with: symmetric ones first, then by age, newest first.
    package let signingSecrets: [ValidSecret]
    /// The headers that are the same in every request, ours included.
    let constantHeaders: HTTPHeaders
    /// The headers whose values have parameters.
    let headerTemplates: [(name: String, template: Template)]
    let urlTemplate: Template?
    /// Where its access tokens come from.
    package let oauth: OAuthClient?
    /// The customer whose events it gets; `*` for all.
    package let customerID: ExactText
    /// Its patterns of event types, of which at most one takes any event.
    package let eventPatterns: [EventPattern]
    package let tls: HTTPRequest.TLS
    /// Why it cannot be called from here, such as a secret that none of our keys opens. Its
    /// deliveries wait meanwhile.
    package let defect: String?

    package var name: String { configuration.name }
    package var rules: ResponseRules { configuration.rules }
    package var timeout: Duration { configuration.timeout }
    package var retrySchedule: [Duration] { configuration.retrySchedule }
    /// What a response may take, in bytes, beyond what every response may: rules read more of it.
    package var responseBytes: Int { rules.readBody ? HTTPRequest.maxBody - HTTPRequest.usuallyKeptBody : 0 }
    /// What a request with the event may take in flight beside the event: its response, and what a
    /// template makes of it.
    package func bytesInFlight(for event: Event) -> Int { responseBytes + bodyBytes(for: event) }

    /// What a template may make of the event, at most; nothing without one.
    package func bodyBytes(for event: Event) -> Int {
        guard configuration.format == .template, let template = configuration.template else { return 0 }
        return template.cost(of: event.size)
    }
    /// The most requests that this process has in flight to it. Where the limit is exact for all
    /// processes, only one of them sends: the owner of its lane.
    package var maxInFlight: Int { min(configuration.maxInFlight, configuration.maxConcurrency ?? .max) }
    /// Whether requests may go to it. Only this part of an endpoint changes.
    package let known: KnownState
    package var state: EndpointState { known.read { copy $0 } }

    /// True when the sender may send at the given time.
    package func accepts(_ sender: EndpointState.Sender, at now: Timestamp) -> Bool {
        defect == nil && known.read { $0.accepts(sender, at: now) }
    }

    /// The rates that hold at the given time.
    package func rates(at now: Timestamp) -> [RateLimit] {
        configuration.rates + (known.read { $0.drainRate(at: now) }.map { [$0] } ?? [])
    }

    /// True when its deliveries go through its lane, whose single owner makes its limits and its
    /// order exact.
    package func isConstrained(at now: Timestamp) -> Bool {
        configuration.isOrdered || configuration.maxConcurrency != nil || !configuration.rates.isEmpty
            || known.read { $0.drainRate(at: now) } != nil
    }

    /// - Parameter defect: why it cannot be called, where that is already known.
    package init(
        _ id: EndpointID, _ configuration: EndpointConfiguration, signingSecrets: [ValidSecret] = [],
        defect: String? = nil,
        known: KnownState = KnownState()
    ) {
        (self.id, self.configuration, self.signingSecrets, self.known) = (id, configuration, signingSecrets, known)
        customerID = ExactText(configuration.customerID)
        eventPatterns = EventPattern.disjoint(configuration.eventTypes)
        var headers = RequestHeaders()
        var url: Template?
        var defect = defect
        do {
            headers = try RequestHeaders(configuration)
            if configuration.urlHasParameters { url = try Template(configuration.url, kind: .url) }
        } catch { defect = defect ?? String(describing: error) }
        constantHeaders = headers.constant
        headerTemplates = headers.templates
        urlTemplate = url
        self.defect = defect
        oauth = configuration.authentication.oauthClient
        tls = HTTPRequest.TLS(
            authorities: configuration.tls.caCertificates, certificate: configuration.tls.clientCertificate,
            key: configuration.tls.clientKey?.text)
    }

    /// The same configuration with a state that is already known.
    package init(_ endpoint: Endpoint, known: KnownState) {
        (id, configuration, signingSecrets) = (endpoint.id, endpoint.configuration, endpoint.signingSecrets)
        (self.known, defect, oauth, tls) = (known, endpoint.defect, endpoint.oauth, endpoint.tls)
        (customerID, eventPatterns) = (endpoint.customerID, endpoint.eventPatterns)
        (constantHeaders, headerTemplates, urlTemplate) = (
            endpoint.constantHeaders, endpoint.headerTemplates, endpoint.urlTemplate
        )
    }

    package func takes(changeType: ExactText) -> Bool { configuration.changeTypes.match(changeType) }
}

/// A header of an endpoint, checked. A secret value is sent as it is; in other values parameters
/// are filled.
enum ConfiguredHeader {
    case constant(HTTPHeader)
    case template(Template)

    init(_ header: EndpointConfiguration.Header) throws {
        let template = header.isSecret ? nil : try Template(header.value.text, kind: .header)
        if let template, !template.isConstant {
            _ = try HTTPHeader(name: header.name, value: "")
            self = .template(template)
            return
        }
        let value = template.map { String(decoding: $0.constant, as: UTF8.self) } ?? header.value.text
        // White space around a value is not part of it (RFC 9110 5.5).
        self = .constant(try HTTPHeader(name: header.name, value: value.trimmingSpaces))
    }
}

extension String {
    /// The value without spaces and tabs at its ends.
    var trimmingSpaces: String {
        var text = self[...]
        while let last = text.last, last == " " || last == "\t" { text.removeLast() }
        return String(text.drop { $0 == " " || $0 == "\t" })
    }
}

/// The headers of an endpoint's requests, separated by whether they are the same in every request.
private struct RequestHeaders {
    var constant: HTTPHeaders = [.userAgent]
    var templates: [(name: String, template: Template)] = []

    init() {}

    /// Headers that have a single value by definition (RFC 9110 5.3): of two lines, receivers
    /// differ in which one they believe.
    private static let singletons: Set<String> = ["authorization", "content-type"]

    private struct Twice: Error, CustomStringConvertible {
        let name: String
        let other: String
        var description: String { "the header \(name) is set twice: as a header, and \(other); remove one" }
    }

    init(_ endpoint: EndpointConfiguration) throws {
        var names: Set<String> = []
        for header in endpoint.headers {
            if !names.insert(header.name.lowercased()).inserted, Self.singletons.contains(header.name.lowercased()) {
                throw Twice(name: header.name, other: "as another")
            }
            if endpoint.format == .cloudeventsBinary, header.name.lowercased().hasPrefix("ce-") {
                throw Twice(name: header.name, other: "by the format cloudevents-binary")
            }
            switch try ConfiguredHeader(header) {
            case .constant(let header): constant.append(header)
            case .template(let template): templates.append((header.name, template))
            }
        }
        if endpoint.method != .get, !names.contains("content-type") {
            constant.append(try HTTPHeader(own: "Content-Type", value: endpoint.contentType))
        }
        if let header = try endpoint.authentication.constantHeader() {
            if names.contains(header.name.lowercased()) || header.name.lowercased() == "content-type" {
                throw Twice(name: header.name, other: "by the authentication")
            }
            constant.append(header)
        }
        if endpoint.authentication.kind == .oauth2, names.contains("authorization") {
            throw Twice(name: "Authorization", other: "by the authentication")
        }
    }
}

extension EndpointConfiguration {
    /// Removes everything that was sealed for the endpoint's former destination, when it now calls
    /// another one.
    package mutating func withholdCredentials(givenFor url: String) {
        if authentication.origins(url: self.url, authorities: nil) == authentication.origins(url: url, authorities: nil)
        {
            return
        }
        authentication = Authentication()
        headers.removeAll(where: \.isSecret)
        (tls.clientCertificate, tls.clientKey) = (nil, nil)
    }

    fileprivate var contentType: String {
        switch (format, template?.kind) {
        case (.cloudevents, _): "application/cloudevents+json; charset=utf-8"
        case (.template, .xml): "application/xml"
        case (.template, .text): "text/plain; charset=utf-8"
        default: "application/json"
        }
    }
}
