/// One request header whose name and value are safe to put on the wire.
///
/// libcurl sends header strings verbatim: a line break in one becomes another header, and a framing header of the
/// caller's choice becomes a request-smuggling tool. So a header can only be made through this check (RFC 9110 5.1, 5.5).
package struct HTTPHeader: Sendable, Hashable {
    package let name: String
    package let value: String

    /// Why a header was refused. The description names the header, never its value.
    package struct Refusal: Error, Sendable, CustomStringConvertible {
        package let description: String
    }

    /// The longest name and value in bytes; receivers and proxies commonly refuse more.
    package static let longestName = 256
    package static let longestValue = 4096

    /// Checks a header that an endpoint's owner asked for.
    package init(name: String, value: String) throws(Refusal) {
        guard !name.isEmpty, name.utf8.count <= Self.longestName, name.utf8.allSatisfy(isTokenByte) else {
            let shown = name.unicodeScalars.prefix(40).map { $0.escaped(asASCII: true) }.joined()
            throw Refusal(
                description: "header name \"\(shown)\" is not an HTTP token (letters, digits and !#$%&'*+-.^_`|~)")
        }
        let lower = name.lowercased()
        if Self.refusedNames.contains(lower) || Self.refusedPrefixes.contains(where: lower.hasPrefix) {
            throw Refusal(description: "header \(name) is set by the service itself and cannot be configured")
        }
        try self.init(own: name, value: value)
    }

    /// Checks a header of our own, whose name is a constant: only the value may be somebody else's.
    package init(own name: String, value: String) throws(Refusal) {
        guard value.utf8.count <= Self.longestValue else {
            throw Refusal(description: "header \(name) is longer than \(Self.longestValue) bytes")
        }
        guard value.utf8.allSatisfy({ $0 == 0x09 || ($0 >= 0x20 && $0 != 0x7F) }) else {
            throw Refusal(description: "header \(name) contains a control character")
        }
        if let first = value.utf8.first, let last = value.utf8.last,
            [first, last].contains(where: { $0 == 0x20 || $0 == 0x09 })
        {
            throw Refusal(description: "header \(name) begins or ends with white space")
        }
        self.name = name
        self.value = value
    }

    /// Connection management, framing and what we set: `Host` decides where a proxy sends the request, the others where
    /// it ends.
    private static let refusedNames: Set<String> = [
        "host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "trailers",
        "upgrade", "expect", "http2-settings", "content-encoding", "user-agent", "traceparent",
    ]
    private static let refusedPrefixes = ["proxy-", "webhook-", "outbox-"]

    /// libcurl drops a header that is given as `Name:` and sends an empty one for `Name;`.
    var line: String { value.isEmpty ? "\(name);" : "\(name): \(value)" }
}

private func isTokenByte(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
        UInt8(ascii: "0")...UInt8(ascii: "9"):
        true
    default: "!#$%&'*+-.^_`|~".utf8.contains(byte)
    }
}
