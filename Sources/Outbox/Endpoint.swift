package import Bytewise
package import Postgres
package import Templates
package import Transport

/// Who gets which events, and how: what an operator set, and what follows from it for every request.
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
        /// CloudEvents 1.0 in binary mode: attributes as `ce-` headers, the body is the event's `after`.
        case cloudeventsBinary = "cloudevents-binary"
        /// The endpoint's own template.
        case template
    }

    /// A header that the endpoint's owner asked for; its value may have parameters.
    package struct HeaderSetting: Sendable, Equatable {
        package let name: String
        package let value: String
        /// Sealed, and never shown.
        package let isSecret: Bool

        package init(name: String, value: String, isSecret: Bool = false) {
            self.name = name
            self.value = value
            self.isSecret = isSecret
        }
    }

    /// What is sealed or stored of an endpoint, as the worker reads it.
    package struct Settings: Sendable {
        package var id: EndpointID
        package var name: String
        /// The customer whose events it gets; `*` for all.
        package var customerID: ExactText = "*"
        package var method = HTTPRequest.Method.post
        package var url: String
        /// Parameters in the URL's path and query are filled, too.
        package var urlHasParameters = false
        package var headers: [HeaderSetting] = []
        package var format = Format.standard
        package var template: Template?
        package var rules = AnswerRules.standard
        package var authentication = Authentication()
        package var credentials = Credentials()
        package var tls = HTTPRequest.TLS()
        package var allowsHTTP2 = false
        /// The largest body that the receiver takes, in bytes; nil when it does not say.
        package var mostBytes: Int?
        /// An exact event type; `*` for all.
        package var eventType: ExactText = "*"
        /// An exact change type; `*` for all.
        package var changeType: ExactText = "*"
        package var timeout = Duration.seconds(15)
        package var connectTimeout = Duration.seconds(5)
        /// The waits after the first, second ... failure; after the last one the delivery is a dead letter.
        package var retrySchedule: [Duration] = []
        /// How many requests one worker process has in flight to it at most.
        package var maxInFlight = 128
        /// How many requests all workers together have in flight to it at most; nil for no such limit.
        package var maxConcurrency: Int?
        /// How many requests all workers together start, in each of these times.
        package var rates: [RateLimit] = []
        /// One delivery of an ordering key at a time, in the order of the stream.
        package var isOrdered = false
        /// The secrets to sign with: symmetric ones first, then by age, newest first.
        package var secrets: [SigningSecret] = []
        /// Why it cannot be called from here, such as a secret that no key of ours opens. Its deliveries wait meanwhile.
        package var defect: String?

        package init(id: EndpointID, name: String, url: String) {
            self.id = id
            self.name = name
            self.url = url
        }
    }

    package let settings: Settings
    /// The headers that are the same in every request, ours included.
    let constantHeaders: HTTPHeaders
    /// Those whose values have parameters.
    let headerTemplates: [(name: String, template: Template)]
    let urlTemplate: Template?
    /// Where its access tokens come from.
    package let oauth: OAuthClient?
    package let defect: String?

    package var id: EndpointID { settings.id }
    package var name: String { settings.name }
    package var rules: AnswerRules { settings.rules }
    package var timeout: Duration { settings.timeout }
    package var retrySchedule: [Duration] { settings.retrySchedule }
    /// How many requests this process has in flight to it at most. Where that is to be exact for all processes, only one of
    /// them sends: the owner of its lane.
    package var maxInFlight: Int { min(settings.maxInFlight, settings.maxConcurrency ?? .max) }
    /// Whether requests may go to it. It changes; all else that an endpoint is does not.
    package let known: KnownState
    package var state: EndpointState { known.read { copy $0 } }

    /// True when that sender may send at that time.
    package func accepts(_ sender: EndpointState.Sender, at now: Timestamp) -> Bool {
        defect == nil && known.read { $0.accepts(sender, at: now) }
    }

    /// The rates that hold at that time.
    package func rates(at now: Timestamp) -> [RateLimit] {
        settings.rates + (known.read { $0.drainRate(at: now) }.map { [$0] } ?? [])
    }

    /// True when its deliveries go through its lane, whose one owner makes its limits and its order exact.
    package func isConstrained(at now: Timestamp) -> Bool {
        settings.isOrdered || settings.maxConcurrency != nil || !settings.rates.isEmpty
            || known.read { $0.drainRate(at: now) } != nil
    }

    package init(_ settings: Settings, known: KnownState = KnownState()) {
        self.settings = settings
        self.known = known
        var own = OwnHeaders()
        var url: Template?
        var defect = settings.defect
        do {
            own = try OwnHeaders(settings)
            if settings.urlHasParameters { url = try Template(settings.url, kind: .url) }
        } catch { defect = defect ?? String(describing: error) }
        constantHeaders = own.constant
        headerTemplates = own.templates
        urlTemplate = url
        self.defect = defect
        oauth = settings.authentication.oauthClient(secret: settings.credentials.authentication)
    }

    /// The same settings, whose state is known already.
    package init(_ endpoint: Endpoint, known: KnownState) {
        (settings, self.known, defect, oauth) = (endpoint.settings, known, endpoint.defect, endpoint.oauth)
        (constantHeaders, headerTemplates, urlTemplate) = (
            endpoint.constantHeaders, endpoint.headerTemplates, endpoint.urlTemplate
        )
    }

    /// True when the event is one of its own. Only the whole value `*` is a wildcard.
    package func wants(_ event: Event) -> Bool {
        (settings.customerID == "*" || settings.customerID == event.customerID)
            && (settings.eventType == event.type || settings.eventType == "*" && !event.isOperational)
            && (settings.changeType == "*" || settings.changeType == event.changeType)
    }
}

/// A header of an endpoint, checked. A secret one is sent as it is; in others parameters are filled.
enum OwnHeader {
    case constant(HTTPHeader)
    case template(Template)

    init(_ setting: Endpoint.HeaderSetting) throws {
        let template = setting.isSecret ? nil : try Template(setting.value, kind: .header)
        if let template, !template.isConstant {
            _ = try HTTPHeader(name: setting.name, value: "")
            self = .template(template)
            return
        }
        let value = template.map { String(decoding: $0.constant, as: UTF8.self) } ?? setting.value
        // White space around a value is not part of it (RFC 9110 5.5).
        self = .constant(try HTTPHeader(name: setting.name, value: value.trimmingSpaces))
    }
}

extension String {
    /// Without spaces and tabs at the ends.
    var trimmingSpaces: String {
        var text = self[...]
        while let last = text.last, last == " " || last == "\t" { text.removeLast() }
        return String(text.drop { $0 == " " || $0 == "\t" })
    }
}

/// The headers of an endpoint, told apart by whether they are the same in every request.
private struct OwnHeaders {
    var constant: HTTPHeaders = [.userAgent]
    var templates: [(name: String, template: Template)] = []

    init() {}

    /// Headers that are one value by definition (RFC 9110 5.3): of two lines each receiver believes another one.
    private static let singletons: Set<String> = ["authorization", "content-type"]

    private struct Twice: Error, CustomStringConvertible {
        let name: String
        let other: String
        var description: String { "the header \(name) is set twice: as a header, and \(other); remove one" }
    }

    init(_ settings: Endpoint.Settings) throws {
        var names: Set<String> = []
        for header in settings.headers {
            if !names.insert(header.name.lowercased()).inserted, Self.singletons.contains(header.name.lowercased()) {
                throw Twice(name: header.name, other: "as another")
            }
            if settings.format == .cloudeventsBinary, header.name.lowercased().hasPrefix("ce-") {
                throw Twice(name: header.name, other: "by the format cloudevents-binary")
            }
            switch try OwnHeader(header) {
            case .constant(let header): constant.append(header)
            case .template(let template): templates.append((header.name, template))
            }
        }
        if settings.method != .get, !names.contains("content-type") {
            constant.append(try HTTPHeader(own: "Content-Type", value: settings.contentType))
        }
        if let header = try settings.authentication.constantHeader(secret: settings.credentials.authentication ?? "") {
            if names.contains(header.name.lowercased()) || header.name.lowercased() == "content-type" {
                throw Twice(name: header.name, other: "by the authentication")
            }
            constant.append(header)
        }
        if settings.authentication.kind == .oauth2, names.contains("authorization") {
            throw Twice(name: "Authorization", other: "by the authentication")
        }
    }
}

extension Endpoint.Settings {
    /// Takes away everything that was sealed for where this endpoint was, when it calls somebody else now.
    package mutating func withholdCredentials(givenFor url: String) {
        if authentication.origins(url: self.url, authorities: nil) == authentication.origins(url: url, authorities: nil)
        {
            return
        }
        authentication = Authentication()
        credentials = Credentials()
        headers.removeAll(where: \.isSecret)
        (tls.certificate, tls.key) = (nil, nil)
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
