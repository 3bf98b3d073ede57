import Postgres

/// Where a list goes on: behind this row. Lists are in the order of time, number and endpoint, the newest first, so that rows of the same
/// time are told apart, and what is added meanwhile is before.
package struct ListCursor: Sendable, Hashable, CustomStringConvertible {
    /// The row's time: of an attempt its start, of a dead letter when it died, of others their event's.
    let time: Timestamp
    let event: EventID
    let endpoint: EndpointID?
    /// Of an attempt: the attempts of one delivery may be of one time, too.
    let number: Int?

    init(time: Timestamp, event: EventID, endpoint: EndpointID? = nil, number: Int? = nil) {
        (self.time, self.event, self.endpoint, self.number) = (time, event, endpoint, number)
    }

    /// The written form, for whoever asks for the next page.
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
        // What is there has to be one.
        if let endpoint, endpoint == nil { return nil }
        if let number, number == nil { return nil }
        self.init(
            time: Timestamp(microseconds: time), event: EventID(rawValue: event),
            endpoint: (endpoint ?? nil).map { EndpointID(rawValue: $0) }, number: number ?? nil)
    }

    /// Of the last row of a page.
    init?(_ listing: Listing, time: String, event: String, endpoint: String? = nil, number: String? = nil) {
        guard let at = listing.last(time).flatMap({ Timestamp(listed: $0) }),
            let id = listing.last(event).flatMap({ Int64($0) })
        else { return nil }
        self.init(
            time: at, event: EventID(rawValue: id),
            endpoint: endpoint.flatMap { listing.last($0) }.flatMap { UniqueID($0) }.map { EndpointID(rawValue: $0) },
            number: number.flatMap { listing.last($0) }.flatMap { Int($0) })
    }

    /// What holds of the attempts behind it, in a list by start, event, endpoint and number.
    func isBeforeAttempt(_ row: String) -> [SQL] {
        let columns: SQL = "\(raw: row).started_at, \(raw: row).event_id, \(raw: row).endpoint_id, \(raw: row).number"
        // The first of the two is what partitions and indexes know.
        return [
            "\(raw: row).started_at <= \(time)",
            "(\(columns)) < (\(time), \(event), \(endpoint), \(number.map { Int32(clamping: $0) }))",
        ]
    }

    /// What holds of the dead letters behind it, in a list by time, event and endpoint.
    func isBeforeDeadLetter(_ row: String) -> [SQL] {
        let columns: SQL = "\(raw: row).dead_at, \(raw: row).event_id, \(raw: row).endpoint_id"
        return ["\(raw: row).dead_at <= \(time)", "(\(columns)) < (\(time), \(event), \(endpoint))"]
    }

    /// What holds of the rows behind it, in a list by event and endpoint.
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
        // One more than is wanted tells whether there are more.
        var more = filter
        more.limit += 1
        let found = try rows(&self, more)
        if found.rows.count <= filter.limit { return found }
        let page = found.prefix(filter.limit)
        return page.going(on: cursor(page))
    }
}
