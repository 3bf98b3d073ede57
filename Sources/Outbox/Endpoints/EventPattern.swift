package import Bytewise
import FoundationEssentials
import Postgres

/// Which event types, or change types, an endpoint takes: one, all that begin alike, or all.
///
/// It is written `order.created`, `order.*` and `*`. A leading `=` makes the rest literal:
/// `=order.*` is the type of that name. The database matches by the same rule (`outbox.matches`);
/// EventPatternTests compares the two.
package enum EventPattern: Sendable, Hashable {
    case any
    /// Types that begin with this text, which ends in a dot.
    case prefix(ExactText)
    case exact(ExactText)

    /// Reads the written form.
    package init(_ text: String) throws(Problem) {
        let name = text.hasPrefix("=") ? String(text.dropFirst()) : text
        guard (1...256).contains(name.unicodeScalars.count), !name.utf8.contains(0) else {
            throw Problem(
                .invalidValue, "an event type or change type must have 1 to 256 characters, and none of them U+0000")
        }
        if text.hasPrefix("=") {
            self = .exact(ExactText(name))
        } else if text == "*" {
            self = .any
        } else if text.hasSuffix(".*") {
            self = .prefix(ExactText(String(text.dropLast())))
        } else if text.hasSuffix("*") {
            throw Problem(
                .invalidValue, "\"\(text.prefix(64))\" is neither a type nor a prefix of types",
                hint:
                    "A prefix ends in a dot and a star, as in order.*; for the type of that name write =\(text.prefix(64))"
            )
        } else {
            self = .exact(ExactText(text))
        }
    }

    /// True when the pattern takes the value.
    package func matches(_ value: ExactText) -> Bool {
        switch self {
        case .any: true
        case .prefix(let start): value.utf8.starts(with: start.utf8)
        case .exact(let text): text == value
        }
    }

    /// The only patterns that may take this type: any, each prefix of it that ends in a dot, and
    /// itself.
    fileprivate static func candidates(
        for type: ExactText, isOperational: Bool, withPrefixes: Bool
    ) -> [EventPattern] {
        var candidates: [EventPattern] = isOperational ? [] : [.any]
        if !withPrefixes { return candidates + [.exact(type)] }
        let bytes = type.utf8
        for index in bytes.indices where bytes[index] == UInt8(ascii: ".") {
            candidates.append(.prefix(ExactText(String(type.text[...index]))))
        }
        return candidates + [.exact(type)]
    }

    /// True when this pattern takes everything that the other takes, so that a list needs only this
    /// one. `any` does not include events of the service about itself.
    private func covers(_ other: EventPattern) -> Bool {
        switch (self, other) {
        case (.prefix(let start), .exact(let text)), (.prefix(let start), .prefix(let text)):
            self != other && text.utf8.starts(with: start.utf8)
        case (.any, .exact(let text)), (.any, .prefix(let text)): !Event.isOperational(text)
        default: false
        }
    }

    /// Patterns of which at most one takes any type, and one does where one of these does.
    static func disjoint(_ patterns: [EventPattern]) -> [EventPattern] {
        let different = Set(patterns)
        return different.filter { pattern in !different.contains { $0.covers(pattern) } }
    }

    /// Its kind, and its text if it has one.
    fileprivate struct Stored: Codable {
        let kind: String
        var text: String?
    }

    fileprivate var stored: Stored {
        switch self {
        case .any: Stored(kind: "any")
        case .prefix(let text): Stored(kind: "prefix", text: text.text)
        case .exact(let text): Stored(kind: "exact", text: text.text)
        }
    }

    fileprivate init(_ stored: Stored) throws {
        switch (stored.kind, stored.text) {
        case ("any", _): self = .any
        case ("prefix", let text?): self = .prefix(ExactText(text))
        case ("exact", let text?): self = .exact(ExactText(text))
        default: throw UnknownValue(name: "pattern", value: stored.kind)
        }
    }
}

extension EventPattern: ExpressibleByStringLiteral, CustomStringConvertible {
    /// A constant of ours.
    package init(stringLiteral text: String) {
        do { try self.init(text) } catch { preconditionFailure("a pattern of ours is not valid: \(error)") }
    }

    /// The written form.
    package var description: String {
        switch self {
        case .any: "*"
        case .prefix(let text): text.text + "*"
        case .exact(let text):
            text.utf8.last == UInt8(ascii: "*") || text.utf8.first == UInt8(ascii: "=") ? "=\(text)" : text.text
        }
    }
}

extension EventPattern: Codable {
    package init(from decoder: any Decoder) throws {
        try self.init(try decoder.singleValueContainer().decode(String.self))
    }

    package func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(description)
    }
}

extension Event {
    /// The only patterns that may take its type.
    package func possiblePatterns(withPrefixes: Bool = true) -> [EventPattern] {
        EventPattern.candidates(for: type, isOperational: isOperational, withPrefixes: withPrefixes)
    }
}

extension [EventPattern] {
    /// True when one of them takes the value.
    package func match(_ value: ExactText) -> Bool { contains { $0.matches(value) } }

    /// A type that they take, for a sample: the first one named.
    package var sampleType: String {
        switch first {
        case .exact(let text): text.text
        case .prefix(let text): text.text + "test"
        case .any, nil: "outbox.test"
        }
    }

    /// The stored form: kind and text.
    var stored: JSONText {
        get throws {
            let patterns: [EventPattern.Stored] = map(\.stored)
            return JSONText([UInt8](try JSONEncoder().encode(patterns)))
        }
    }

    init(stored: JSONText) throws {
        let stored = try JSONDecoder().decode([EventPattern.Stored].self, from: Data(stored.bytes))
        self = try stored.map { pattern in try EventPattern(pattern) }
    }
}
