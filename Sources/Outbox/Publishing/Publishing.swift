public import OutboxPublishing
public import Postgres

extension Connection {
    /// Publishes an event in the transaction that this connection is in (or in one of its own), and returns its number.
    ///
    /// It is delivered if and only if that transaction commits. With a known `dedupKey` nothing is published and the
    /// first event's number comes back. Throws a `PostgresError` with the SQLSTATEs of `NewEvent.statement`.
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

    /// Sets the TransactionId and the identity of everything that the rest of this transaction publishes, and returns the
    /// TransactionId.
    @discardableResult
    public mutating func beginOperation(
        transactionID: UniqueID? = nil, identity: String? = nil
    ) throws(PostgresError) -> UniqueID? {
        try query("SELECT outbox.begin_operation(\(transactionID), \(identity))").first(UniqueID.self)
    }
}
