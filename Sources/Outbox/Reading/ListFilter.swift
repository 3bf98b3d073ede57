package import Postgres

/// The conditions of a list; nil means no condition.
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
    /// Only rows behind this one in the list.
    package var after: ListCursor?
    /// How long a search without an index may go on: as long as an operator waits for a result.
    package var patience = Duration.milliseconds(700)
    /// Only rows of these events (`EventWalk`).
    private(set) var keys: Set<EventKey>?

    package init() {}

    /// Only rows of one delivery.
    init(_ delivery: DeliveryID) {
        (endpoint, keys) = (delivery.endpoint, [delivery.event])
    }

    /// True for an event that the filter names. (Statements check numbers and times separately, and
    /// a number may have been assigned twice.)
    func names(_ event: EventKey) -> Bool { keys?.contains(event) ?? true }

    /// The same filter for these events, which satisfy its conditions on events.
    func of(_ keys: [EventKey]) -> ListFilter {
        var filter = self
        (filter.eventType, filter.changeType, filter.customerID, filter.transactionID) = (nil, nil, nil, nil)
        filter.keys = Set(keys)
        return filter
    }

    /// True when it has conditions on columns that only events have.
    var asksForEvents: Bool { eventType != nil || changeType != nil || customerID != nil || transactionID != nil }

    /// True when an index of events serves the conditions on events, or there are none.
    var hasIndex: Bool { event != nil || transactionID != nil || !asksForEvents }

    /// The max number of rows of a statement.
    var rows: SQL { "\(raw: "\(limit)")" }
}

/// A statement contains only the conditions that are set: no index serves `$1 IS NULL OR type =
/// $1`.
extension ListFilter {
    /// The conditions on an event.
    func events(_ event: String) -> [SQL] {
        var conditions: [SQL] = []
        if let eventType { conditions.append("\(raw: event).type = \(eventType)") }
        if let changeType { conditions.append("\(raw: event).change_type = \(changeType)") }
        if let customerID { conditions.append("\(raw: event).customer_id = \(customerID)") }
        if let transactionID { conditions.append("\(raw: event).transaction_id = \(transactionID)") }
        if let reference = self.event { conditions.append("\(raw: event).id = \(reference.id)") }
        if let createdAt = self.event?.createdAt { conditions.append("\(raw: event).created_at = \(createdAt)") }
        return conditions
    }

    /// The conditions on a row that belongs to an event and an endpoint.
    func deliveries(_ row: String) -> [SQL] {
        var conditions: [SQL] = []
        if let keys {
            conditions.append("\(raw: row).event_id = ANY (\(keys.map(\.id)))")
            conditions.append("\(raw: row).event_at = ANY (\(keys.map(\.createdAt)))")
        }
        if let event { conditions.append("\(raw: row).event_id = \(event.id)") }
        if let createdAt = event?.createdAt { conditions.append("\(raw: row).event_at = \(createdAt)") }
        // Not `=` where events are named: the planner would consider another index, on everything
        // that the endpoint ever got, as good.
        if let endpoint {
            conditions.append("\(raw: row).endpoint_id \(raw: namesEvents ? "IS NOT DISTINCT FROM" : "=") \(endpoint)")
        }
        return conditions
    }

    /// The conditions on a time in a column.
    func within(_ column: String) -> [SQL] {
        var conditions: [SQL] = []
        if let since { conditions.append("\(raw: column) >= \(since)") }
        if let until { conditions.append("\(raw: column) < \(until)") }
        return conditions
    }

    /// True when it names the events, so that an index finds the rows that belong to them.
    var namesEvents: Bool { keys != nil || event != nil }

    /// The earliest time of attempts at the named events: no attempt precedes its event, except by
    /// the difference of clocks.
    var attemptedSince: Timestamp? {
        (keys?.map(\.createdAt).min() ?? event?.createdAt).map { $0 + .seconds(-3600) }
    }
}

/// The conjunction of the conditions.
func conjunction(_ conditions: [SQL]) -> SQL {
    conditions.reduce(nil as SQL?) { all, next in all.map { "\($0) AND \(next)" } ?? next } ?? "true"
}
