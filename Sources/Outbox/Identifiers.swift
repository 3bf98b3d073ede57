// swift-format-ignore-file: AllPublicDeclarationsHaveDocumentation

// The conformances below say nothing that the protocol's own documentation does not.
public import Postgres

/// An event's number. Numbers are given out in order of insertion, not of commit: never read the stream by them.
public struct EventID: Identifier {
    public let rawValue: Int64
    public init(rawValue: Int64) { self.rawValue = rawValue }
}

/// An endpoint's identity; its name may change, this does not.
public struct EndpointID: Identifier {
    public let rawValue: UniqueID
    public init(rawValue: UniqueID) { self.rawValue = rawValue }
}

/// A batch's number.
public struct BatchID: Identifier {
    public let rawValue: Int64
    public init(rawValue: Int64) { self.rawValue = rawValue }
}

/// The proof of holding a batch or a lane: new and random at every claim, because a counter can be issued twice when a
/// commit is lost in a failover.
public struct LeaseID: Identifier {
    public let rawValue: UniqueID
    public init(rawValue: UniqueID) { self.rawValue = rawValue }

    /// A new lease.
    public static func random() -> LeaseID { LeaseID(rawValue: .random()) }
}

/// A value type that is its database value under a name of its own.
public protocol Identifier: RawRepresentable, Hashable, Sendable, CustomStringConvertible, PostgresEncodable,
    PostgresDecodable
where RawValue: PostgresEncodable & PostgresDecodable & CustomStringConvertible & Hashable {
    /// Wraps the database's value.
    init(rawValue: RawValue)
}

extension Identifier {
    public var description: String { rawValue.description }
    public static var postgresType: UInt32 { RawValue.postgresType }
    public static var postgresArrayType: UInt32 { RawValue.postgresArrayType }
    public func encode(into bytes: inout [UInt8]) { rawValue.encode(into: &bytes) }

    public static func reads(_ type: UInt32) -> Bool { RawValue.reads(type) }
    public init?(postgresBytes bytes: UnsafeRawBufferPointer?) {
        guard let value = RawValue(postgresBytes: bytes) else { return nil }
        self.init(rawValue: value)
    }
}
