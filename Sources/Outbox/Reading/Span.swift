import Postgres

/// From one time on, up to another; nil where there is no bound.
struct Span: Sendable {
    let begin: Timestamp?
    let end: Timestamp?

    /// The condition that a time in a column lies in the span.
    func holds(_ column: String) -> SQL {
        switch (begin, end) {
        case (let begin?, let end?): "\(raw: column) >= \(begin) AND \(raw: column) < \(end)"
        case (let begin?, nil): "\(raw: column) >= \(begin)"
        case (nil, let end?): "\(raw: column) < \(end)"
        case (nil, nil): "true"
        }
    }

    func contains(_ time: Timestamp) -> Bool { (begin.map { $0 <= time } ?? true) && (end.map { time < $0 } ?? true) }

    /// True when part of the span lies from one time on and before another.
    func overlaps(since: Timestamp?, until: Timestamp?) -> Bool {
        if let since, let end, end <= since { return false }
        if let until, let begin, begin >= until { return false }
        return true
    }

    /// The span in parts, newest first, each eight times as long as the one before: the first is
    /// the last minute before a time.
    func parts(before now: Timestamp) -> [Span] {
        var (parts, end, length) = ([Span](), self.end, Duration.seconds(60))
        while true {
            let begin = min(end ?? now, now) + (.zero - length)
            guard length < .seconds(86_400 * 365), self.begin.map({ begin > $0 }) ?? true else {
                return parts + [Span(begin: self.begin, end: end)]
            }
            parts.append(Span(begin: begin, end: end))
            (end, length) = (begin, length * 8)
        }
    }
}

extension Connection {
    /// Runs a statement in the order of an index, up to a limit, and without sorting everything.
    /// Before a new partition has statistics, the planner assumes that it is small.
    mutating func queryInOrder<Value: RowDecodable>(_ statement: SQL, as type: Value.Type) throws -> [Value] {
        if isInTransaction { return try query(statement).all(as: type) }
        return try transaction { connection in
            try connection.query("SET LOCAL enable_sort = off")
            return try connection.query(statement).all(as: type)
        }
    }

    /// The spans that overlap a range of time, newest first, each of at most sixteen partitions of
    /// a log: the present and the future first, then four, then sixteen each time. A search without
    /// a known time scans one span after the other, each in a separate statement. However many
    /// partitions there are, no statement locks more of them.
    ///
    /// - Parameter isOfEvents: the beginning is an hour before an event. An event with a time in
    ///   the future does not tell when it was tried.
    mutating func spans(
        of log: String, since: Timestamp? = nil, until: Timestamp? = nil, isOfEvents: Bool = false
    ) throws -> [Span] {
        var since = since
        if isOfEvents, let bound = since {
            let isToCome = try query("SELECT \(bound + .seconds(3600)) > clock_timestamp()").one(Bool.self)
            if isToCome { since = nil }
        }
        let lower = try query(
            """
            SELECT p.lower, p.lower > clock_timestamp() FROM outbox.partitions p
             WHERE p.parent = \(log) AND p.lower IS NOT NULL ORDER BY p.lower DESC
            """
        ).all(Timestamp.self, Bool.self)
        var (bounds, place, size) = ([Timestamp](), min(lower.prefix { $0.1 }.count, 15), 4)
        while place < lower.count {
            bounds.append(lower[place].0)
            (place, size) = (place + size, 16)
        }
        return zip([nil] + bounds, bounds + [nil]).map { Span(begin: $1, end: $0) }
            .filter { $0.overlaps(since: since, until: until) }
    }
}
