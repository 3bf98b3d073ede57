import Postgres

extension Connection {
    /// Lets the next delivery of each ordering key go, after the one before it was taken out of its lane (`outbox.advance`).
    /// The lanes are locked.
    ///
    /// - Parameters:
    ///   - gone: rows of (endpoint, ordering key); those without a key stand in no line.
    ///   - afterLoss: a request of the key may still be under way that nobody waits for.
    mutating func advance(_ gone: borrowing Rows, afterLoss: Bool) throws {
        let lines = try gone.map { row throws(PostgresError) -> (EndpointID, String)? in
            guard let key = try row[1] as String? else { return nil }
            return (try row[0], key)
        }.compactMap(\.self)
        if lines.isEmpty { return }
        try query("SELECT outbox.advance(\(lines.map(\.0)), \(lines.map(\.1)), \(afterLoss))")
    }

    /// Locks lanes, before anything else of their endpoints is locked, in the order that everybody keeps to.
    mutating func lockLanes(_ lanes: [EndpointID]) throws {
        try query("SELECT FROM outbox.lane WHERE endpoint_id = ANY (\(lanes)) ORDER BY endpoint_id FOR UPDATE")
    }

    /// True when a worker may have a request to the endpoint under way.
    mutating func isWorkedOn(_ endpoint: EndpointID) throws -> Bool {
        try query("SELECT FROM outbox.lane WHERE endpoint_id = \(endpoint) AND lease_until > clock_timestamp()").count
            == 1
    }
}
