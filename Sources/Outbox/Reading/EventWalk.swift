import Postgres

/// The events that a filter asks for, newest first, in steps. Each step reads few partitions and,
/// where no index serves the filter, a limited range of numbers.
struct EventWalk {
    private let filter: ListFilter
    /// Where the walk begins.
    private let start: Timestamp?
    /// The remaining spans, the next one first; and of the first one, the remaining numbers.
    private var spans: ArraySlice<Span>
    private var numbers: [Range<Int64>] = []
    private var reach: Int64 = 20_000
    private var most: Int
    private let began = ContinuousClock.now
    private var took = Duration.zero
    private var looked: Int64 = 0
    private var deepest: Int64 = 0

    fileprivate init(_ filter: ListFilter, spans: [Span], startingBefore start: Timestamp?) {
        // Newer spans were on earlier pages, where the list is in the order of the walk; deliveries
        // are sorted by number.
        let rest = spans.drop { span in
            guard let after = filter.after, after.endpoint == nil, let begin = span.begin else { return false }
            return after.time < begin
        }
        (self.filter, self.spans, self.start) = (filter, rest, start)
        most = max(filter.limit, 100)
    }

    /// A note for the caller, when walking on would take longer than the filter's patience; nil
    /// when there is time, or nothing is left.
    fileprivate var end: String? { filter.hasIndex || isOver || hasTime ? nil : note }

    fileprivate var isOver: Bool { spans.isEmpty }

    fileprivate var hasTime: Bool { filter.patience - (ContinuousClock.now - began) > took }

    /// How far the walk went.
    fileprivate var note: String {
        "looked for among the newest \(looked) events\(filter.until == nil ? "" : " of that time"), down to event \(deepest); "
            + "for older ones narrow it by until, event_id or transaction_id"
    }

    /// The next events; empty when this step found none, and nil at the end.
    fileprivate mutating func next(on connection: inout Connection) throws -> [EventKey]? {
        guard let span = spans.first else { return nil }
        let begin = ContinuousClock.now
        if numbers.isEmpty { numbers = try connection.numbers(in: span, before: filter.hasIndex ? nil : start) }
        // Only rows behind the last row of the previous page: nothing newer is read again. In older
        // spans every row is behind it: a producer that writes created_at may have given it a
        // higher number.
        let after = filter.after.flatMap { $0.endpoint != nil || span.contains($0.time) ? $0 : nil }
        if let number = after?.event.rawValue {
            numbers = numbers.map { $0.clamped(to: .min..<number + 1) }.filter { !$0.isEmpty }
        }
        guard let numbers = numbers.first else {
            spans.removeFirst()
            return []
        }
        var first = numbers.lowerBound
        if !filter.hasIndex { first = max(first, numbers.upperBound - reach) }
        // In a list of events the next row is of another event; in a list of deliveries it may be
        // of the same event.
        let behind: [SQL] =
            after.map { after in
                let isBehind: StaticString = after.endpoint == nil ? "<" : "<="
                return ["(e.id, e.created_at) \(raw: "\(isBehind)") (\(after.event), \(after.time))"]
            } ?? []
        let conditions: [SQL] =
            filter.events("e") + filter.within("e.created_at")
            + behind
            + [span.holds("e.created_at"), "e.id >= \(first)", "e.id < \(numbers.upperBound)"]
        let keys = try connection.queryInOrder(
            """
            SELECT e.id, e.created_at FROM outbox.event e WHERE \(conjunction(conditions))
             ORDER BY e.id DESC FETCH FIRST \(raw: "\(most)") ROWS WITH TIES
            """, as: EventKey.self
        )
        // When these numbers may hold more events, those are next.
        if keys.count >= most, let last = keys.last { first = last.id.rawValue }
        looked += numbers.upperBound - first
        deepest = first
        if first > numbers.lowerBound {
            self.numbers[0] = numbers.lowerBound..<first
        } else {
            self.numbers.removeFirst()
        }
        if self.numbers.isEmpty { spans.removeFirst() }
        took = ContinuousClock.now - begin
        if took * 5 < filter.patience - (ContinuousClock.now - self.began) {
            (reach, most) = (min(reach * 4, 1 << 40), max(min(most * 4, 5000), most))
        }
        return keys
    }
}

extension Connection {
    /// Rows that belong to the events that a filter asks for, as many as the list may have, and a
    /// note when not everything was searched. A filter without conditions on events reads the rows
    /// directly.
    ///
    /// - Parameter eventTime: true when since and until are about events, and not about the rows.
    mutating func walk<Row>(
        _ filter: ListFilter, eventTime: Bool, _ rows: (inout Connection, ListFilter) throws -> [Row]
    ) throws -> (rows: [Row], note: String?) {
        guard filter.asksForEvents else { return (try rows(&self, filter), nil) }
        var events = filter
        if !eventTime { (events.since, events.until, events.after) = (nil, nil, nil) }
        return try walkEvents(events, startingBefore: filter.until, isInOrder: eventTime) {
            try rows(&$0, filter.of($1))
        }
    }

    /// Rows that belong to the events of a filter, read by the keys of some events at a time.
    ///
    /// - Parameter isInOrder: false when older events may have newer rows. Then all events are
    ///   searched where an index serves the filter; otherwise the note says which ones were.
    mutating func walkEvents<Row>(
        _ filter: ListFilter, startingBefore start: Timestamp? = nil, isInOrder: Bool = true,
        _ rows: (inout Connection, [EventKey]) throws -> [Row]
    ) throws -> (rows: [Row], note: String?) {
        let at = filter.event?.createdAt
        let until = at.map { $0 + .microseconds(1) } ?? filter.until
        var walk = EventWalk(
            filter,
            spans: try spans(of: "event", since: at ?? filter.since, until: until ?? start.map { $0 + .seconds(3600) }),
            startingBefore: filter.until ?? start)
        var found: [Row] = []
        while let keys = try walk.next(on: &self) {
            if !keys.isEmpty { found += try rows(&self, keys) }
            if let end = walk.end { return (found, end) }
            if found.count < filter.limit || walk.isOver { continue }
            if isInOrder { break }
            if !filter.hasIndex || !walk.hasTime { return (found, walk.note) }
        }
        return (found, nil)
    }

    /// The numbers of events in a span of time, starting with the range that holds the newest event
    /// before a time.
    fileprivate mutating func numbers(in span: Span, before time: Timestamp?) throws -> [Range<Int64>] {
        func event(_ condition: SQL, _ order: StaticString) throws -> EventKey? {
            try queryInOrder(
                """
                SELECT e.id, e.created_at FROM outbox.event e WHERE \(span.holds("e.created_at")) AND \(condition)
                 ORDER BY e.id \(raw: "\(order)") LIMIT 1
                """, as: EventKey.self
            ).first
        }
        guard let newest = try event("true", "DESC"), let oldest = try event("true", "ASC") else { return [] }
        let all = oldest.id.rawValue..<newest.id.rawValue + 1
        guard let time, newest.createdAt >= time else { return [all] }
        // A binary search, since numbers follow the order of time except in overlapping
        // transactions. A producer that writes created_at may have assigned any time to the others:
        // they come last.
        var (low, high) = (all.lowerBound, newest.id.rawValue)
        while high - low > 1 {
            let middle = low + (high - low) / 2
            let found = try event("e.id >= \(middle)", "ASC")
            if let found, found.createdAt < time { low = max(middle, found.id.rawValue) } else { high = middle }
        }
        let end = min(high + 10_000, all.upperBound)
        return end < all.upperBound ? [all.lowerBound..<end, end..<all.upperBound] : [all]
    }
}
