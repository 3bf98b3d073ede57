public import FoundationEssentials

/// An event to publish. Only the type is required; what is left nil gets the database's defaults.
///
/// Publishing is one statement (`statement`), sent in the transaction whose event it is, by
/// whatever PostgreSQL client the application has. The event is delivered if and only if that
/// transaction commits.
public struct NewEvent: Sendable {
    /// What happened, as in `order.created`.
    public var type: String
    /// `Create`, `Update`, `Delete`, `Login` or any word of your own.
    public var changeType = "Create"
    /// Whose event it is.
    public var customerID = "default"
    /// The object before the change, as JSON text; kept byte for byte.
    public var before: String?
    /// The object after the change, as JSON text; kept byte for byte.
    public var after: String?
    /// Who caused it; the session's user when nil.
    public var identity: String?
    /// The operation that it belongs to; one per database transaction when nil.
    public var transactionID: UUID?
    /// Events of one key keep their order at endpoints that ask for it.
    public var orderingKey: String?
    /// The producer's own key: a second event with it is not published.
    public var dedupKey: String?
    /// Not to be delivered earlier.
    public var deliverAt: Date?
    /// A JSON object, for filters and templates.
    public var headers: String?
    /// When it happened; the time of publishing when nil.
    public var occurredAt: Date?

    /// An event of the given type, with the object's new state.
    public init(type: String, after: String? = nil) {
        self.type = type
        self.after = after
    }

    /// The call of `outbox.publish` that publishes it. It returns one row with one `bigint`, the
    /// event's number; with a known `dedupKey` nothing is published, and the number is the first
    /// event's.
    ///
    /// The server's errors are SQLSTATE `OB001` for a body over the limit, `OB002` for a missing
    /// type or one of ours, `OB004` for a customer that the role may not publish for, and `22P02`
    /// for text that is not JSON.
    ///
    /// - Parameter isBound: true for a role that may publish for some customers only
    ///   (`outbox.grant_publish`): it calls the same function in the schema `outbox_api`.
    public func statement(isBound: Bool = false) -> PublishStatement {
        let arguments: [(name: String, type: String, text: String?)] = [
            ("type", "text", type), ("after", "json", after), ("change_type", "text", changeType),
            ("customer_id", "text", customerID), ("before", "json", before), ("identity", "text", identity),
            ("transaction_id", "uuid", transactionID?.uuidString), ("ordering_key", "text", orderingKey),
            ("dedup_key", "text", dedupKey), ("deliver_at", "time", deliverAt.map { "\($0.timeIntervalSince1970)" }),
            ("headers", "jsonb", headers), ("occurred_at", "time", occurredAt.map { "\($0.timeIntervalSince1970)" }),
        ]
        var pieces = ["SELECT \(isBound ? "outbox_api" : "outbox").publish("]
        for (name, type, _) in arguments {
            // Seconds, so that no time is read by the session's DateStyle or time zone.
            let (begin, end) = type == "time" ? ("to_timestamp(", "::text::float8)") : ("", "::text::\(type)")
            pieces[pieces.count - 1] += "\(name) => \(begin)"
            pieces.append("\(end), ")
        }
        pieces[pieces.count - 1] = pieces[pieces.count - 1].dropLast(2) + ")"
        return PublishStatement(pieces: pieces, parameters: arguments.map(\.text))
    }
}

/// A statement and its parameters, which any PostgreSQL client can send.
public struct PublishStatement: Sendable, Hashable {
    /// The text around the parameters: one piece more than there are of them.
    package let pieces: [String]
    /// The parameters in their order, all of them text; nil is NULL.
    public let parameters: [String?]

    /// The text, with the parameters as `$1`, `$2` and so on.
    public var sql: String {
        pieces.dropFirst().enumerated().reduce(pieces[0]) { $0 + "$\($1.offset + 1)" + $1.element }
    }
}
