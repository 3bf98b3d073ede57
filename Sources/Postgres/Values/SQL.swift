/// A statement whose interpolated values are sent as parameters, never as text.
///
///     "SELECT name FROM outbox.endpoint WHERE id = \(id)"     // WHERE id = $1
///
/// Text that is part of the statement itself, such as a limit which the planner must see, goes in
/// as `\(raw:)`; only our own constants may.
public struct SQL: ExpressibleByStringInterpolation, Sendable {
    /// The text around the parameters: one piece more than there are binds.
    private let pieces: [String]
    let binds: [Bind]

    /// A statement without parameters.
    public init(stringLiteral value: String) {
        pieces = [value]
        binds = []
    }

    /// A statement with its interpolated values as parameters.
    public init(stringInterpolation: StringInterpolation) {
        pieces = stringInterpolation.pieces
        binds = stringInterpolation.binds
    }

    /// The text as the server gets it, with numbered parameters.
    var text: String {
        var text = pieces[0]
        for number in pieces.indices.dropFirst() { text += "$\(number)" + pieces[number] }
        return text
    }

    /// Collects the text and the parameters.
    public struct StringInterpolation: StringInterpolationProtocol {
        fileprivate var pieces = [""]
        fileprivate var binds: [Bind] = []

        /// An empty statement with reserved capacity.
        public init(literalCapacity: Int, interpolationCount: Int) {
            pieces.reserveCapacity(interpolationCount + 1)
            binds.reserveCapacity(interpolationCount)
        }

        /// Adds the statement's own text.
        public mutating func appendLiteral(_ literal: String) {
            pieces[pieces.count - 1] += literal
        }

        /// Adds a value as the next parameter.
        public mutating func appendInterpolation(_ value: some PostgresEncodable) {
            binds.append(Bind(value))
            pieces.append("")
        }

        /// Adds a value, or NULL, as the next parameter.
        public mutating func appendInterpolation<Value: PostgresEncodable>(_ value: Value?) {
            binds.append(Bind(value))
            pieces.append("")
        }

        /// Adds our own text to the statement.
        public mutating func appendInterpolation(raw: String) {
            appendLiteral(raw)
        }

        /// Adds another statement's text and parameters.
        public mutating func appendInterpolation(_ part: SQL) {
            appendLiteral(part.pieces[0])
            pieces += part.pieces.dropFirst()
            binds += part.binds
        }
    }
}

/// One parameter: its type and its bytes in the binary format, nil for NULL.
struct Bind: Sendable {
    let type: UInt32
    let bytes: [UInt8]?

    init<Value: PostgresEncodable>(_ value: Value) {
        type = Value.postgresType
        if value.isNull {
            bytes = nil
        } else {
            var encoded: [UInt8] = []
            value.encode(into: &encoded)
            bytes = encoded
        }
    }

    /// True for a text that the server would refuse with a message that names no value.
    var isTextWithNUL: Bool {
        (type == PostgresType.text || type == PostgresType.json) && bytes?.contains(0) == true
    }
}
