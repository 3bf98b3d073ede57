/// One request header whose name and value are safe to put on the wire.
///
/// libcurl sends header strings verbatim: a line break in one becomes another header, and a framing
/// header of the caller's choice becomes a request-smuggling tool. So a header can only be made
/// through this check (RFC 9110 5.1, 5.5).
package struct HTTPHeader: Sendable, Hashable {
    package let name: String
    package let value: String

    /// Why a header was refused. The description names the header, never its value.
    package struct ValidationError: Error, Sendable, CustomStringConvertible {
        package let description: String
    }

    /// The longest name and value in bytes; receivers and proxies commonly refuse more.
    package static let maxNameLength = 256
    package static let maxValueLength = 4096
    /// Tokens may be longer: the servers that issue them accept them.
    package static let maxTokenLength = 16 * 1024

    /// Checks a header that an endpoint's owner asked for.
    package init(name: String, value: String) throws(ValidationError) {
        guard !name.isEmpty, name.utf8.count <= Self.maxNameLength, name.utf8.allSatisfy(isTokenByte) else {
            let shown = name.unicodeScalars.prefix(40).map { $0.escaped(asASCII: true) }.joined()
            throw ValidationError(
                description: "header name \"\(shown)\" is not an HTTP token (letters, digits and !#$%&'*+-.^_`|~)")
        }
        let lower = name.lowercased()
        if Self.refusedNames.contains(lower) || Self.refusedPrefixes.contains(where: lower.hasPrefix) {
            throw ValidationError(description: "header \(name) is set by the service itself and cannot be configured")
        }
        try self.init(own: name, value: value)
    }

    /// Checks one of our own headers, whose name is a constant: only the value may come from
    /// outside.
    package init(own name: String, value: String) throws(ValidationError) {
        try Self.check(Array(value.utf8)[...], of: name)
        self.name = name
        self.value = value
    }

    /// The header of an access token.
    package init(bearer token: String) throws(ValidationError) {
        try Self.check(Array(token.utf8)[...], of: "Authorization", most: Self.maxTokenLength)
        self.init(checked: "Authorization", value: "Bearer \(token)")
    }

    /// A header that was checked before it was put into a block.
    fileprivate init(checked name: String, value: String) {
        self.name = name
        self.value = value
    }

    /// Connection management, framing and the headers that we set: `Host` decides where a proxy
    /// sends the request, the others where it ends.
    private static let refusedNames: Set<String> = [
        "host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "trailers",
        "upgrade", "expect", "http2-settings", "content-encoding", "user-agent", "traceparent",
    ]
    private static let refusedPrefixes = ["proxy-", "webhook-", "outbox-"]

    fileprivate static func check(
        _ value: ArraySlice<UInt8>, of name: @autoclosure () -> String, most: Int = maxValueLength
    ) throws(ValidationError) {
        guard value.count <= most else {
            throw ValidationError(description: "header \(name()) is longer than \(most) bytes")
        }
        for byte in value where byte < 0x20 && byte != 0x09 || byte == 0x7F {
            throw ValidationError(description: "header \(name()) contains a control character")
        }
        if let first = value.first, let last = value.last,
            first == 0x20 || first == 0x09 || last == 0x20 || last == 0x09
        {
            throw ValidationError(description: "header \(name()) begins or ends with white space")
        }
    }
}

/// The headers of a request in one block of bytes, as libcurl takes them: lines that each end in a
/// NUL.
package struct HTTPHeaders: Sendable, ExpressibleByArrayLiteral {
    private(set) var lines: [UInt8] = []
    package private(set) var count = 0

    package init(_ headers: some Sequence<HTTPHeader> = []) {
        for header in headers { append(header) }
    }

    package init(arrayLiteral headers: HTTPHeader...) {
        self.init(headers)
    }

    package mutating func reserveCapacity(_ bytes: Int) { lines.reserveCapacity(bytes) }

    package mutating func append(_ header: HTTPHeader) {
        lines += header.name.utf8
        end(valueFrom: header.value.utf8)
    }

    /// Adds the lines of another block.
    package mutating func append(_ others: HTTPHeaders) {
        lines += others.lines
        count += others.count
    }

    /// Adds one of our own headers, whose value the closure appends; it is checked like any other.
    package mutating func append(
        own name: StaticString, _ value: (inout [UInt8]) -> Void
    ) throws(HTTPHeader.ValidationError) {
        let start = lines.count
        name.withUTF8Buffer { unsafe lines += $0 }
        lines += [UInt8(ascii: ":"), UInt8(ascii: " ")]
        let first = lines.count
        value(&lines)
        do throws(HTTPHeader.ValidationError) { try HTTPHeader.check(lines[first...], of: "\(name)") } catch {
            lines.removeSubrange(start...)
            throw error
        }
        if lines.count == first {
            lines.removeSubrange((first - 2)...)
            lines.append(UInt8(ascii: ";"))
        }
        lines.append(0)
        count += 1
    }

    /// libcurl drops a header that is given as `Name:` and sends an empty one for `Name;`.
    private mutating func end(valueFrom value: String.UTF8View) {
        if value.isEmpty {
            lines.append(UInt8(ascii: ";"))
        } else {
            lines += [UInt8(ascii: ":"), UInt8(ascii: " ")]
            lines += value
        }
        lines.append(0)
        count += 1
    }

    /// The headers one by one.
    package var all: [HTTPHeader] {
        lines.split(separator: 0).map { line in
            let end = line.firstIndex { $0 == UInt8(ascii: ":") || $0 == UInt8(ascii: ";") } ?? line.endIndex
            return HTTPHeader(
                checked: String(decoding: line[..<end], as: UTF8.self),
                value: String(decoding: line[end...].dropFirst(2), as: UTF8.self))
        }
    }
}

private func isTokenByte(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
        UInt8(ascii: "0")...UInt8(ascii: "9"):
        true
    default: "!#$%&'*+-.^_`|~".utf8.contains(byte)
    }
}
