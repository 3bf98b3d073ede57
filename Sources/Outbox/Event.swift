package import Bytewise
package import Postgres
import Synchronization
import Templates

/// A committed event as the stream delivers it.
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
    /// When it happened, in the producer's words; the insertion when the producer did not say.
    package let occurredAt: Timestamp
    /// Not to be sent earlier.
    package let deliverAt: Timestamp?
    /// What the producer said beside the data, a JSON object; nil when nothing.
    package let context: [UInt8]?
    /// W3C trace context of the operation that caused it.
    package let traceparent: String?

    /// True when the service says this about itself. Only endpoints that name the type get it, not those that take `*`.
    package let isOperational: Bool

    /// What it takes in memory, about.
    package var size: Int { 512 + (before?.count ?? 0) + (after?.count ?? 0) + (context?.count ?? 0) }

    /// The body that was built last: endpoints that take the same format share its bytes.
    private let lastBody = Mutex<(format: Endpoint.Format, bytes: [UInt8])?>(nil)

    /// The request body in a format.
    package func body(_ format: Endpoint.Format, webhookID: String) -> [UInt8] {
        lastBody.withLock { last in
            if let last, last.format == format { return last.bytes }
            let bytes = Payload.body(of: self, format: format, webhookID: webhookID)
            last = (format, bytes)
            return bytes
        }
    }

    /// The columns that `init(row:from:)` reads, of a table or alias named `e`.
    static let columns = """
        e.id, e.created_at, e.customer_id, e.type, e.change_type, e.transaction_id, e.identity, e.before, e.after, \
        coalesce(e.occurred_at, e.created_at), e.deliver_at, nullif(e.headers, '{}')::text
        """

    /// Reads the columns from the given place on.
    init(row: Row, from first: Int) throws(PostgresError) {
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
        traceparent = context.flatMap(Self.traceparent)
    }

    package init(
        id: EventID, createdAt: Timestamp, customerID: String, type: String, changeType: String,
        transactionID: UniqueID, identity: String?, before: [UInt8]?, after: [UInt8]?, occurredAt: Timestamp,
        deliverAt: Timestamp? = nil, context: [UInt8]? = nil
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
        traceparent = context.flatMap(Self.traceparent)
    }

    private static func isOperational(_ type: ExactText) -> Bool { type.utf8.starts(with: "outbox.".utf8) }

    private static func traceparent(in context: [UInt8]) -> String? {
        // Most contexts have none, and then nothing is parsed.
        guard context.firstRange(of: "traceparent".utf8) != nil else { return nil }
        return (try? JSON(context))?.value(at: ["traceparent"])?.text
    }
}
