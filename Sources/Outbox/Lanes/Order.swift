import Postgres

/// The order of keys in lanes. The invariants O1 to O5, why they hold, and an example head
/// `sql/migrations/v0005_order.sql`.
extension Connection {
    /// Releases the next delivery of each ordering key, after the one before it was taken out of
    /// its lane (`outbox.advance`). The lanes are locked.
    ///
    /// - Parameters:
    ///   - gone: rows of (endpoint, ordering key); those without a key stand in no line.
    ///   - afterLoss: a request of the key may still be under way, and nothing waits for its end.
    mutating func advance(_ gone: borrowing Rows, afterLoss: Bool) throws {
        let lines = try gone.map { row throws(PostgresError) -> (EndpointID, String)? in
            guard let key = try row[1] as String? else { return nil }
            return (try row[0], key)
        }.compactMap(\.self)
        if lines.isEmpty { return }
        try query("SELECT outbox.advance(\(lines.map(\.0)), \(lines.map(\.1)), \(afterLoss))")
    }

    /// Locks lanes, before anything else of their endpoints is locked, in the order that every
    /// session keeps.
    mutating func lockLanes(_ lanes: [EndpointID]) throws {
        try query("SELECT FROM outbox.lane WHERE endpoint_id = ANY (\(lanes)) ORDER BY endpoint_id FOR UPDATE")
    }

    /// Locks lanes and makes them due before any delivery in them is, so that a lane is never due
    /// later than its deliveries.
    mutating func lowerDueTime(of lanes: [EndpointID]) throws {
        try lockLanes(lanes)
        try query(
            "UPDATE outbox.lane SET due_at = least(due_at, clock_timestamp()) WHERE endpoint_id = ANY (\(lanes))")
    }

    /// True when a worker may have a request of the delivery under way whose end nothing waits for:
    /// its lane is held, and it was due, or it was cancelled a moment ago.
    mutating func mayBeInFlight(_ delivery: DeliveryID) throws -> Bool {
        try query(
            """
            SELECT FROM outbox.lane l JOIN outbox.endpoint n ON n.id = l.endpoint_id
             WHERE l.endpoint_id = \(delivery.endpoint) AND l.lease_until > clock_timestamp()
               AND (EXISTS (SELECT FROM outbox.delivery d WHERE \(lookUp("d", delivery))
                               AND (d.due_at <= clock_timestamp() OR d.crashes > 0))
                    OR EXISTS (SELECT FROM outbox.dead_letter x WHERE \(lookUp("x", delivery))
                                  AND x.reason = 'cancelled' AND x.dead_at > clock_timestamp() - n.timeout))
            """
        ).count == 1
    }

    /// Releases some lines that dead letters blocked, those after a key, now that others may pass;
    /// returns the last key, nil at the end. In steps, as `cancelDeleted`.
    mutating func releaseBlocked(of id: EndpointID, after key: String) throws -> String? {
        try transaction { connection in
            try connection.lockLanes([id])
            let blocked = try connection.query(
                """
                SELECT DISTINCT endpoint_id, ordering_key FROM outbox.dead_letter
                 WHERE endpoint_id = \(id) AND ordering_key > \(key) AND reason <> 'cancelled' ORDER BY ordering_key LIMIT 1000
                """)
            let last = try blocked.map { row throws(PostgresError) in try row[1] as String }.last
            try connection.advance(blocked, afterLoss: false)
            return last
        }
    }

    /// Releases some of the deliveries that stand in line where order has ended, and returns how
    /// many: in steps, as `cancelDeleted`. Lines that are left when this is interrupted go on one
    /// by one.
    mutating func dissolveLines(of id: EndpointID) throws -> Int {
        // Usually there is none, and then nothing is written.
        let isAny =
            try query(
                """
                SELECT WHERE EXISTS (SELECT FROM outbox.delivery WHERE endpoint_id = \(id) AND ordering_key IS NOT NULL)
                          OR EXISTS (SELECT FROM outbox.dead_letter WHERE endpoint_id = \(id) AND ordering_key IS NOT NULL)
                """
            ).count > 0
        if !isAny { return 0 }
        return try transaction { connection in
            try connection.lowerDueTime(of: [id])
            let parked = try connection.query(
                """
                UPDATE outbox.dead_letter SET ordering_key = NULL
                 WHERE ctid = ANY (ARRAY(SELECT x.ctid FROM outbox.dead_letter x
                                          WHERE x.endpoint_id = \(id) AND x.ordering_key IS NOT NULL LIMIT 2000))
                """
            ).affected
            return try parked
                + connection.query(
                    """
                    UPDATE outbox.delivery d
                       SET ordering_key = NULL, scan = 0,
                           due_at = CASE WHEN d.due_at < 'infinity' THEN d.due_at
                                         ELSE greatest(clock_timestamp(), d.deliver_at) END
                     WHERE (d.event_id, d.endpoint_id, d.event_at) IN (SELECT w.event_id, w.endpoint_id, w.event_at FROM outbox.delivery w
                                                            WHERE w.endpoint_id = \(id) AND w.ordering_key IS NOT NULL LIMIT 2000)
                    """
                ).affected
        }
    }
}
