import Bytewise
import Postgres
import Templates

/// The body of a request in each of the formats.
enum Payload {
    /// The bytes for the event; nothing of the producer's JSON is parsed or changed.
    static func body(of event: Event, format: Endpoint.Format, webhookID: String) -> [UInt8] {
        switch format {
        case .raw, .cloudeventsBinary: event.after ?? []
        case .standard: standard(event)
        case .citrix: citrix(event)
        case .cloudevents: cloudEvent(event, webhookID)
        // Rendered per endpoint, see `RequestBuilder`.
        case .template: []
        }
    }

    private static func standard(_ event: Event) -> [UInt8] {
        var body = Array(#"{"type":"#.utf8)
        body.reserveCapacity(96 + event.type.utf8.count + (event.after?.count ?? 4))
        body.appendJSONString(event.type.utf8)
        body += Array(#","timestamp":""#.utf8) + Array(event.occurredAt.description.utf8)
        body += Array(#"","data":"#.utf8)
        body += event.after ?? Array("null".utf8)
        body.append(UInt8(ascii: "}"))
        return body
    }

    /// The eight members in the order of the Citrix Cloud documentation, compact.
    private static func citrix(_ event: Event) -> [UInt8] {
        var body: [UInt8] = []
        body.reserveCapacity(320 + ((event.before?.count ?? 0) + (event.after?.count ?? 0)) * 5 / 4)
        func member(_ name: StaticString, _ value: some Collection<UInt8>) {
            body += name.withUTF8Buffer { Array($0) }
            body.appendJSONString(value)
        }
        func member(_ name: StaticString, optional value: (some Collection<UInt8>)?) {
            if let value { member(name, value) } else { body += name.withUTF8Buffer { Array($0) } + Array("null".utf8) }
        }
        member(#"{"CustomerId":"#, event.customerID.utf8)
        member(#","Type":"#, event.type.utf8)
        member(#","ChangeType":"#, event.changeType.utf8)
        member(#","TransactionId":"#, event.transactionID.description.utf8)
        member(#","Identity":"#, optional: event.identity?.utf8)
        member(#","BeforeChange":"#, optional: event.before)
        member(#","AfterChange":"#, optional: event.after)
        member(#","TimeStamp":"#, event.occurredAt.rfc3339(fractionDigits: 3).utf8)
        body.append(UInt8(ascii: "}"))
        return body
    }

    /// CloudEvents 1.0, JSON format in structured mode.
    private static func cloudEvent(_ event: Event, _ webhookID: String) -> [UInt8] {
        var body: [UInt8] = []
        body.reserveCapacity(384 + (event.after?.count ?? 4))
        for (name, value) in cloudEventAttributes(of: event, webhookID: webhookID) {
            body.append(UInt8(ascii: body.isEmpty ? "{" : ","))
            body.appendJSONString(name.utf8)
            body.append(UInt8(ascii: ":"))
            body.appendJSONString(value.utf8)
        }
        body += Array(#","datacontenttype":"application/json","data":"#.utf8)
        body += event.after ?? Array("null".utf8)
        body.append(UInt8(ascii: "}"))
        return body
    }

    /// The attributes of the event as CloudEvents 1.0 names them, with our own as extensions.
    /// `source` is the installation, so that `source` and `id` together are unique; names have only
    /// lower-case letters and digits (3.1).
    static func cloudEventAttributes(of event: Event, webhookID: String) -> [(name: String, value: String)] {
        let instance = webhookID.split(separator: "_").dropFirst().first ?? ""
        var attributes = [
            ("specversion", "1.0"), ("id", webhookID), ("source", "urn:outbox:\(instance)"), ("type", event.type.text),
            ("time", event.occurredAt.description), ("customerid", event.customerID.text),
            ("changetype", event.changeType.text),
            ("transactionid", event.transactionID.description),
        ]
        if let identity = event.identity { attributes.append(("identity", identity)) }
        if let traceparent = event.traceparent { attributes.append(("traceparent", traceparent)) }
        return attributes
    }

    /// An attribute as a header's value: all characters but printable ASCII, and the space, the
    /// quote and the percent sign, are percent-encoded (CloudEvents HTTP binding 3.1.3.2).
    static func headerValue(_ text: String) -> String {
        text.utf8.reduce(into: "") { value, byte in
            if byte > 0x20, byte < 0x7F, byte != UInt8(ascii: "\""), byte != UInt8(ascii: "%") {
                value.unicodeScalars.append(Unicode.Scalar(byte))
            } else {
                value += "%" + hexadecimal([byte]).uppercased()
            }
        }
    }
}
