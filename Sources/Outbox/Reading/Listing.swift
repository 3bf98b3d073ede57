package import Postgres
import Templates

/// Rows for a person or a program: the same query as text columns and as one JSON object per row.
package struct Listing: Sendable {
    package let columns: [String]
    package let rows: [[String?]]
    /// One JSON object per row, whose names are the columns.
    package let json: [String]
    /// A note for the reader of the list: that not everything was searched.
    package private(set) var note: String?
    /// Where the next page begins; nil when this is the last.
    package private(set) var next: ListCursor?

    package init(columns: [String], rows: [[String?]], json: [String], note: String? = nil) {
        self.columns = columns
        self.rows = rows
        self.json = json
        self.note = note
    }

    /// The same with a note.
    func noting(_ note: String?) -> Listing {
        var listing = self
        listing.note = note
        return listing
    }

    /// The same with a next page.
    func going(on next: ListCursor?) -> Listing {
        var listing = self
        listing.next = next
        return listing
    }

    /// The listing with only its first rows.
    package func prefix(_ count: Int) -> Listing {
        Listing(columns: columns, rows: Array(rows.prefix(count)), json: Array(json.prefix(count)), note: note)
    }

    /// The value of a column in the last row.
    func last(_ column: String) -> String? {
        guard let index = columns.firstIndex(of: column), let row = rows.last else { return nil }
        return row[index]
    }

    /// The value of a column in the first row.
    package func first(_ column: String) -> String? {
        guard let index = columns.firstIndex(of: column), let row = rows.first else { return nil }
        return row[index]
    }
}

extension Timestamp {
    /// Reads a time in the form of a listing: PostgreSQL's ISO form, in UTC.
    init?(listed text: String) {
        if text == "infinity" { self = .distantFuture; return }
        guard text.hasSuffix("+00") else { return nil }
        self.init(rfc3339: text.dropLast(3) + "Z")
    }
}

extension Connection {
    /// Runs a query and keeps every column as text, and every row as JSON. Times in it are RFC 3339
    /// in UTC.
    package mutating func listing(_ query: SQL) throws -> Listing {
        let rows = try self.query("SELECT row_to_json(r)::text, r.* FROM (\(query)) r", asText: true)
        let columns = Array(rows.columns.dropFirst())
        let types = rows.types
        let times = columns.indices.filter { types[$0 + 1] == Timestamp.postgresType }
        let read = try rows.map { row throws(PostgresError) -> (String, [String?]) in
            var values: [String?] = []
            for column in columns.indices { values.append(try row[column + 1]) }
            return (try row[0], values)
        }
        return Listing(
            columns: columns, rows: read.map(\.1),
            json: read.map { json, values in
                times.isEmpty ? json : Self.writingTimes(json, times.map { ($0, values[$0]) })
            })
    }

    /// The object with its times in six digits of fraction and `Z`, and null for no end: PostgreSQL
    /// drops zeros at the end, and writes infinity and an offset.
    private static func writingTimes(_ object: String, _ times: [(place: Int, text: String?)]) -> String {
        guard let read = try? JSON(object.utf8), case .object(let members) = read.kind else { return object }
        var json: [UInt8] = []
        var start = read.source.startIndex
        for (place, text) in times {
            guard let text, members.indices.contains(place) else { continue }
            let value = members[place].value.source
            json += read.source[start..<value.startIndex]
            let time = Timestamp(listed: text)
            if let time, time != .distantFuture, time != .distantPast {
                json.appendJSONString("\(time)".utf8)
            } else {
                json += (text.hasSuffix("infinity") ? "null" : String(decoding: value, as: UTF8.self)).utf8
            }
            start = value.endIndex
        }
        json += read.source[start...]
        return String(decoding: json, as: UTF8.self)
    }
}
