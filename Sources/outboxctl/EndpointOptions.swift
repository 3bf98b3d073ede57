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
extension AnswerRules.Form: ExpressibleByArgument {}
extension Authentication.Kind: ExpressibleByArgument {}
extension EndpointChange.OnDead: ExpressibleByArgument {}
extension OAuthClient.Proof: ExpressibleByArgument {}

/// The settings of an endpoint that create, update and test share.
struct EndpointOptions: ParsableArguments {
    @Option(name: .long, help: "Only this customer's events; * for all.") var customer: String?
    @Option(name: .long, help: "Free text.") var description: String?
    @Option(name: .long, help: "Exact event type; * for all.") var eventType: String?
    @Option(name: .long, help: "Exact change type, such as Create; * for all.") var changeType: String?
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
    @Option(name: .long, help: "What the answer's body has to be: any, json or jsonp.") var answer: AnswerRules.Form?
    @Option(
        name: .long,
        help: ArgumentHelp(
            "What must hold of the answer, as in \"string status ok\"; may be repeated.",
            valueName: "[deny] TYPE KEY VALUE"))
    var rule: [String] = []
    @Option(name: .long, help: "A text in the answer that means too many requests; may be repeated.")
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
    var onDead: EndpointChange.OnDead?

    func change() throws -> EndpointChange {
        var change = EndpointChange()
        change.customerID = customer
        change.description = description
        change.eventType = eventType
        change.changeType = changeType
        change.method = method
        change.urlHasParameters = urlParameters
        change.timeout = timeout?.duration
        change.connectTimeout = connectTimeout?.duration
        change.maxInFlight = maxInFlight
        change.allowsHTTP2 = http2
        change.mostBytes = maxBody
        change.maxConcurrency = maxConcurrency
        change.isOrdered = ordered
        change.onDead = onDead
        if !rate.isEmpty { change.rates = rate == ["none"] ? [] : try rate.map { try RateLimit($0) } }
        try setBody(&change)
        try setHeaders(&change)
        try setAuthentication(&change)
        try setRules(&change)
        change.authorities = try pem(caFile)
        change.clientCertificate = try pem(clientCertFile)
        change.clientKey = try pem(clientKeyFile)
        if let preset { try change.apply(try Preset.named(preset)) }
        if let retrySchedule {
            let waits =
                retrySchedule == "none"
                ? [] : retrySchedule.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
            change.retrySchedule = try waits.map { wait in
                guard let wait = DurationArgument(argument: wait) else {
                    throw OperationRefusal(
                        .invalid, "\"\(wait)\" is not a wait", hint: "Expected a list such as 5s,30s,2m,1h")
                }
                return wait.duration
            }
        }
        return change
    }

    /// What should be known of the preset, beside its description.
    var presetWarning: String? { get throws { try preset.flatMap { try Preset.named($0).warning } } }

    private func setBody(_ change: inout EndpointChange) throws {
        change.format = format
        guard let template else { return }
        change.format = format ?? .template
        let text = String(decoding: try textArgument(template), as: UTF8.self)
        do { change.template = try Template(text, kind: templateKind ?? .json) } catch {
            throw OperationRefusal(
                .invalid, "the template cannot be used: \(error)", hint: "Try it with: outboxctl template lint")
        }
    }

    private func setHeaders(_ change: inout EndpointChange) throws {
        if header.isEmpty, secretHeader.isEmpty { return }
        change.headers =
            header.map { Endpoint.HeaderSetting(name: $0.name, value: $0.value) }
            + (try secretHeader.map { header in
                guard header.value.hasPrefix("@") || header.value == "-" else {
                    throw OperationRefusal(
                        .invalid, "the secret header \(header.name.prefix(64)) has its value on the command line",
                        hint: "Every user of this machine could see it: give '\(header.name.prefix(64)): @file'")
                }
                let value = try line(header.value)
                if value.isEmpty {
                    throw OperationRefusal(
                        .invalid, "the file of the secret header \(header.name.prefix(64)) is empty",
                        hint: "Put the header's value into it")
                }
                return Endpoint.HeaderSetting(name: header.name, value: value, isSecret: true)
            })
    }

    private func setAuthentication(_ change: inout EndpointChange) throws {
        guard let auth else {
            if [authFile, authUser, authHeader, tokenUrl, clientId, scope, clientAuth?.rawValue].contains(where: {
                $0 != nil
            }) {
                throw OperationRefusal(
                    .invalid, "what the credentials are for is not said",
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
        change.authenticationSecret = try authFile.map { try line($0 == "-" ? "-" : "@" + $0) }
        // Given but empty is the same as not given: then no header is sent at all.
        if auth == .verbatim, change.authenticationSecret?.isEmpty ?? true {
            authentication.kind = .none
            change.authenticationSecret = nil
        }
        change.authentication = authentication
    }

    private func setRules(_ change: inout EndpointChange) throws {
        var rules = AnswerRules()
        rules.success = try success.map { try StatusSet($0) }
        rules.permanent = try permanent.map { try StatusSet($0) }
        rules.form = answer
        if !rule.isEmpty { rules.checks = try rule.map { try Check($0) } }
        if !throttledText.isEmpty { rules.throttled = throttledText }
        rules.isFailureFinal = ruleFailureFinal
        if rules != AnswerRules() { change.rules = rules }
    }

    private func pem(_ file: String?) throws -> String? {
        try file.map { file in
            if file == "none" { return "" }
            let text = String(decoding: try textArgument("@" + file), as: UTF8.self)
            // Taken for "none", it would change what is trusted without a word.
            guard text.contains(where: { !$0.isWhitespace }) else {
                throw OperationRefusal(
                    .invalid, "the file \(file) is empty", hint: "To go back to the default, say: none")
            }
            return text
        }
    }

    /// The one line of a file that holds a credential, without its end. What looks right in an editor and is not, as a byte order mark,
    /// is refused here and not by the receiver.
    private func line(_ argument: String) throws -> String {
        var bytes = try textArgument(argument)[...]
        func refusal(_ what: String, _ hint: String) -> OperationRefusal {
            let name = argument == "-" ? "standard input" : "the file \(argument.dropFirst())"
            return OperationRefusal(.invalid, "\(name) \(what)", hint: hint)
        }
        guard bytes.count <= HTTPHeader.longestValue else {
            throw refusal(
                "has \(bytes.count) bytes, and a credential has at most \(HTTPHeader.longestValue)",
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
