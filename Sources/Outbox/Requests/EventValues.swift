import Bytewise
import Postgres
import Templates

/// The values of a template's parameters for one delivery. JSON that has to be parsed is parsed
/// once.
final class EventValues: ParameterValues {
    private let input: DeliveryInput
    private var parsed: [String: JSONFinder?] = [:]
    /// Each path is looked up once, however often a template names it.
    private var found: [Path: ParameterValue?] = [:]
    private var foundHeaders: [ExactText: JSON]?

    private struct Path: Hashable {
        let start: ParameterName
        let steps: [ExactText]
    }

    private var event: Event { input.event }

    init(_ input: DeliveryInput) { self.input = input }

    func value(of parameter: Parameter) throws(Template.ValidationError) -> ParameterValue? {
        let path = Path(start: parameter.start, steps: parameter.path.map { ExactText($0) })
        if let known = found[path] { return known }
        let value = try look(up: parameter)
        found[path] = .some(value)
        return value
    }

    private func look(up parameter: Parameter) throws(Template.ValidationError) -> ParameterValue? {
        let rest = parameter.path.dropFirst()
        switch parameter.start {
        case .eventID: return number(event.id.rawValue)
        case .webhookID: return .text(input.webhookID)
        case .type: return .text(event.type.text)
        case .changeType: return .text(event.changeType.text)
        case .customerID: return .text(event.customerID.text)
        case .transactionID: return .text(event.transactionID.description)
        case .identity: return event.identity.map { .text($0) } ?? .nothing
        case .orderingKey: return event.orderingKey.map { .text($0) } ?? .nothing
        case .occurredAt: return .text(event.occurredAt.rfc3339(fractionDigits: 3))
        case .createdAt: return .text(event.createdAt.rfc3339(fractionDigits: 3))
        case .date: return .text(event.occurredAt.shortYear)
        case .timestamp: return number(input.now.seconds)
        case .endpoint: return .text(input.endpoint.name)
        case .endpointNumber: return number(input.endpoint.id.rawValue.number)
        case .attempt: return number(Int64(input.number))
        case .eventProperties: return .json(try properties())
        case .before: return try json("before", event.before)?.value(at: rest).map { .json($0) }
        case .after: return try json("after", event.after)?.value(at: rest).map { .json($0) }
        case .context: return try context()?.value(at: rest).map { .json($0) }
        case .headers: return try header(rest.joined(separator: ".")).map { .json($0) }
        case .username, .internalAddress, .userAgent, .remoteIP, .thumbprint, .thumbprintUpper, .thumbprint256,
            .thumbprint256Upper, .certificateName, .certificateAlternativeName, .deviceID, .groups, .groupNames:
            return try client(parameter.start.rawValue)
        }
    }

    /// A parameter that describes the client (Safous): lists are joined with commas, thumbprints
    /// are hexadecimal.
    private func client(_ name: String) throws(Template.ValidationError) -> ParameterValue? {
        let isUpper = name.hasSuffix("_upper")
        let source = isUpper ? String(name.dropLast("_upper".count)) : name
        let context = try context()
        guard let value = context?.value(at: [name]) ?? context?.value(at: [source]) else { return nil }
        if case .array(let elements) = value.kind { return .text(elements.map(\.text).joined(separator: ",")) }
        guard name.hasPrefix("cert_thumbprint") else { return .json(value) }
        let digits = String(
            decoding: value.text.utf8.filter {
                UInt8(ascii: "0")...UInt8(ascii: "9") ~= $0 || UInt8(ascii: "a")...UInt8(ascii: "f") ~= $0 | 0x20
            }, as: UTF8.self)
        return .text(isUpper ? digits.uppercased() : digits.lowercased())
    }

    /// A header of the client's request; names of headers have no case.
    private func header(_ name: String) throws(Template.ValidationError) -> JSON? {
        if foundHeaders == nil {
            let context = try context()
            var headers: [ExactText: JSON] = [:]
            for place in [context?.value(at: []), context?.value(at: ["headers"])] {
                guard case .object(let members)? = place?.kind else { continue }
                for member in members { headers[member.name.lowercasedASCII] = member.value }
            }
            foundHeaders = headers
        }
        return foundHeaders?[ExactText(name).lowercasedASCII]
    }

    /// An array of objects with one member each, as in xMatters; an object is split up.
    private func properties() throws(Template.ValidationError) -> JSON {
        let context = try context()
        let found =
            try json("after", event.after)?.value(at: ["eventProperties"]) ?? context?.value(at: ["event_properties"])
        var bytes: [UInt8] = [UInt8(ascii: "[")]
        switch found?.kind {
        case .array: if let found { return found }
        case .object(let members):
            for (index, member) in members.enumerated() {
                bytes += (index > 0 ? ",{" : "{").utf8
                bytes.appendJSONString(member.name.utf8)
                bytes += [UInt8(ascii: ":")] + member.value.source + [UInt8(ascii: "}")]
            }
        default: break
        }
        return try parse(bytes + [UInt8(ascii: "]")], "event_properties")
    }

    private func context() throws(Template.ValidationError) -> JSONFinder? { try json("context", event.context) }

    private func json(_ name: String, _ bytes: [UInt8]?) throws(Template.ValidationError) -> JSONFinder? {
        if let known = parsed[name] { return known }
        let value: JSONFinder? = if let bytes { JSONFinder(try parse(bytes, name)) } else { nil }
        parsed[name] = value
        return value
    }

    private func parse(_ bytes: [UInt8], _ name: String) throws(Template.ValidationError) -> JSON {
        do throws(JSON.ParseError) { return try JSON(bytes) } catch {
            throw Template.ValidationError(reason: "the event's \(name) cannot be read: \(error)")
        }
    }

    private func number(_ value: Int64) -> ParameterValue? {
        (try? JSON("\(value)".utf8)).map { .json($0) }
    }
}

extension Timestamp {
    /// `yy-MM-dd HH:mm:ss.SSS` in UTC, the form of xMatters.
    var shortYear: String {
        let text = rfc3339(fractionDigits: 3)
        return String(text.dropFirst(2).dropLast()).replacing("T", with: " ")
    }
}
