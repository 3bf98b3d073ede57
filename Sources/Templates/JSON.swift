package import Bytewise

/// A JSON text (RFC 8259), read strictly and without losing how it was written: numbers keep their
/// digits, and every value knows its own bytes, so that it can be passed on unchanged.
package struct JSON: Sendable {
    package enum Kind: Sendable {
        case null, number
        case boolean(Bool)
        case string(String)
        case array([JSON])
        /// In order; of members with the same name the last one counts.
        case object([(name: ExactText, value: JSON)])
    }

    package let kind: Kind
    /// The value's bytes as they were written, without surrounding white space.
    package let source: ArraySlice<UInt8>

    /// Why a text is not JSON, and where.
    package struct ParseError: Error, Sendable, CustomStringConvertible {
        /// Counted from 1; columns in bytes.
        package let line: Int
        package let column: Int
        package let reason: String
        package var description: String { "line \(line), column \(column): \(reason)" }
    }

    /// The deepest nesting that is read.
    package static let maxDepth = 512

    /// Reads the whole text as one value.
    package init(_ bytes: some Collection<UInt8>) throws(ParseError) {
        var reader = JSONReader(Array(bytes))
        self = try reader.document()
    }

    init(kind: Kind, source: ArraySlice<UInt8>) {
        self.kind = kind
        self.source = source
    }

    /// The value at a path of member names and array places; nil when there is none.
    package func value(at path: some Collection<String>) -> JSON? {
        guard let step = path.first else { return self }
        let child: JSON? =
            switch kind {
            case .object(let members): members.last { $0.name == ExactText(step) }?.value
            case .array(let elements): place(step).flatMap { elements.indices.contains($0) ? elements[$0] : nil }
            default: nil
            }
        return child?.value(at: path.dropFirst())
    }

    /// A place in an array (RFC 6901 4): digits without a sign or a zero in front.
    private func place(_ step: String) -> Int? {
        guard step.utf8.allSatisfy(isDigit), step.utf8.count == 1 || step.utf8.first != UInt8(ascii: "0") else {
            return nil
        }
        return Int(step)
    }

    /// The steps of a path: `a.b[0].c`, or a JSON pointer (RFC 6901) such as `/a/b/0/c`.
    package static func path(_ text: String) -> [String] {
        // Scalar by scalar: a delimiter followed by a combining mark is another character, but
        // still a delimiter.
        let scalars = text.unicodeScalars
        guard scalars.first == "/" else {
            return scalars.split { $0 == "." || $0 == "[" || $0 == "]" }.map { String($0) }
        }
        return scalars.dropFirst().split(separator: "/", omittingEmptySubsequences: false).map { step in
            var (unescaped, isEscape) = (String.UnicodeScalarView(), false)
            for scalar in step {
                if isEscape, scalar == "0" || scalar == "1" {
                    unescaped.append(scalar == "0" ? "~" : "/")
                } else {
                    if isEscape { unescaped.append("~") }
                    if scalar != "~" { unescaped.append(scalar) }
                }
                isEscape = scalar == "~"
            }
            if isEscape { unescaped.append("~") }
            return String(unescaped)
        }
    }

    /// The value as plain text: a string's characters, nothing for null, everything else as it was
    /// written.
    package var text: String {
        switch kind {
        case .string(let text): text
        case .null: ""
        default: String(decoding: source, as: UTF8.self)
        }
    }

    package var isNull: Bool { if case .null = kind { true } else { false } }
}

extension [UInt8] {
    /// Appends UTF-8 text as the inside of a JSON string (RFC 8259 7): quotes, backslashes and
    /// control characters are escaped, all else stays as it is.
    package mutating func appendJSONEscaped(_ text: some Collection<UInt8>) {
        for byte in text {
            switch byte {
            case UInt8(ascii: "\""): self += [UInt8(ascii: "\\"), byte]
            case UInt8(ascii: "\\"): self += [UInt8(ascii: "\\"), byte]
            case 0x0A: self += [UInt8(ascii: "\\"), UInt8(ascii: "n")]
            case 0x0D: self += [UInt8(ascii: "\\"), UInt8(ascii: "r")]
            case 0x09: self += [UInt8(ascii: "\\"), UInt8(ascii: "t")]
            case 0..<0x20:
                let digits = Array<UInt8>("0123456789abcdef".utf8)
                self += Array(#"\u00"#.utf8) + [digits[Int(byte >> 4)], digits[Int(byte & 15)]]
            default: append(byte)
            }
        }
    }

    /// Appends UTF-8 text as a JSON string, quotes included.
    package mutating func appendJSONString(_ text: some Collection<UInt8>) {
        append(UInt8(ascii: "\""))
        appendJSONEscaped(text)
        append(UInt8(ascii: "\""))
    }
}
