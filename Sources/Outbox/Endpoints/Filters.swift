package import Postgres

/// The result of an endpoint's filter for an event.
package enum FilterVerdict: Sendable, Equatable {
    case holds
    case holdsNot
    /// The filter failed, and why.
    case error(String)
}

extension Connection {
    /// Applies filters to events, in the order of the questions (`outbox.ask_filters`).
    ///
    /// - Parameter limit: how long all of them together may take, since a path can take forever.
    ///   Past the limit it throws a `PostgresError` with `isOutOfTime` true.
    package mutating func askFilters(
        _ questions: [(event: EventKey, filter: String)], within limit: Duration
    ) throws -> [FilterVerdict] {
        var verdicts = Array(repeating: FilterVerdict.error("the event is not there"), count: questions.count)
        let answers = try query(
            """
            SELECT place, holds, error FROM outbox.ask_filters(
                \(questions.map(\.event.id)), \(questions.map(\.event.createdAt)), \(questions.map(\.filter)))
            """, within: limit
        ).all(Int.self, Bool?.self, String?.self)
        for (place, holds, error) in answers where (1...questions.count).contains(place) {
            verdicts[place - 1] = error.map { .error($0) } ?? (holds == true ? .holds : .holdsNot)
        }
        return verdicts
    }

    /// Refuses a filter that is not a SQL/JSON path, or has variables: they would never get values.
    mutating func checkFilter(_ filter: String?) throws {
        guard let filter else { return }
        guard (1...4096).contains(filter.utf8.count) else {
            throw Problem(.filterInvalid, "the filter must have 1 to 4096 bytes")
        }
        try query("SAVEPOINT filter")
        // Evaluated on an empty document, since PostgreSQL reports a missing variable only then.
        do throws(PostgresError) {
            try query("SELECT jsonb_path_query_first('{}', \(filter)::jsonpath, '{}', true)")
        } catch {
            guard error.sqlState?.hasPrefix("42") == true || error.sqlState?.hasPrefix("22") == true else {
                throw error
            }
            try query("ROLLBACK TO SAVEPOINT filter")
            throw Problem(
                .filterInvalid, "the filter is not a SQL/JSON path: \(error)",
                hint: #"Expected something like $.after.amount > 10 or $.change_type == "Create""#)
        }
    }
}

extension PostgresError {
    /// True when a statement was stopped because it took too long.
    package var isOutOfTime: Bool { kind == .deadline || sqlState == "57014" }
}
