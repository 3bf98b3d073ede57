import Postgres

/// Where a list continues: behind this row. Lists are in the order of time, number and endpoint,
/// newest first, so that rows of the same time are told apart, and rows that are added meanwhile
/// come before it.
package struct ListCursor: Sendable, Hashable, CustomStringConvertible {
    /// The row's time: the start of an attempt, the death of a dead letter, and the event's time
    /// otherwise.
    let time: Timestamp
    let event: EventID
    let endpoint: EndpointID?
    /// The number of an attempt: attempts of one delivery may have the same time.
    let number: Int?

    init(time: Timestamp, event: EventID, endpoint: EndpointID? = nil, number: Int? = nil) {
        (self.time, self.event, self.endpoint, self.number) = (time, event, endpoint, number)
    }

    /// The written form, for the request of the next page.
    package var description: String {
        ["\(time.microseconds)", "\(event)", endpoint?.description, number?.description].compactMap(\.self)
            .joined(separator: ".")
    }

    /// Reads the written form; nil for anything else.
    package init?(_ text: String) {
        let parts = text.split(separator: ".", omittingEmptySubsequences: false).map(String.init)
        guard (2...4).contains(parts.count), let time = Int64(parts[0]), let event = Int64(parts[1]) else { return nil }
        let (endpoint, number) = (
            parts.dropFirst(2).first.map { UniqueID($0) }, parts.dropFirst(3).first.map { Int($0) }
        )
        // A part that is given has to be valid.
        if let endpoint, endpoint == nil { return nil }
        if let number, number == nil { return nil }
        self.init(
            time: Timestamp(microseconds: time), event: EventID(rawValue: event),
            endpoint: (endpoint ?? nil).map { EndpointID(rawValue: $0) }, number: number ?? nil)
    }

    /// The cursor at the last row of a page.
    init?(_ listing: Listing, time: String, event: String, endpoint: String? = nil, number: String? = nil) {
        guard let at = listing.last(time).flatMap({ Timestamp(listed: $0) }),
            let id = listing.last(event).flatMap({ Int64($0) })
        else { return nil }
        self.init(
            time: at, event: EventID(rawValue: id),
            endpoint: endpoint.flatMap { listing.last($0) }.flatMap { UniqueID($0) }.map { EndpointID(rawValue: $0) },
            number: number.flatMap { listing.last($0) }.flatMap { Int($0) })
    }

    /// The conditions for attempts behind it, in a list by start, event, endpoint and number.
    func isBeforeAttempt(_ row: String) -> [SQL] {
        let columns: SQL = "\(raw: row).started_at, \(raw: row).event_id, \(raw: row).endpoint_id, \(raw: row).number"
        // The first condition is the one that partitions and indexes can use.
        return [
            "\(raw: row).started_at <= \(time)",
            "(\(columns)) < (\(time), \(event), \(endpoint), \(number.map { Int32(clamping: $0) }))",
        ]
    }

    /// The conditions for dead letters behind it, in a list by time, event and endpoint.
    func isBeforeDeadLetter(_ row: String) -> [SQL] {
        let columns: SQL = "\(raw: row).dead_at, \(raw: row).event_id, \(raw: row).endpoint_id"
        return ["\(raw: row).dead_at <= \(time)", "(\(columns)) < (\(time), \(event), \(endpoint))"]
    }

    /// The conditions for rows behind it, in a list by event and endpoint.
    func isBefore(_ row: String) -> [SQL] {
        [
            "\(raw: row).event_id <= \(event)",
            "(\(raw: row).event_id, \(raw: row).event_at, \(raw: row).endpoint_id) < (\(event), \(time), \(endpoint))",
        ]
    }
}

extension Connection {
    /// A page of a list, and where the next one begins.
    ///
    /// - Parameters:
    ///   - rows: reads the list for a filter.
    ///   - cursor: of the last row of a listing.
    mutating func page(
        _ filter: ListFilter, _ rows: (inout Connection, ListFilter) throws -> Listing, cursor: (Listing) -> ListCursor?
    ) throws -> Listing {
        // One more row than requested tells whether there are more.
        var more = filter
        more.limit += 1
        let found = try rows(&self, more)
        if found.rows.count <= filter.limit { return found }
        let page = found.prefix(filter.limit)
        return page.going(on: cursor(page))
    }
}
