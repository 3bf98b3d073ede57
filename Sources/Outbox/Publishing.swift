public import Postgres

/// An event to publish. Only the type is required; what is left nil gets the database's defaults.
public struct NewEvent: Sendable {
    /// What happened, as in `order.created`.
    public var type: String
    /// `Create`, `Update`, `Delete`, `Login` or any word of one's own.
    public var changeType = "Create"
    /// Whose event it is.
    public var customerID = "default"
    /// The object before the change, as JSON text; kept byte for byte.
    public var before: JSONText?
    /// The object after the change, as JSON text; kept byte for byte.
    public var after: JSONText?
    /// Who caused it; the session's user when nil.
    public var identity: String?
    /// What it belongs to; one per database transaction when nil.
    public var transactionID: UniqueID?
    /// Events of one key keep their order at endpoints that ask for it.
    public var orderingKey: String?
    /// The producer's own key: a second event with it is not published.
    public var dedupKey: String?
    /// Not to be delivered earlier.
    public var deliverAt: Timestamp?
    /// When it happened; the time of publishing when nil.
    public var occurredAt: Timestamp?

    /// An event of the given type, with the object's new state.
    public init(type: String, after: JSONText? = nil) {
        self.type = type
        self.after = after
    }
}

extension Connection {
    /// Publishes an event in the transaction that this connection is in (or in one of its own), and returns its number.
    ///
    /// It is delivered if and only if that transaction commits. With a known `dedupKey` nothing is published and the
    /// first event's number comes back. Throws a `PostgresError`; its SQLSTATE is `OB001` for a body over the limit,
    /// `OB002` for a missing type, `22P02` for text that is not JSON.
    @discardableResult
    public mutating func publish(_ event: NewEvent) throws(PostgresError) -> EventID {
        let id = try query(
            """
            SELECT outbox.publish(
                type => \(event.type), after => \(event.after), change_type => \(event.changeType),
                customer_id => \(event.customerID), before => \(event.before), identity => \(event.identity),
                transaction_id => \(event.transactionID), ordering_key => \(event.orderingKey), dedup_key => \(event.dedupKey),
                deliver_at => \(event.deliverAt), occurred_at => \(event.occurredAt))
            """
        ).first { row throws(PostgresError) in try row[0] as EventID }
        return id ?? EventID(rawValue: 0)
    }

    /// Sets the TransactionId and the identity of everything that the rest of this transaction publishes, and returns the
    /// TransactionId.
    @discardableResult
    public mutating func beginOperation(
        transactionID: UniqueID? = nil, identity: String? = nil
    ) throws(PostgresError) -> UniqueID? {
        try query("SELECT outbox.begin_operation(\(transactionID), \(identity))").first { row throws(PostgresError) in
            try row[0]
        }
    }
}
