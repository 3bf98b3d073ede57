package import Bytewise
package import Postgres
import Synchronization
import Templates

/// A committed event as read from the stream.
package final class Event: Sendable {
    package let id: EventID
    /// When it was inserted; also the key of its partition.
    package let createdAt: Timestamp
    package var key: EventKey { EventKey(id: id, createdAt: createdAt) }
    package let customerID: ExactText
    package let type: ExactText
    package let changeType: ExactText
    package let transactionID: UniqueID
    package let identity: String?
    /// The producer's JSON, byte for byte.
    package let before: [UInt8]?
    /// The producer's JSON, byte for byte.
    package let after: [UInt8]?
    /// When it happened, as given by the producer; otherwise the time of insertion.
    package let occurredAt: Timestamp
    /// Not to be sent earlier.
    package let deliverAt: Timestamp?
    /// The producer's context beside the data, a JSON object; nil when there is none.
    package let context: [UInt8]?
    /// The key within which an endpoint that keeps order delivers events in order.
    package let orderingKey: String?
    /// W3C trace context of the operation that caused it.
    package let traceparent: String?

    /// True when the service published the event about itself. Only endpoints that name the type
    /// get it, not those that take `*`.
    package let isOperational: Bool

    /// Its approximate size in memory.
    package let size: Int
    /// Who has to account for it; nil outside a worker.
    private let account: EventMemory.Account?

    /// The last built body: endpoints with the same format share its bytes.
    private let lastBody = Mutex<(format: Endpoint.Format, bytes: [UInt8])?>(nil)

    /// The request body in a format.
    package func body(_ format: Endpoint.Format, webhookID: String) -> [UInt8] {
        lastBody.withLock { last in
            if let last, last.format == format { return last.bytes }
            let bytes = Payload.body(of: self, format: format, webhookID: webhookID)
            account?.take(bytes.count - (last?.bytes.count ?? 0))
            last = (format, bytes)
            return bytes
        }
    }

    /// The columns that `init(row:from:in:of:)` reads, of a table or alias named `e`.
    static let columns = """
        e.id, e.created_at, e.customer_id, e.type, e.change_type, e.transaction_id, e.identity, e.before, e.after, \
        coalesce(e.occurred_at, e.created_at), e.deliver_at, nullif(e.headers, '{}')::text, e.ordering_key
        """

    /// NULLs in their place.
    static let noColumns = Array(repeating: "NULL", count: 13).joined(separator: ", ")

    deinit { account?.release(size + (lastBody.withLock { $0?.bytes.count } ?? 0)) }

    private static func size(_ parts: [UInt8]?...) -> Int { parts.reduce(512) { $0 + ($1?.count ?? 0) } }

    /// Reads the columns, starting at the given place.
    ///
    /// - Parameters:
    ///   - memory: where it is accounted for as long as it lives.
    ///   - party: whose it counts as; nil for its customer's.
    init(row: Row, from first: Int, in memory: EventMemory?, of party: ExactText? = nil) throws(PostgresError) {
        id = try row[first]
        createdAt = try row[first + 1]
        customerID = ExactText(try row[first + 2])
        type = ExactText(try row[first + 3])
        isOperational = Self.isOperational(type)
        changeType = ExactText(try row[first + 4])
        transactionID = try row[first + 5]
        identity = try row[first + 6]
        before = (try row[first + 7] as JSONText?)?.bytes
        after = (try row[first + 8] as JSONText?)?.bytes
        occurredAt = try row[first + 9]
        deliverAt = try row[first + 10]
        context = (try row[first + 11] as String?).map { Array($0.utf8) }
        orderingKey = try row[first + 12]
        traceparent = context.flatMap(Self.traceparent)
        size = Self.size(before, after, context)
        account = memory?.account(of: party ?? customerID)
        account?.take(size)
    }

    package init(
        id: EventID, createdAt: Timestamp, customerID: String, type: String, changeType: String,
        transactionID: UniqueID, identity: String?, before: [UInt8]?, after: [UInt8]?, occurredAt: Timestamp,
        deliverAt: Timestamp? = nil, context: [UInt8]? = nil, orderingKey: String? = nil
    ) {
        self.id = id
        self.createdAt = createdAt
        self.customerID = ExactText(customerID)
        self.type = ExactText(type)
        isOperational = Self.isOperational(self.type)
        self.changeType = ExactText(changeType)
        self.transactionID = transactionID
        self.identity = identity
        self.before = before
        self.after = after
        self.occurredAt = occurredAt
        self.deliverAt = deliverAt
        self.context = context
        self.orderingKey = orderingKey
        traceparent = context.flatMap(Self.traceparent)
        size = Self.size(before, after, context)
        account = nil
    }

    static func isOperational(_ type: ExactText) -> Bool { type.utf8.starts(with: "outbox.".utf8) }

    private static func traceparent(in context: [UInt8]) -> String? {
        // Most contexts have none, and then nothing is parsed.
        guard context.firstRange(of: "traceparent".utf8) != nil,
            case .string(let value)? = (try? JSON(context))?.value(at: ["traceparent"])?.kind, isTraceparent(value)
        else { return nil }
        return value
    }

    /// A malformed value is ignored, as required of everyone who forwards it (W3C Trace Context
    /// 3.2, 4.3): version, trace id, parent id, flags, in lower-case hexadecimal digits; later
    /// versions may say more behind them.
    private static func isTraceparent(_ text: String) -> Bool {
        let bytes = Array(text.utf8)
        guard bytes.count == 55 || (56...256).contains(bytes.count) && bytes[55] == UInt8(ascii: "-") else {
            return false
        }
        let parts = bytes.prefix(55).split(separator: UInt8(ascii: "-"), omittingEmptySubsequences: false)
        func isHexadecimal(_ byte: UInt8) -> Bool { (0x30...0x39).contains(byte) || (0x61...0x66).contains(byte) }
        guard parts.map(\.count) == [2, 32, 16, 2], parts.allSatisfy({ $0.allSatisfy(isHexadecimal) }),
            bytes.allSatisfy({ $0 > 0x20 && $0 < 0x7F })
        else { return false }
        let isVersion0 = parts[0].elementsEqual("00".utf8)
        return !parts[0].elementsEqual("ff".utf8) && (!isVersion0 || bytes.count == 55)
            && parts[1...2].allSatisfy { $0.contains { $0 != UInt8(ascii: "0") } }
    }
}
