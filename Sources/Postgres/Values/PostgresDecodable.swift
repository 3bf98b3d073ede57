// swift-format-ignore-file: AllPublicDeclarationsHaveDocumentation
// The conformances below say nothing that the protocol's own documentation does not.

/// A value that can be read from a result's binary format.
public protocol PostgresDecodable {
    /// True when it reads values of the type with this OID.
    static func reads(_ type: UInt32) -> Bool
    /// Reads the bytes, nil for NULL; they are valid only during the call.
    init?(postgresBytes: UnsafeRawBufferPointer?)
}

extension Optional: PostgresDecodable where Wrapped: PostgresDecodable {
    public static func reads(_ type: UInt32) -> Bool { Wrapped.reads(type) }
    public init?(postgresBytes bytes: UnsafeRawBufferPointer?) {
        guard let bytes = unsafe bytes else { self = .none; return }
        guard let value = unsafe Wrapped(postgresBytes: bytes) else { return nil }
        self = .some(value)
    }
}

extension UnsafeRawBufferPointer {
    fileprivate func bigEndian<Value: FixedWidthInteger>(_ type: Value.Type, at offset: Int = 0) -> Value? {
        guard offset >= 0, offset + MemoryLayout<Value>.size <= count else { return nil }
        return Value(bigEndian: unsafe loadUnaligned(fromByteOffset: offset, as: Value.self))
    }
}

extension Int64: PostgresDecodable {
    public static func reads(_ type: UInt32) -> Bool {
        type == PostgresType.int8 || type == PostgresType.int4 || type == PostgresType.int2
    }
    public init?(postgresBytes bytes: UnsafeRawBufferPointer?) {
        guard let bytes = unsafe bytes else { return nil }
        let value: Int64? =
            switch bytes.count {
            case 8: unsafe bytes.bigEndian(Int64.self)
            case 4: unsafe bytes.bigEndian(Int32.self).map { Int64($0) }
            case 2: unsafe bytes.bigEndian(Int16.self).map { Int64($0) }
            default: nil
            }
        guard let value else { return nil }
        self = value
    }
}

extension Int: PostgresDecodable {
    public static func reads(_ type: UInt32) -> Bool { Int64.reads(type) }
    public init?(postgresBytes bytes: UnsafeRawBufferPointer?) {
        guard let value = unsafe Int64(postgresBytes: bytes) else { return nil }
        self = Int(value)
    }
}

extension Double: PostgresDecodable {
    public static func reads(_ type: UInt32) -> Bool { type == PostgresType.float8 }
    public init?(postgresBytes bytes: UnsafeRawBufferPointer?) {
        guard let bits = unsafe bytes?.bigEndian(UInt64.self) else { return nil }
        self.init(bitPattern: bits)
    }
}

extension Bool: PostgresDecodable {
    public static func reads(_ type: UInt32) -> Bool { type == PostgresType.bool }
    public init?(postgresBytes bytes: UnsafeRawBufferPointer?) {
        guard let first = unsafe bytes?.first else { return nil }
        self = first != 0
    }
}

/// An enum that is stored as text: an unknown text is an error.
extension PostgresDecodable where Self: RawRepresentable<String> {
    public static func reads(_ type: UInt32) -> Bool { String.reads(type) }
    public init?(postgresBytes bytes: UnsafeRawBufferPointer?) {
        guard let text = unsafe String(postgresBytes: bytes) else { return nil }
        self.init(rawValue: text)
    }
}

extension String: PostgresDecodable {
    /// Types whose binary form is their text.
    public static func reads(_ type: UInt32) -> Bool {
        type == PostgresType.text || type == PostgresType.varchar || type == PostgresType.name
            || type == PostgresType.json || type == PostgresType.unknown
    }
    public init?(postgresBytes bytes: UnsafeRawBufferPointer?) {
        guard let bytes = unsafe bytes else { return nil }
        self = unsafe String(decoding: bytes, as: UTF8.self)
    }
}

extension UniqueID: PostgresDecodable {
    public static func reads(_ type: UInt32) -> Bool { type == PostgresType.uuid }
    public init?(postgresBytes bytes: UnsafeRawBufferPointer?) {
        guard let bytes = unsafe bytes, let high = unsafe bytes.bigEndian(UInt64.self),
            let low = unsafe bytes.bigEndian(UInt64.self, at: 8)
        else { return nil }
        self.init(high: high, low: low)
    }
}

extension Timestamp: PostgresDecodable {
    public static func reads(_ type: UInt32) -> Bool { type == PostgresType.timestamptz }
    public init?(postgresBytes bytes: UnsafeRawBufferPointer?) {
        guard let value = unsafe bytes?.bigEndian(Int64.self) else { return nil }
        let isFinite = value != .min && value != .max
        // PostgreSQL's years extend a little further than ours.
        let (sum, overflows) = value.addingReportingOverflow(Self.postgresEpoch)
        self.init(microseconds: !isFinite ? value : overflows ? .max - 1 : sum)
    }
}

extension JSONText: PostgresDecodable {
    public static func reads(_ type: UInt32) -> Bool { type == PostgresType.json }
    public init?(postgresBytes bytes: UnsafeRawBufferPointer?) {
        guard let bytes = unsafe bytes else { return nil }
        self.init(unsafe Array(bytes))
    }
}

extension Bytes: PostgresDecodable {
    public static func reads(_ type: UInt32) -> Bool { type == PostgresType.bytea }
    public init?(postgresBytes bytes: UnsafeRawBufferPointer?) {
        guard let bytes = unsafe bytes else { return nil }
        self.init(unsafe Array(bytes))
    }
}

extension Array: PostgresDecodable where Element: PostgresDecodable & PostgresEncodable {
    public static func reads(_ type: UInt32) -> Bool { type == Element.postgresArrayType }
    /// Reads an array of at most one dimension.
    public init?(postgresBytes bytes: UnsafeRawBufferPointer?) {
        guard let bytes = unsafe bytes, let dimensions = unsafe bytes.bigEndian(Int32.self), dimensions <= 1 else {
            return nil
        }
        var elements: [Element] = []
        if dimensions == 1 {
            guard let count = unsafe bytes.bigEndian(Int32.self, at: 12), count >= 0 else { return nil }
            elements.reserveCapacity(Int(count))
            var offset = 20
            for _ in 0..<count {
                guard let length = unsafe bytes.bigEndian(Int32.self, at: offset).map({ Int($0) }) else { return nil }
                offset += 4
                guard length <= bytes.count - offset else { return nil }
                let part = unsafe length < 0 ? nil : UnsafeRawBufferPointer(rebasing: bytes[offset..<(offset + length)])
                guard let element = unsafe Element(postgresBytes: part) else { return nil }
                elements.append(element)
                offset += Swift.max(0, length)
            }
        }
        self = elements
    }
}
