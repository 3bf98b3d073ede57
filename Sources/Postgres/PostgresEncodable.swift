// swift-format-ignore-file: AllPublicDeclarationsHaveDocumentation
// The conformances below say nothing that the protocol's own documentation does not.

/// A value that can be sent as a parameter, in PostgreSQL's text format.
public protocol PostgresEncodable: Sendable {
    /// The type that the parameter is declared as (an OID of `pg_type`).
    static var postgresType: UInt32 { get }
    /// The type of an array of such values.
    static var postgresArrayType: UInt32 { get }
    /// The value's text form, nil for NULL.
    var postgresText: [UInt8]? { get }
    /// True when the text form must be quoted inside an array literal.
    static var needsArrayQuotes: Bool { get }
}

extension PostgresEncodable {
    var postgresType: UInt32 { Self.postgresType }
    public static var needsArrayQuotes: Bool { false }
}

extension Int: PostgresEncodable {
    public static var postgresType: UInt32 { 20 }
    public static var postgresArrayType: UInt32 { 1016 }
    public var postgresText: [UInt8]? { Array(String(self).utf8) }
}

extension Int64: PostgresEncodable {
    public static var postgresType: UInt32 { 20 }
    public static var postgresArrayType: UInt32 { 1016 }
    public var postgresText: [UInt8]? { Array(String(self).utf8) }
}

extension Int32: PostgresEncodable {
    public static var postgresType: UInt32 { 23 }
    public static var postgresArrayType: UInt32 { 1007 }
    public var postgresText: [UInt8]? { Array(String(self).utf8) }
}

extension Bool: PostgresEncodable {
    public static var postgresType: UInt32 { 16 }
    public static var postgresArrayType: UInt32 { 1000 }
    public var postgresText: [UInt8]? { [UInt8(ascii: self ? "t" : "f")] }
}

extension String: PostgresEncodable {
    public static var postgresType: UInt32 { 25 }
    public static var postgresArrayType: UInt32 { 1009 }
    public static var needsArrayQuotes: Bool { true }
    public var postgresText: [UInt8]? { Array(utf8) }
}

extension UniqueID: PostgresEncodable {
    public static var postgresType: UInt32 { 2950 }
    public static var postgresArrayType: UInt32 { 2951 }
    public var postgresText: [UInt8]? { Array(description.utf8) }
}

extension Timestamp: PostgresEncodable {
    public static var postgresType: UInt32 { 1184 }
    public static var postgresArrayType: UInt32 { 1185 }
    public static var needsArrayQuotes: Bool { true }
    public var postgresText: [UInt8]? { Array(description.utf8) }
}

extension Duration: PostgresEncodable {
    public static var postgresType: UInt32 { 1186 }
    public static var postgresArrayType: UInt32 { 1187 }
    public static var needsArrayQuotes: Bool { true }
    public var postgresText: [UInt8]? { Array("\(microseconds) us".utf8) }
}

/// Bytes that are sent as `bytea`.
public struct Bytes: PostgresEncodable, Hashable {
    public static var postgresType: UInt32 { 17 }
    public static var postgresArrayType: UInt32 { 1001 }
    public static var needsArrayQuotes: Bool { true }
    /// The bytes themselves.
    public let bytes: [UInt8]

    /// Wraps the bytes.
    public init(_ bytes: [UInt8]) { self.bytes = bytes }

    public var postgresText: [UInt8]? {
        var text = Array(#"\x"#.utf8)
        text.reserveCapacity(2 + bytes.count * 2)
        for byte in bytes {
            text.append(hexadecimalDigits[Int(byte >> 4)])
            text.append(hexadecimalDigits[Int(byte & 15)])
        }
        return text
    }
}

/// Text that is sent as `json`, kept byte for byte.
public struct JSONText: PostgresEncodable, Hashable {
    public static var postgresType: UInt32 { 114 }
    public static var postgresArrayType: UInt32 { 199 }
    public static var needsArrayQuotes: Bool { true }
    /// The UTF-8 bytes of the JSON text.
    public let bytes: [UInt8]

    /// Wraps the bytes; the server checks that they are JSON.
    public init(_ bytes: [UInt8]) { self.bytes = bytes }
    /// Wraps the text; the server checks that it is JSON.
    public init(_ text: String) { bytes = Array(text.utf8) }

    public var postgresText: [UInt8]? { bytes }
}

extension Optional: PostgresEncodable where Wrapped: PostgresEncodable {
    public static var postgresType: UInt32 { Wrapped.postgresType }
    public static var postgresArrayType: UInt32 { Wrapped.postgresArrayType }
    public static var needsArrayQuotes: Bool { Wrapped.needsArrayQuotes }
    public var postgresText: [UInt8]? { self?.postgresText }
}

extension Array: PostgresEncodable where Element: PostgresEncodable {
    public static var postgresType: UInt32 { Element.postgresArrayType }
    /// PostgreSQL has no type for arrays of arrays: nesting them is a mistake of ours.
    public static var postgresArrayType: UInt32 { preconditionFailure("arrays of arrays have no type of their own") }

    public var postgresText: [UInt8]? {
        var text = [UInt8(ascii: "{")]
        for element in self {
            if text.count > 1 { text.append(UInt8(ascii: ",")) }
            guard let value = element.postgresText else {
                text += Array<UInt8>("NULL".utf8)
                continue
            }
            if Element.needsArrayQuotes { text.appendQuoted(value) } else { text += value }
        }
        text.append(UInt8(ascii: "}"))
        return text
    }
}

extension Array where Element == UInt8 {
    fileprivate mutating func appendQuoted(_ value: [UInt8]) {
        append(UInt8(ascii: "\""))
        for byte in value {
            if byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "\\") { append(UInt8(ascii: "\\")) }
            append(byte)
        }
        append(UInt8(ascii: "\""))
    }
}
