/// A request's target: the segments of its path, and its parameters, both decoded.
struct Target: Sendable {
    /// As it was written, without the query.
    let path: String
    let segments: [String]
    let parameters: [(name: String, value: String)]

    init(_ text: String) throws(Refusal) {
        let parts = text.split(separator: "?", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
        path = parts[0]
        var segments: [String] = []
        for segment in parts[0].dropFirst().split(separator: "/", omittingEmptySubsequences: false) {
            segments.append(try Self.decoded(String(segment), plusIsSpace: false, "the path"))
        }
        self.segments = segments
        var parameters: [(name: String, value: String)] = []
        for pair in (parts.count > 1 ? parts[1] : "").split(separator: "&") {
            let sides = pair.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
            let name = try Self.decoded(sides[0], plusIsSpace: true, "the query")
            let value = try Self.decoded(sides.count > 1 ? sides[1] : "", plusIsSpace: true, "the query")
            parameters.append((name, value))
        }
        self.parameters = parameters
    }

    /// RFC 3986 2.1; in queries `+` is a space, as forms and every client library write it.
    private static func decoded(_ text: String, plusIsSpace: Bool, _ what: String) throws(Refusal) -> String {
        var bytes: [UInt8] = []
        var rest = Array(text.utf8)[...]
        while let byte = rest.popFirst() {
            switch byte {
            case UInt8(ascii: "%"):
                guard rest.count >= 2, let code = UInt8(String(decoding: rest.prefix(2), as: UTF8.self), radix: 16),
                    rest.prefix(2).allSatisfy({ $0 != UInt8(ascii: "+") && $0 != UInt8(ascii: "-") })
                else { throw Refusal(.malformedRequest, "\(what) has a % that no two hexadecimal digits follow") }
                bytes.append(code)
                rest = rest.dropFirst(2)
            case UInt8(ascii: "+") where plusIsSpace: bytes.append(0x20)
            default: bytes.append(byte)
            }
        }
        guard let text = String(validating: bytes, as: UTF8.self), !bytes.contains(0) else {
            throw Refusal(.malformedRequest, "\(what) is not UTF-8, or contains NUL")
        }
        return text
    }
}
