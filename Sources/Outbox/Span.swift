import Postgres

/// From a time on, up to another; nil where there is no bound.
struct Span: Sendable {
    let begin: Timestamp?
    let end: Timestamp?

    /// What must hold of a time in a column.
    func holds(_ column: String) -> SQL {
        switch (begin, end) {
        case (let begin?, let end?): "\(raw: column) >= \(begin) AND \(raw: column) < \(end)"
        case (let begin?, nil): "\(raw: column) >= \(begin)"
        case (nil, let end?): "\(raw: column) < \(end)"
        case (nil, nil): "true"
        }
    }
}

extension Connection {
    /// All time, newest first, in spans of sixteen partitions of a log: whoever does not know when something was looks through one after
    /// the other, each in a statement of its own. However many partitions there are, no statement locks more of them.
    mutating func spans(of log: String) throws -> [Span] {
        let begins = try query(
            """
            SELECT p.lower FROM outbox.partitions p WHERE p.parent = \(log) AND p.lower IS NOT NULL ORDER BY p.lower DESC
            """
        ).map { row throws(PostgresError) in try row[0] as Timestamp }
        let bounds = stride(from: 15, to: begins.count, by: 16).map { begins[$0] }
        return zip([nil] + bounds, bounds + [nil]).map { Span(begin: $1, end: $0) }
    }
}
