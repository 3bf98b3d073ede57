/// A statement whose interpolated values are sent as parameters, never as text.
///
///     "SELECT name FROM outbox.endpoint WHERE id = \(id)"     // WHERE id = $1
///
/// Text that is part of the statement itself, such as a limit which the planner must see, goes in as `\(raw:)`;
/// only constants of ours may.
public struct SQL: ExpressibleByStringInterpolation, Sendable {
    let text: String
    let binds: [Bind]

    /// A statement without parameters.
    public init(stringLiteral value: String) {
        text = value
        binds = []
    }

    /// A statement with its interpolated values as parameters.
    public init(stringInterpolation: StringInterpolation) {
        text = stringInterpolation.text
        binds = stringInterpolation.binds
    }

    /// Collects the text and the parameters.
    public struct StringInterpolation: StringInterpolationProtocol {
        var text = ""
        var binds: [Bind] = []

        /// An empty statement with room for so much.
        public init(literalCapacity: Int, interpolationCount: Int) {
            text.reserveCapacity(literalCapacity + interpolationCount * 3)
            binds.reserveCapacity(interpolationCount)
        }

        /// Adds the statement's own text.
        public mutating func appendLiteral(_ literal: String) {
            text += literal
        }

        /// Adds a value as the next parameter.
        public mutating func appendInterpolation(_ value: some PostgresEncodable) {
            binds.append(Bind(value))
            text += "$\(binds.count)"
        }

        /// Adds a value, or NULL, as the next parameter.
        public mutating func appendInterpolation<Value: PostgresEncodable>(_ value: Value?) {
            binds.append(Bind(value))
            text += "$\(binds.count)"
        }

        /// Adds text of ours to the statement.
        public mutating func appendInterpolation(raw: String) {
            text += raw
        }

        /// Adds another statement's text and parameters, renumbered.
        public mutating func appendInterpolation(_ part: SQL) {
            var number = binds.count
            var rest = part.text[...]
            for index in part.binds.indices {
                let mark = "$\(index + 1)"
                guard let range = rest.firstRange(of: mark) else { continue }
                number += 1
                text += rest[..<range.lowerBound] + "$\(number)"
                rest = rest[range.upperBound...]
            }
            text += rest
            binds += part.binds
        }
    }
}

/// One parameter: its type and its bytes, nil for NULL.
struct Bind: Sendable {
    let type: UInt32
    let bytes: [UInt8]?

    init(_ value: some PostgresEncodable) {
        type = value.postgresType
        bytes = value.postgresText
    }
}
