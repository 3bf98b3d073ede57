// swift-format-ignore-file: AllPublicDeclarationsHaveDocumentation
// The conformances below say nothing that the protocol's own documentation does not.

/// A value that can be sent as a parameter, in PostgreSQL's binary format (big-endian, as each
/// type's `recv` function reads it).
public protocol PostgresEncodable: Sendable {
    /// The type that the parameter is declared as (an OID of `pg_type`).
    static var postgresType: UInt32 { get }
    /// The type of an array of such values.
    static var postgresArrayType: UInt32 { get }
    /// True for NULL, which has no bytes.
    var isNull: Bool { get }
    /// Appends the value's bytes.
    func encode(into bytes: inout [UInt8])
}

extension PostgresEncodable {
    public var isNull: Bool { false }
}

extension [UInt8] {
    mutating func append(bigEndian value: some FixedWidthInteger) {
        unsafe Swift.withUnsafeBytes(of: value.bigEndian) { unsafe append(contentsOf: $0) }
    }
}

extension Int: PostgresEncodable {
    public static var postgresType: UInt32 { PostgresType.int8 }
    public static var postgresArrayType: UInt32 { 1016 }
    public func encode(into bytes: inout [UInt8]) { bytes.append(bigEndian: Int64(self)) }
}

extension Int64: PostgresEncodable {
    public static var postgresType: UInt32 { PostgresType.int8 }
    public static var postgresArrayType: UInt32 { 1016 }
    public func encode(into bytes: inout [UInt8]) { bytes.append(bigEndian: self) }
}

extension Int32: PostgresEncodable {
    public static var postgresType: UInt32 { PostgresType.int4 }
    public static var postgresArrayType: UInt32 { 1007 }
    public func encode(into bytes: inout [UInt8]) { bytes.append(bigEndian: self) }
}

extension Bool: PostgresEncodable {
    public static var postgresType: UInt32 { PostgresType.bool }
    public static var postgresArrayType: UInt32 { 1000 }
    public func encode(into bytes: inout [UInt8]) { bytes.append(self ? 1 : 0) }
}

extension String: PostgresEncodable {
    public static var postgresType: UInt32 { PostgresType.text }
    public static var postgresArrayType: UInt32 { 1009 }
    public func encode(into bytes: inout [UInt8]) { bytes += utf8 }
}

extension UniqueID: PostgresEncodable {
    public static var postgresType: UInt32 { PostgresType.uuid }
    public static var postgresArrayType: UInt32 { 2951 }
    public func encode(into bytes: inout [UInt8]) {
        bytes.append(bigEndian: high)
        bytes.append(bigEndian: low)
    }
}

extension Timestamp: PostgresEncodable {
    public static var postgresType: UInt32 { PostgresType.timestamptz }
    public static var postgresArrayType: UInt32 { 1185 }
    public func encode(into bytes: inout [UInt8]) {
        let isFinite = self != .distantPast && self != .distantFuture
        let (difference, overflows) = microseconds.subtractingReportingOverflow(Self.postgresEpoch)
        bytes.append(bigEndian: !isFinite ? microseconds : overflows ? .min + 1 : difference)
    }

    /// PostgreSQL counts from 2000-01-01; the infinities are the two ends of the range, as in
    /// `Timestamp`.
    static let postgresEpoch: Int64 = 946_684_800_000_000
}

extension Duration: PostgresEncodable {
    public static var postgresType: UInt32 { PostgresType.interval }
    public static var postgresArrayType: UInt32 { 1187 }
    public func encode(into bytes: inout [UInt8]) {
        // Microseconds, days, months.
        bytes.append(bigEndian: microseconds)
        bytes.append(bigEndian: Int64(0))
    }
}

/// Bytes that are sent as `bytea`.
public struct Bytes: PostgresEncodable, Hashable {
    public static var postgresType: UInt32 { PostgresType.bytea }
    public static var postgresArrayType: UInt32 { 1001 }
    /// The bytes themselves.
    public let bytes: [UInt8]

    /// Wraps the bytes.
    public init(_ bytes: [UInt8]) { self.bytes = bytes }

    public func encode(into bytes: inout [UInt8]) { bytes += self.bytes }
}

/// Text that is sent as `json`, kept byte for byte.
public struct JSONText: PostgresEncodable, Hashable {
    public static var postgresType: UInt32 { PostgresType.json }
    public static var postgresArrayType: UInt32 { 199 }
    /// The UTF-8 bytes of the JSON text.
    public let bytes: [UInt8]

    /// Wraps the bytes; the server checks that they are JSON.
    public init(_ bytes: [UInt8]) { self.bytes = bytes }
    /// Wraps the text; the server checks that it is JSON.
    public init(_ text: String) { bytes = Array(text.utf8) }

    public func encode(into bytes: inout [UInt8]) { bytes += self.bytes }
}

extension Optional: PostgresEncodable where Wrapped: PostgresEncodable {
    public static var postgresType: UInt32 { Wrapped.postgresType }
    public static var postgresArrayType: UInt32 { Wrapped.postgresArrayType }
    public var isNull: Bool { self?.isNull ?? true }
    public func encode(into bytes: inout [UInt8]) { self?.encode(into: &bytes) }
}

extension Array: PostgresEncodable where Element: PostgresEncodable {
    public static var postgresType: UInt32 { Element.postgresArrayType }
    /// PostgreSQL has no type for arrays of arrays: nesting them is a programming error.
    public static var postgresArrayType: UInt32 { preconditionFailure("arrays of arrays have no type of their own") }

    /// Dimensions, a flag for NULLs, the elements' type; per dimension its length and lower bound;
    /// then the elements, each after its length (`array_recv` in PostgreSQL's source).
    public func encode(into bytes: inout [UInt8]) {
        bytes.append(bigEndian: Int32(isEmpty ? 0 : 1))
        bytes.append(bigEndian: Int32(1))
        bytes.append(bigEndian: Element.postgresType)
        if isEmpty { return }
        bytes.append(bigEndian: Int32(count))
        bytes.append(bigEndian: Int32(1))
        for element in self {
            let start = bytes.count
            bytes.append(bigEndian: Int32(-1))
            if element.isNull { continue }
            element.encode(into: &bytes)
            let length = UInt32(bytes.count - start - 4)
            bytes[start] = UInt8(truncatingIfNeeded: length >> 24)
            bytes[start + 1] = UInt8(truncatingIfNeeded: length >> 16)
            bytes[start + 2] = UInt8(truncatingIfNeeded: length >> 8)
            bytes[start + 3] = UInt8(truncatingIfNeeded: length)
        }
    }
}

/// The built-in types that are used here, by their fixed OIDs.
enum PostgresType {
    static let bool: UInt32 = 16
    static let bytea: UInt32 = 17
    static let name: UInt32 = 19
    static let int8: UInt32 = 20
    static let int2: UInt32 = 21
    static let int4: UInt32 = 23
    static let text: UInt32 = 25
    static let json: UInt32 = 114
    static let float8: UInt32 = 701
    static let varchar: UInt32 = 1043
    static let timestamptz: UInt32 = 1184
    static let interval: UInt32 = 1186
    static let uuid: UInt32 = 2950
    /// A literal without a declared type.
    static let unknown: UInt32 = 705
    /// The type of functions without a result.
    static let void: UInt32 = 2278
}
