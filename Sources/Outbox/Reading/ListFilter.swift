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
    /// Only what comes behind this in the list.
    package var after: ListCursor?
    /// For how long it is looked back for what no index has: as an operator waits for a response.
    package var patience = Duration.milliseconds(700)
    /// Of these events only (`EventWalk`).
    private(set) var keys: Set<EventKey>?

    package init() {}

    /// Of one delivery only.
    init(_ delivery: DeliveryID) {
        (endpoint, keys) = (delivery.endpoint, [delivery.event])
    }

    /// True of an event that it names. (Statements ask for numbers and times apart, and a number may have been given out twice.)
    func names(_ event: EventKey) -> Bool { keys?.contains(event) ?? true }

    /// The same, of these of the events that it asks for.
    func of(_ keys: [EventKey]) -> ListFilter {
        var filter = self
        (filter.eventType, filter.changeType, filter.customerID, filter.transactionID) = (nil, nil, nil, nil)
        filter.keys = Set(keys)
        return filter
    }

    /// True when it asks for what only events have.
    var asksForEvents: Bool { eventType != nil || changeType != nil || customerID != nil || transactionID != nil }

    /// True when an index of events has what is asked for, or nothing is.
    var hasIndex: Bool { event != nil || transactionID != nil || !asksForEvents }

    /// The most rows of a statement.
    var rows: SQL { "\(raw: "\(limit)")" }
}

/// Only the conditions that are asked for stand in a statement: of `$1 IS NULL OR type = $1` no index knows anything.
extension ListFilter {
    /// Of an event.
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

    /// Of a row that belongs to an event and an endpoint.
    func deliveries(_ row: String) -> [SQL] {
        var conditions: [SQL] = []
        if let keys {
            conditions.append("\(raw: row).event_id = ANY (\(keys.map(\.id)))")
            conditions.append("\(raw: row).event_at = ANY (\(keys.map(\.createdAt)))")
        }
        if let event { conditions.append("\(raw: row).event_id = \(event.id)") }
        if let createdAt = event?.createdAt { conditions.append("\(raw: row).event_at = \(createdAt)") }
        // Not `=` where events are named: another index, of all that the endpoint ever got, would be taken for as good.
        if let endpoint {
            conditions.append("\(raw: row).endpoint_id \(raw: namesEvents ? "IS NOT DISTINCT FROM" : "=") \(endpoint)")
        }
        return conditions
    }

    /// Of a time in a column.
    func within(_ column: String) -> [SQL] {
        var conditions: [SQL] = []
        if let since { conditions.append("\(raw: column) >= \(since)") }
        if let until { conditions.append("\(raw: column) < \(until)") }
        return conditions
    }

    /// True when it names the events, so that an index finds what belongs to them.
    var namesEvents: Bool { keys != nil || event != nil }

    /// From when on there may be attempts at the events that are named: none is made before its event, but for what clocks differ.
    var attemptedSince: Timestamp? {
        (keys?.map(\.createdAt).min() ?? event?.createdAt).map { $0 + .seconds(-3600) }
    }
}

/// All of them hold.
func conjunction(_ conditions: [SQL]) -> SQL {
    conditions.reduce(nil as SQL?) { all, next in all.map { "\($0) AND \(next)" } ?? next } ?? "true"
}
