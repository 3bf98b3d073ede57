package import Postgres

/// What lists are narrowed by; nil means everything.
package struct ListFilter: Sendable {
    package var endpoint: EndpointID?
    package var eventType: String?
    package var changeType: String?
    package var customerID: String?
    package var transactionID: UniqueID?
    package var event: EventReference?
    package var state: String?
    package var since: Timestamp?
    package var until: Timestamp?
    package var limit = 100
    /// For how long it is looked back for what no index has: as an operator waits for an answer.
    package var patience = Duration.milliseconds(700)
    /// Only of events from this one on (`lookingBack`).
    var from: EventID?
    /// The events of the transaction (`resolved`).
    var ofTransaction: [EventKey]?

    package init() {}
}

/// Only the conditions that are asked for stand in a statement: of `$1 IS NULL OR type = $1` no index knows anything.
extension ListFilter {
    /// What must hold of an event `e`, its time aside.
    private var ofEvent: [SQL] {
        var conditions: [SQL] = []
        if let eventType { conditions.append("e.type = \(eventType)") }
        if let changeType { conditions.append("e.change_type = \(changeType)") }
        if let customerID { conditions.append("e.customer_id = \(customerID)") }
        if let transactionID { conditions.append("e.transaction_id = \(transactionID)") }
        if let event { conditions.append("e.id = \(event.id)") }
        if let createdAt = event?.createdAt { conditions.append("e.created_at = \(createdAt)") }
        if let from { conditions.append("e.id >= \(from)") }
        return conditions
    }

    /// True when what is asked for is known of the events alone, and no index has it.
    var looksAtEvents: Bool {
        (eventType != nil || changeType != nil || customerID != nil) && event == nil && transactionID == nil
    }

    /// When the oldest event was published that the list is about, where that is known.
    private var firstAt: Timestamp? { ofTransaction?.map(\.createdAt).min() ?? event?.createdAt }

    /// Of an attempt: none is made before its event, but for what clocks differ.
    func attempted(_ attempt: String) -> [SQL] {
        firstAt.map { ["\(raw: attempt).started_at >= \($0 + .seconds(-3600))"] } ?? []
    }

    /// What must hold of a time in a column.
    func within(_ column: String) -> [SQL] {
        var conditions: [SQL] = []
        if let since { conditions.append("\(raw: column) >= \(since)") }
        if let until { conditions.append("\(raw: column) < \(until)") }
        return conditions
    }

    /// The events, by an alias `e`.
    var events: [SQL] {
        var conditions = ofEvent + within("e.created_at")
        if let keys = ofTransaction {
            conditions.append("e.id = ANY (\(keys.map(\.id)))")
            conditions.append(
                "e.created_at >= \(keys.map(\.createdAt).min()) AND e.created_at <= \(keys.map(\.createdAt).max())")
        }
        return conditions
    }

    /// What must hold of a row that belongs to an event, by its alias: looked up one by one, never joined.
    ///
    /// - Parameter time: true when it is the event's time that is asked for, and not the row's own.
    func ofRow(_ row: String, time: Bool) -> [SQL] {
        var conditions: [SQL] = []
        if let keys = ofTransaction {
            conditions.append("\(raw: row).event_id = ANY (\(keys.map(\.id)))")
            conditions.append("\(raw: row).event_at = ANY (\(keys.map(\.createdAt)))")
        }
        if let event { conditions.append("\(raw: row).event_id = \(event.id)") }
        if let createdAt = event?.createdAt { conditions.append("\(raw: row).event_at = \(createdAt)") }
        if let from { conditions.append("\(raw: row).event_id >= \(from)") }
        if let endpoint { conditions.append("\(raw: row).endpoint_id = \(endpoint)") }
        if time { conditions += within("\(row).event_at") }
        if eventType != nil || changeType != nil || customerID != nil {
            conditions.append(
                """
                EXISTS (SELECT FROM outbox.event e WHERE e.id = \(raw: row).event_id AND e.created_at = \(raw: row).event_at
                           AND \(conjunction(ofEvent)) OFFSET 0)
                """)
        }
        return conditions
    }

    /// True when events are asked for, and not only an endpoint or a state.
    var namesEvents: Bool { !events.isEmpty }

    var rows: SQL { "\(raw: "\(limit)")" }
}

/// All of them hold.
func conjunction(_ conditions: [SQL]) -> SQL {
    conditions.reduce(nil as SQL?) { all, next in all.map { "\($0) AND \(next)" } ?? next } ?? "true"
}
