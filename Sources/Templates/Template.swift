import Bytewise

/// A text with parameters, to be filled from an event: the body of a request, a header's value or a
/// part of a URL.
///
/// A parameter is a path between percent signs, with a default after a bar:
/// `%after.user.name|somebody%`. `%%` is a percent sign; so is a percent sign that no parameter
/// follows. There is nothing else: no logic, no loops, no input or output. Every value is escaped
/// for its place, so that a value can never become structure.
package struct Template: Sendable {
    /// The kind of text, which decides how values are escaped and whether the result is parsed
    /// again.
    package enum Kind: Sendable, Equatable {
        case json, xml, text
        /// A header's value.
        case header
        /// A URL, whose scheme, host and port are fixed.
        case url
    }

    /// Why a template cannot be used, or cannot be filled; with the place, if it is known.
    package struct ValidationError: Error, Sendable, CustomStringConvertible {
        package let line: Int?
        package let column: Int?
        package let reason: String

        package init(line: Int? = nil, column: Int? = nil, reason: String) {
            self.line = line
            self.column = column
            self.reason = reason
        }

        package var description: String {
            if let line, let column { "line \(line), column \(column): \(reason)" } else { reason }
        }
    }

    /// The result of filling a template.
    package struct Rendering: Sendable {
        package var bytes: [UInt8] = []
        /// Parameters that had no value and no default.
        package var missing: [String] = []
        /// Parameters of headers whose line breaks were removed.
        package var cleaned: [String] = []
    }

    /// The largest template, and the largest body that is rendered, in bytes.
    package static let maxLength = 256 * 1024
    package static let maxRenderedLength = 1024 * 1024

    package let kind: Kind
    package let source: String
    let parts: [Part]
    private let parameterCount: Int

    /// Reads and checks a template.
    package init(_ source: String, kind: Kind) throws(ValidationError) {
        guard source.utf8.count <= Self.maxLength else {
            throw ValidationError(reason: "is longer than \(Self.maxLength) bytes")
        }
        self.kind = kind
        self.source = source
        var reader = TemplateReader(Array(source.utf8), kind: kind)
        parts = try reader.parts()
        parameterCount = parts.count { if case .parameter = $0 { true } else { false } }
        // Filled with placeholders as long as the parameters themselves, so that an error's place
        // is the place in the template.
        let sample = parts.reduce(into: [UInt8]()) { $0 += $1.standIn }
        try Self.check(sample, kind, "")
    }

    /// The parameters, in order.
    package var parameters: [Parameter] {
        parts.compactMap { if case .parameter(let parameter, _, _) = $0 { parameter } else { nil } }
    }

    /// About how many bytes are read and written to fill it with values of so many bytes.
    package func cost(of size: Int) -> Int {
        min(source.utf8.count + parameterCount * size, Self.maxRenderedLength + size)
    }

    /// True when every rendering is the same.
    package var isConstant: Bool { parameters.isEmpty }

    /// The text of a template without parameters.
    package var constant: [UInt8] {
        parts.reduce(into: []) { if case .literal(let bytes) = $1 { $0 += bytes } }
    }

    /// Fills the template and parses the result again.
    package func render(_ values: some ParameterValues) throws(ValidationError) -> Rendering {
        var rendering = Rendering()
        rendering.bytes.reserveCapacity(source.utf8.count * 2)
        for part in parts {
            switch part {
            case .literal(let bytes): rendering.bytes += bytes
            case .parameter(let parameter, let place, _):
                var value = try values.value(of: parameter)
                if value?.isNothing ?? true {
                    if let text = parameter.fallback {
                        value = (place == .jsonValue ? try? .json(JSON(text.utf8)) : nil) ?? .text(text)
                    } else {
                        if value == nil { rendering.missing.append(parameter.name) }
                        value = value ?? .nothing
                    }
                }
                try place.append(value ?? .nothing, of: parameter, to: &rendering)
            }
            guard rendering.bytes.count <= Self.maxRenderedLength else {
                throw ValidationError(
                    reason: "the result is longer than \(Self.maxRenderedLength) bytes")
            }
        }
        try Self.check(rendering.bytes, kind, "the result is not valid: ")
        return rendering
    }

    /// Parses a result that must be JSON or XML again: regardless of the escaping, nothing
    /// malformed is sent.
    private static func check(_ bytes: [UInt8], _ kind: Kind, _ prefix: String) throws(ValidationError) {
        switch kind {
        case .json:
            do throws(JSON.ParseError) { _ = try JSON(bytes) } catch {
                throw ValidationError(line: error.line, column: error.column, reason: prefix + error.reason)
            }
        case .xml: try XMLCheck.check(bytes, prefix)
        case .text, .header, .url: break
        }
    }

    enum Part: Sendable {
        case literal([UInt8])
        /// The parameter and the number of the template's bytes that it takes.
        case parameter(Parameter, Place, length: Int)

        fileprivate var standIn: [UInt8] {
            switch self {
            case .literal(let bytes): bytes
            // A string: with digits or signs beside it, it still does not become part of a number.
            case .parameter(_, .jsonValue, let length): Array(#""""#.utf8) + Array(repeating: 0x20, count: length - 2)
            case .parameter(_, _, let length): Array(repeating: UInt8(ascii: "x"), count: length)
            }
        }
    }
}

/// A text between percent signs.
package struct Parameter: Sendable, Hashable {
    /// Its first component.
    package let start: ParameterName
    /// As written, without the default.
    package let name: String
    /// Its steps: `after.user.name` has three.
    package let path: [String]
    /// The value that is used when there is none.
    package let fallback: String?
}

/// Where a template's parameters get their values.
package protocol ParameterValues {
    /// The value; nil when there is none. Throws when it cannot be read, such as JSON nested too
    /// deeply.
    func value(of parameter: Parameter) throws(Template.ValidationError) -> ParameterValue?
}

/// A parameter's value.
package enum ParameterValue: Sendable {
    case text(String)
    case json(JSON)
    case nothing

    var isNothing: Bool {
        switch self {
        case .nothing: true
        case .json(let json): json.isNull
        case .text: false
        }
    }

    var text: String {
        switch self {
        case .text(let text): text
        case .json(let json): json.text
        case .nothing: ""
        }
    }
}

/// Where in a text a parameter stands.
enum Place: Sendable {
    case jsonString, jsonValue, xmlText, xmlAttribute, text, header, urlComponent

    /// Appends the value, escaped for this place.
    func append(
        _ value: ParameterValue, of parameter: Parameter, to rendering: inout Template.Rendering
    ) throws(Template.ValidationError) {
        switch self {
        case .jsonString: rendering.bytes.appendJSONEscaped(value.text.utf8)
        case .jsonValue:
            switch value {
            case .json(let json): rendering.bytes += json.source
            case .text(let text): rendering.bytes.appendJSONString(text.utf8)
            case .nothing: rendering.bytes += "null".utf8
            }
        case .xmlText, .xmlAttribute: try appendXML(value.text, of: parameter, to: &rendering.bytes)
        case .text: rendering.bytes += value.text.utf8
        case .header:
            let bytes = value.text.utf8.filter { $0 != 0x0D && $0 != 0x0A }
            if bytes.count < value.text.utf8.count { rendering.cleaned.append(parameter.name) }
            rendering.bytes += bytes
        case .urlComponent: rendering.bytes.appendPercentEncoded(value.text.utf8)
        }
    }

    /// XML 1.0 2.2 and 2.4.
    private func appendXML(_ text: String, of parameter: Parameter, to bytes: inout [UInt8]) throws(Template
        .ValidationError)
    {
        for scalar in text.unicodeScalars {
            switch scalar {
            case "&": bytes += "&amp;".utf8
            case "<": bytes += "&lt;".utf8
            case ">": bytes += "&gt;".utf8
            case "\"" where self == .xmlAttribute: bytes += "&quot;".utf8
            case "'" where self == .xmlAttribute: bytes += "&#39;".utf8
            case "\r": bytes += "&#13;".utf8
            case "\n" where self == .xmlAttribute: bytes += "&#10;".utf8
            case "\t" where self == .xmlAttribute: bytes += "&#9;".utf8
            case "\t", "\n": bytes += String(scalar).utf8
            case "\u{0}"..<" ", "\u{FFFE}", "\u{FFFF}":
                throw Template.ValidationError(
                    line: nil, column: nil,
                    reason:
                        "%\(parameter.name)% holds the character U+\(String(scalar.value, radix: 16)), which XML cannot"
                )
            default: bytes += String(scalar).utf8
            }
        }
    }
}

extension Template: Equatable {
    /// True when both are the same text, byte for byte, read in the same way.
    package static func == (left: Template, right: Template) -> Bool {
        left.kind == right.kind && left.source.utf8.elementsEqual(right.source.utf8)
    }
}
