import Postgres

/// The row of a delivery, looked up by its key. With `=` a join may walk the whole index instead:
/// the planner believes that the table is nearly empty, and so it is, except for the dead rows that
/// a held snapshot keeps. `= ANY` can only be looked up.
func lookUp(_ table: String, by row: String) -> SQL {
    """
    \(raw: table).event_id = ANY (ARRAY[\(raw: row).event_id]) AND \(raw: table).endpoint_id = ANY (ARRAY[\(raw: row).endpoint_id])
     AND \(raw: table).event_at = ANY (ARRAY[\(raw: row).event_at])
    """
}

/// The row of one delivery.
func lookUp(_ table: String, _ delivery: DeliveryID) -> SQL {
    """
    \(raw: table).event_id = \(delivery.event.id) AND \(raw: table).event_at = \(delivery.event.createdAt) AND \(raw: table).endpoint_id = \(delivery.endpoint)
    """
}

/// Deliveries as rows of (event_id, event_at, endpoint_id), to be named by the statement.
func deliveryRows(_ deliveries: [DeliveryID]) -> SQL {
    "\(deliveries.map(\.event.id)), \(deliveries.map(\.event.createdAt)), \(deliveries.map(\.endpoint))"
}

/// All attempts at events with these numbers since the first of them was published.
func attemptRows(of events: [EventKey]) -> SQL {
    "outbox.attempts_at(\(Array(Set(events.map(\.id)))), \(events.map(\.createdAt).min()))"
}
