import FoundationEssentials
import Postgres
import Templates

// Documents are read so that errors name the member, and written so that secrets are left out.

/// A value as JSON, with members sorted by name.
func encoded(_ value: some Encodable, _ disclosure: EndpointConfiguration.Disclosure) throws -> [UInt8] {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    encoder.userInfo[EndpointConfiguration.Disclosure.key] = disclosure
    return Array(try encoder.encode(value))
}

extension Encoder {
    var disclosure: EndpointConfiguration.Disclosure {
        userInfo[EndpointConfiguration.Disclosure.key] as? EndpointConfiguration.Disclosure ?? .masked
    }
}

private struct AnyKey: CodingKey {
    let stringValue: String
    var intValue: Int? { nil }
    init(stringValue: String) { self.stringValue = stringValue }
    init?(intValue: Int) { nil }
}

extension Decoder {
    /// The members of an object; any other member is refused.
    func members<Key: CodingKey & CaseIterable>(_: Key.Type) throws -> KeyedDecodingContainer<Key> {
        let known = Key.allCases.map(\.stringValue)
        for name in try container(keyedBy: AnyKey.self).allKeys.map(\.stringValue) where !known.contains(name) {
            // The intended name may begin with the given one: timeout, for timeout_seconds.
            let close =
                known.first { !name.isEmpty && $0.hasPrefix(name) }
                ?? known.filter { editDistance($0, name) <= 3 }.min { editDistance($0, name) < editDistance($1, name) }
            throw Problem(
                .unknownMember, "there is no member \"\(name.prefix(64))\"\(path.isEmpty ? "" : " in \(path)")",
                hint: close.map { "Did you mean \($0)?" }, at: .member(codingPath.steps + [name]), .unknown)
        }
        return try container(keyedBy: Key.self)
    }

    private var path: String { codingPath.map(\.stringValue).joined(separator: ".") }
}

extension [any CodingKey] {
    /// The names and places in a document.
    var steps: [String] { map { $0.intValue.map(String.init) ?? $0.stringValue } }
}

extension KeyedDecodingContainer {
    /// A member that is left out has its default; null is a value like any other.
    func value<Value: Decodable>(_ key: Key, or standard: Value) throws -> Value {
        contains(key) ? try decode(Value.self, forKey: key) : standard
    }

    /// Nil when it is left out. When an integer is requested, Foundation reports any other number
    /// only as invalid JSON as a whole.
    func wholeNumber(_ key: Key, mayBeNull: Bool = false) throws -> Int? {
        guard contains(key) else { return nil }
        if mayBeNull, try decodeNil(forKey: key) { return nil }
        let number = try decode(Double.self, forKey: key)
        guard let whole = Int(exactly: number) else {
            throw Problem(
                .invalidValue, "\(key.stringValue) must be a whole number",
                at: .member(codingPath.steps + [key.stringValue]), .type)
        }
        return whole
    }

    /// A word from a list; nil when it is left out.
    func word<Word: RawRepresentable<String> & CaseIterable>(_ key: Key, _: Word.Type) throws -> String? {
        guard contains(key) else { return nil }
        let text = try decode(String.self, forKey: key)
        if Word(rawValue: text) == nil {
            throw Problem(
                .invalidValue, "\(key.stringValue) cannot be \"\(text.prefix(64))\"",
                hint: "Expected one of \(Word.allCases.map(\.rawValue).joined(separator: ", "))",
                at: .member(codingPath.steps + [key.stringValue]))
        }
        return text
    }
}

extension DecodingError {
    private static func word(for type: any Any.Type) -> String {
        switch type {
        case is String.Type: "a text"
        case is Bool.Type: "true or false"
        case is Double.Type: "a number"
        default: "\(type)".hasPrefix("Array") ? "a list" : "an object"
        }
    }

    private var isSyntax: Bool {
        if case .dataCorrupted(let context) = self { context.codingPath.isEmpty } else { false }
    }

    /// The error as a refusal that names the member.
    var problem: Problem {
        let (path, fault): ([any CodingKey], Problem.Fault) =
            switch self {
            case .keyNotFound(let key, let context): (context.codingPath + [key], .required)
            case .typeMismatch(_, let context), .valueNotFound(_, let context): (context.codingPath, .type)
            case .dataCorrupted(let context): (context.codingPath, .format)
            @unknown default: ([], .format)
            }
        return Problem(
            isSyntax ? .malformedJSON : .invalidValue, inWords, at: path.isEmpty ? nil : .member(path.steps), fault)
    }

    /// Which member is wrong, and why.
    var inWords: String {
        func name(_ path: [any CodingKey]) -> String {
            path.map { $0.intValue.map { "\($0 + 1)" } ?? $0.stringValue }.joined(separator: ".")
        }
        return switch self {
        case .keyNotFound(let key, let context): "\(name(context.codingPath + [key])) is missing"
        case .typeMismatch(_, let context) where context.codingPath.isEmpty: "it is not a JSON object"
        case .typeMismatch(let type, let context): "\(name(context.codingPath)) must be \(Self.word(for: type))"
        case .valueNotFound(_, let context): "\(name(context.codingPath)) cannot be null"
        case .dataCorrupted(let context) where context.codingPath.isEmpty: "it is not JSON"
        case .dataCorrupted(let context): "\(name(context.codingPath)) is not valid"
        @unknown default: "it cannot be read"
        }
    }
}

extension Duration {
    init(seconds: Double) {
        // Beyond what any setting allows, and within the range that can be counted.
        self = .microseconds(Int64((max(-1e12, min(seconds, 1e12)) * 1e6).rounded()))
    }

    var inSeconds: Double { Double(microseconds) / 1e6 }
}

/// JSON for a merge patch.
enum JSONValue: Codable {
    case null
    case bool(Bool)
    case number(Double)
    case string(String)
    case array([JSONValue])
    case object([String: JSONValue])

    init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if container.decodeNil() {
            self = .null
        } else if let value = try? container.decode(Bool.self) {
            self = .bool(value)
        } else if let value = try? container.decode(Double.self) {
            self = .number(value)
        } else if let value = try? container.decode(String.self) {
            self = .string(value)
        } else if let value = try? container.decode([JSONValue].self) {
            self = .array(value)
        } else {
            self = .object(try container.decode([String: JSONValue].self))
        }
    }

    func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        switch self {
        case .null: try container.encodeNil()
        case .bool(let value): try container.encode(value)
        case .number(let value): try container.encode(value)
        case .string(let value): try container.encode(value)
        case .array(let value): try container.encode(value)
        case .object(let value): try container.encode(value)
        }
    }

    /// RFC 7396 2.
    func merged(with patch: JSONValue) -> JSONValue {
        guard case .object(let changes) = patch else { return patch }
        var members: [String: JSONValue] = if case .object(let members) = self { members } else { [:] }
        for (name, change) in changes {
            if case .null = change {
                members[name] = nil
            } else {
                members[name] = (members[name] ?? .null).merged(with: change)
            }
        }
        return .object(members)
    }
}
