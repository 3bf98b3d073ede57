public import OutboxPublishing
public import Postgres

extension Connection {
    /// Publishes an event in this connection's open transaction (or in a new one), and returns its
    /// number.
    ///
    /// It is delivered if and only if that transaction commits. With a known `dedupKey` nothing is
    /// published and the first event's number is returned. Throws a `PostgresError` with the
    /// SQLSTATEs of `NewEvent.statement`.
    @discardableResult
    public mutating func publish(_ event: NewEvent) throws(PostgresError) -> EventID {
        let statement = event.statement()
        var sql = SQL.StringInterpolation(literalCapacity: 0, interpolationCount: statement.parameters.count)
        sql.appendLiteral(statement.pieces[0])
        for (parameter, piece) in zip(statement.parameters, statement.pieces.dropFirst()) {
            sql.appendInterpolation(parameter)
            sql.appendLiteral(piece)
        }
        return try query(SQL(stringInterpolation: sql)).one(EventID.self)
    }

    /// Sets the TransactionId and the identity of all events that the rest of this transaction
    /// publishes, and returns the TransactionId.
    @discardableResult
    public mutating func beginOperation(
        transactionID: UniqueID? = nil, identity: String? = nil
    ) throws(PostgresError) -> UniqueID? {
        try query("SELECT outbox.begin_operation(\(transactionID), \(identity))").first(UniqueID.self)
    }
}
