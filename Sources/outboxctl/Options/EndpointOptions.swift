import ArgumentParser
import Foundation
import Outbox
import Templates
import Transport

extension Template.Kind: ExpressibleByArgument {
    init?(argument: String) {
        switch argument {
        case "json": self = .json
        case "xml": self = .xml
        case "text": self = .text
        default: return nil
        }
    }
}
extension ResponseRules.Form: ExpressibleByArgument {}
extension Authentication.Kind: ExpressibleByArgument {}
extension EndpointConfiguration.OnDead: ExpressibleByArgument {}
extension OAuthClient.Proof: ExpressibleByArgument {}

/// The settings of an endpoint that create, update and test share.
struct EndpointOptions: ParsableArguments {
    @Option(name: .long, help: "Only this customer's events; * for all.") var customer: String?
    @Option(name: .long, help: "Free text; an empty one takes it away.") var description: String?
    @Option(
        name: .long,
        help: ArgumentHelp(
            "An event type, a prefix such as order.*, or * for all; may be repeated. =TEXT is literal.",
            valueName: "type"))
    var eventType: [String] = []
    @Option(
        name: .long,
        help: ArgumentHelp("A change type such as Create, a prefix or *; may be repeated.", valueName: "type"))
    var changeType: [String] = []
    @Option(
        name: .long,
        help: ArgumentHelp(
            "A SQL/JSON path, as in '$.after.amount > 10': only events that it holds for; @file; \"none\" to undo.",
            valueName: "path"))
    var filter: String?
    @Option(name: .long, help: "POST, PUT, PATCH or GET.") var method: HTTPRequest.Method?
    @Flag(name: .long, inversion: .prefixedNo, help: "Fill %parameters% in the URL's path and query, too.")
    var urlParameters: Bool?

    @Option(name: .long, help: "standard, citrix, raw, cloudevents, cloudevents-binary or template.")
    var format: Endpoint.Format?
    @Option(name: .long, help: "Template and rules of a known receiver; see: outboxctl template presets")
    var preset: String?
    @Option(name: .long, help: "The body with %parameters%; @file or - for stdin.") var template: String?
    @Option(name: .long, help: "json, xml or text.") var templateKind: Template.Kind?
    @Option(name: .long, help: "Refuse bodies of more bytes before sending; 0 for any.") var maxBody: Int?
    @Option(
        name: .long, help: ArgumentHelp("A request header, with %parameters%; may be repeated.", valueName: "K: V"))
    var header: [HeaderArgument] = []
    @Option(
        name: .long,
        help: ArgumentHelp("A header whose value is read from a file, sealed and never shown.", valueName: "K: @file"))
    var secretHeader: [HeaderArgument] = []

    @Option(name: .long, help: "none, verbatim, basic, bearer, header or oauth2.") var auth: Authentication.Kind?
    @Option(name: .long, help: "File with the value, password, token or client secret; - for stdin.")
    var authFile: String?
    @Option(name: .long, help: "The user of basic.") var authUser: String?
    @Option(name: .long, help: "The header of auth header.") var authHeader: String?
    @Option(name: .long, help: "Where oauth2 gets its tokens.") var tokenUrl: String?
    @Option(name: .long, help: "The client id of oauth2.") var clientId: String?
    @Option(name: .long, help: "The scope of oauth2.") var scope: String?
    @Option(name: .long, help: "How oauth2 shows who asks for a token: basic, or post (in the request's body).")
    var clientAuth: OAuthClient.Proof?
    @Option(name: .long, help: "PEM file with the certificates to trust in place of the system's; \"none\" to undo.")
    var caFile: String?
    @Option(name: .long, help: "PEM file with the client certificate; \"none\" to undo.") var clientCertFile: String?
    @Option(name: .long, help: "PEM file with its private key.") var clientKeyFile: String?
    @Flag(name: .long, inversion: .prefixedNo, help: "HTTP/2 where the receiver offers it.") var http2: Bool?

    @Option(name: .long, help: "Statuses that mean success, as in 200-299.") var success: String?
    @Option(name: .long, help: "Statuses after which an event is not tried again, as in 400,413.")
    var permanent: String?
    @Option(name: .long, help: "What the response's body has to be: any, json or jsonp.") var response:
        ResponseRules.Form?
    @Option(
        name: .long,
        help: ArgumentHelp(
            "What must hold of the response, as in \"string status ok\"; may be repeated.",
            valueName: "[deny] TYPE KEY VALUE"))
    var rule: [String] = []
    @Option(name: .long, help: "A text in the response that means too many requests; may be repeated.")
    var throttledText: [String] = []
    @Flag(name: .long, inversion: .prefixedNo, help: "Do not try again after a failed rule.") var ruleFailureFinal:
        Bool?

    @Option(name: .long, help: "For the whole request, 100ms to 5m.") var timeout: DurationArgument?
    @Option(name: .long, help: "For name, TCP and TLS, 100ms to 1m.") var connectTimeout: DurationArgument?
    @Option(name: .long, help: "The waits after failures, as in 5s,30s,2m; \"none\" for no retry.")
    var retrySchedule: String?
    @Option(name: .long, help: "Requests in flight per worker process.") var maxInFlight: Int?
    @Option(name: .long, help: "Requests in flight of all workers together, exactly; 0 for no such limit.")
    var maxConcurrency: Int?
    @Option(
        name: .long,
        help: ArgumentHelp(
            "Requests that all workers together start; may be repeated, then all hold. \"none\" for no limit.",
            valueName: "60/30s or '1/s burst 3'"))
    var rate: [String] = []
    @Flag(
        name: .long, inversion: .prefixedNo, help: "Keep the order of events with the same ordering key, one at a time."
    )
    var ordered: Bool?
    @Option(
        name: .long, help: "When an ordered delivery becomes a dead letter, its key waits (block) or goes on (skip).")
    var onDead: EndpointConfiguration.OnDead?

    /// Changes what was said, and nothing else.
    ///
    /// The files that are named are read once, here.
    func change() throws -> @Sendable (inout EndpointConfiguration) throws -> Void {
        let (template, headers, secret) = (try readTemplate(), try readHeaders(), try readSecret())
        let filter = try filter.map { String(decoding: try textArgument($0), as: UTF8.self) }
        let (ca, certificate, key) = (try pem(caFile), try pem(clientCertFile), try pem(clientKeyFile))
        return { [self] endpoint in
            if let preset { try endpoint.apply(try Preset.named(preset)) }
            if let customer { endpoint.customerID = customer }
            if let description { endpoint.description = description.isEmpty ? nil : description }
            if !eventType.isEmpty { endpoint.eventTypes = try eventType.map { try EventPattern($0) } }
            if !changeType.isEmpty { endpoint.changeTypes = try changeType.map { try EventPattern($0) } }
            if let filter { endpoint.filter = filter == "none" ? nil : filter }
            if let method { endpoint.method = method }
            if let urlParameters { endpoint.urlHasParameters = urlParameters }
            if let template {
                endpoint.template = template
                endpoint.format = .template
            }
            if let format { endpoint.format = format }
            if let headers { endpoint.headers = headers }
            try setAuthentication(&endpoint, secret: secret)
            if let ca { endpoint.tls.caCertificates = ca.isEmpty ? nil : ca }
            if let certificate {
                endpoint.tls.clientCertificate = certificate.isEmpty ? nil : certificate
                // The key that was there belongs to another one.
                endpoint.tls.clientKey = nil
            }
            if let key { endpoint.tls.clientKey = .text(key) }
            if let http2 { endpoint.allowsHTTP2 = http2 }
            if let maxBody { endpoint.maxBodyBytes = maxBody == 0 ? nil : maxBody }
            try setRules(&endpoint.rules)
            try setLimits(&endpoint)
        }
    }

    private func setLimits(_ endpoint: inout EndpointConfiguration) throws {
        if let timeout { endpoint.timeout = timeout.duration }
        if let connectTimeout { endpoint.connectTimeout = connectTimeout.duration }
        if let maxInFlight { endpoint.maxInFlight = maxInFlight }
        if let maxConcurrency { endpoint.maxConcurrency = maxConcurrency == 0 ? nil : maxConcurrency }
        if let ordered { endpoint.isOrdered = ordered }
        if let onDead { endpoint.onDead = onDead }
        if !rate.isEmpty { endpoint.rates = rate == ["none"] ? [] : try rate.map { try RateLimit($0) } }
        guard let retrySchedule else { return }
        let waits =
            retrySchedule == "none"
            ? [] : retrySchedule.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
        endpoint.retrySchedule = try waits.map { wait in
            guard let wait = DurationArgument(argument: wait) else {
                throw Problem(
                    .invalidValue, "\"\(wait)\" is not a valid retry delay",
                    hint: "Expected a list such as 5s,30s,2m,1h")
            }
            return wait.duration
        }
    }

    /// What should be known of the preset, beside its description.
    var presetWarning: String? { get throws { try preset.flatMap { try Preset.named($0).warning } } }

    private func readTemplate() throws -> Template? {
        guard let template else {
            if templateKind == nil { return nil }
            throw Problem(
                .invalidValue, "--template-kind says of what kind a template is, and none is given",
                hint: "Add --template @file")
        }
        let text = String(decoding: try textArgument(template), as: UTF8.self)
        do { return try Template(text, kind: templateKind ?? .json) } catch {
            throw Problem(
                .invalidValue, "the template cannot be used: \(error)", hint: "Try it with: outboxctl template lint")
        }
    }

    private func readHeaders() throws -> [EndpointConfiguration.Header]? {
        if header.isEmpty, secretHeader.isEmpty { return nil }
        return header.map { EndpointConfiguration.Header(name: $0.name, value: $0.value) }
            + (try secretHeader.map { header in
                guard header.value.hasPrefix("@") || header.value == "-" else {
                    throw Problem(
                        .invalidValue, "the secret header \(header.name.prefix(64)) has its value on the command line",
                        hint: "Every user of this machine could see it: give '\(header.name.prefix(64)): @file'")
                }
                let value = try line(header.value)
                if value.isEmpty {
                    throw Problem(
                        .invalidValue, "the file of the secret header \(header.name.prefix(64)) is empty",
                        hint: "Put the header's value into it")
                }
                return EndpointConfiguration.Header(name: header.name, value: value, isSecret: true)
            })
    }

    private func readSecret() throws -> String? { try authFile.map { try line($0 == "-" ? "-" : "@" + $0) } }

    private func setAuthentication(_ endpoint: inout EndpointConfiguration, secret: String?) throws {
        guard let auth else {
            if [authFile, authUser, authHeader, tokenUrl, clientId, scope, clientAuth?.rawValue].contains(where: {
                $0 != nil
            }) {
                throw Problem(
                    .invalidValue, "what the credentials are for is not said",
                    hint: "Add --auth verbatim, basic, bearer, header or oauth2")
            }
            return
        }
        var authentication = Authentication()
        authentication.kind = auth
        authentication.user = authUser
        authentication.header = authHeader
        authentication.tokenURL = tokenUrl
        authentication.clientID = clientId
        authentication.scope = scope
        authentication.clientProof = clientAuth
        // Given but empty is the same as not given: then no header is sent at all.
        if auth == .verbatim, secret?.isEmpty ?? true {
            authentication.kind = .none
        } else {
            authentication.secret = secret.map { .text($0) }
        }
        endpoint.authentication = authentication
    }

    private func setRules(_ rules: inout ResponseRules) throws {
        if let success { rules.success = try StatusSet(success) }
        if let permanent { rules.permanent = try StatusSet(permanent) }
        if let response { rules.form = response }
        if !rule.isEmpty { rules.checks = try rule.map { try Check($0) } }
        if !throttledText.isEmpty { rules.throttled = throttledText }
        if let ruleFailureFinal { rules.isFailureFinal = ruleFailureFinal }
    }

    private func pem(_ file: String?) throws -> String? {
        try file.map { file in
            if file == "none" { return "" }
            let text = String(decoding: try textArgument("@" + file), as: UTF8.self)
            // Taken for "none", it would change what is trusted without a word.
            guard text.contains(where: { !$0.isWhitespace }) else {
                throw Problem(
                    .invalidValue, "the file \(file) is empty", hint: "To go back to the default, say: none")
            }
            return text
        }
    }

    /// The one line of a file that holds a credential, without its end. What looks right in an
    /// editor and is not, as a byte order mark, is refused here and not by the receiver.
    private func line(_ argument: String) throws -> String {
        var bytes = try textArgument(argument)[...]
        func refusal(_ what: String, _ hint: String) -> Problem {
            let name = argument == "-" ? "standard input" : "the file \(argument.dropFirst())"
            return Problem(.invalidValue, "\(name) \(what)", hint: hint)
        }
        guard bytes.count <= HTTPHeader.maxValueLength else {
            throw refusal(
                "has \(bytes.count) bytes, and a credential has at most \(HTTPHeader.maxValueLength)",
                "Give the right file")
        }
        if bytes.last == 0x0A { bytes.removeLast() }
        if bytes.last == 0x0D { bytes.removeLast() }
        if bytes.starts(with: [0xEF, 0xBB, 0xBF]) {
            throw refusal("begins with a byte order mark, which would be sent", "Save it without one")
        }
        guard let text = String(validating: bytes, as: UTF8.self) else {
            throw refusal("is not UTF-8", "Convert it: iconv -f latin1 -t utf-8")
        }
        if bytes.contains(where: { $0 < 0x20 || $0 == 0x7F }) {
            throw refusal(
                "contains a control character",
                "It must be one line of text: the value, and nothing before or behind it")
        }
        return text
    }
}
