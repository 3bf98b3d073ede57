// swift-format-ignore-file: AllPublicDeclarationsHaveDocumentation

// The conformances below say nothing that the protocol's own documentation does not.
public import Postgres

/// An event's number. Numbers are assigned in order of insertion, not of commit: never read the
/// stream by them.
public struct EventID: Identifier {
    public let rawValue: Int64
    public init(rawValue: Int64) { self.rawValue = rawValue }
}

/// The identity of an event: its number and the time of its insertion. The number alone is reused
/// when the database goes back: after a failover that lost commits, in a restored backup, in a
/// copy. So everything stored about an event refers to both.
package struct EventKey: Hashable, Sendable, RowDecodable {
    package let id: EventID
    package let createdAt: Timestamp

    package init(id: EventID, createdAt: Timestamp) {
        self.id = id
        self.createdAt = createdAt
    }

    /// Reads a statement's first two columns.
    package init(_ row: Row) throws(PostgresError) { self.init(id: try row[0], createdAt: try row[1]) }

    /// The id by which receivers know it (`outbox.webhook_id`).
    package func webhookID(instance: String) -> String {
        var text: [UInt8] = []
        text.reserveCapacity(48)
        text += "evt_".utf8
        text += instance.utf8
        text.append(UInt8(ascii: "_"))
        for place in stride(from: Int64(50), through: 0, by: -5) {
            let digit = UInt8(createdAt.microseconds >> place & 31)
            text.append(digit < 10 ? UInt8(ascii: "0") + digit : UInt8(ascii: "a") + digit - 10)
        }
        text.append(UInt8(ascii: "_"))
        text.appendDecimal(id.rawValue)
        return String(decoding: text, as: UTF8.self)
    }
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

/// The proof of holding a batch or a lane: new and random at every claim, because a counter can be
/// issued twice when a commit is lost in a failover.
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

/// One event for one endpoint: a delivery's identity.
package struct DeliveryID: Hashable, Sendable, RowDecodable {
    package let event: EventKey
    package let endpoint: EndpointID

    /// Reads the columns `event_id`, `event_at` and `endpoint_id`.
    package init(_ row: Row) throws(PostgresError) {
        self.init(event: try EventKey(row), endpoint: try row[2])
    }

    package init(event: EventKey, endpoint: EndpointID) {
        self.event = event
        self.endpoint = endpoint
    }
}
