import Postgres

/// The body of a request in each of the formats, and its content type.
enum Payload {
    /// The bytes for the event; nothing of the producer's JSON is parsed or changed.
    static func body(of event: Event, format: Endpoint.Format) -> [UInt8] {
        switch format {
        case .raw: event.after ?? []
        case .standard: standard(event)
        case .citrix: citrix(event)
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
}

extension [UInt8] {
    /// Appends UTF-8 text as a JSON string (RFC 8259 7): quotes, backslashes and control characters are escaped, all
    /// else stays as it is.
    mutating func appendJSONString(_ text: some Collection<UInt8>) {
        append(UInt8(ascii: "\""))
        for byte in text {
            switch byte {
            case UInt8(ascii: "\""): self += Array(#"\""#.utf8)
            case UInt8(ascii: "\\"): self += Array(#"\\"#.utf8)
            case 0x0A: self += Array(#"\n"#.utf8)
            case 0x0D: self += Array(#"\r"#.utf8)
            case 0x09: self += Array(#"\t"#.utf8)
            case 0..<0x20:
                self += Array((#"\u00"# + hexadecimal([byte])).utf8)
            default: append(byte)
            }
        }
        append(UInt8(ascii: "\""))
    }
}
