import Bytewise
import Outbox
import Postgres

/// The filters of lists, written as on the command line.
struct ListQuery: Sendable {
    static let paging = ["limit", "after"]
    static let filters =
        ["endpoint", "event_type", "change_type", "customer", "transaction_id", "event_id", "state", "since", "until"]
        + paging

    private let call: Call
    private let states: [String]

    init(_ call: Call, states: [String] = []) { (self.call, self.states) = (call, states) }

    /// The largest number of rows.
    var limit: Int {
        get throws {
            guard let text = call.parameter("limit") else { return 100 }
            guard let limit = Int(text), (1...1000).contains(limit) else {
                throw Refusal(.invalidValue, "limit must be 1 to 1000", at: .parameter("limit"))
            }
            return limit
        }
    }

    /// Where the list continues; nil at its beginning.
    func place<Place>(_ read: (String) -> Place?) throws -> Place? {
        guard let text = call.parameter("after") else { return nil }
        guard let place = read(text) else {
            throw Problem(
                .invalidCursor, "this is no place in a list", hint: "Take it from the page before",
                at: .parameter("after"), .format)
        }
        return place
    }

    /// The filter, with names looked up.
    func resolve(_ connection: inout Connection) throws -> ListFilter {
        var filter = ListFilter()
        filter.endpoint = try call.parameter("endpoint").map { try connection.endpointID($0) }
        filter.eventType = call.parameter("event_type")
        filter.changeType = call.parameter("change_type")
        filter.customerID = call.parameter("customer")
        if let text = call.parameter("transaction_id") {
            guard let id = UniqueID(text) else {
                throw Refusal(.invalidValue, "transaction_id must be a UUID", at: .parameter("transaction_id"))
            }
            filter.transactionID = id
        }
        filter.event = try call.parameter("event_id").map { try connection.eventReference($0) }
        if let state = call.parameter("state") {
            guard states.contains(where: { ExactText($0) == ExactText(state) }) else {
                throw Refusal(
                    .invalidValue, "\"\(state.prefix(64))\" is not a state",
                    hint: states.isEmpty ? nil : "Expected one of: \(states.joined(separator: ", "))",
                    at: .parameter("state"))
            }
            filter.state = state
        }
        filter.since = try time("since", &connection)
        filter.until = try time("until", &connection)
        filter.limit = try limit
        filter.after = try place { ListCursor($0) }
        return filter
    }

    /// A time, or a span before now by the database's clock, as in `-1h`.
    private func time(_ name: String, _ connection: inout Connection) throws -> Timestamp? {
        guard let text = call.parameter(name) else { return nil }
        if text.hasPrefix("-"), let span = Duration(written: String(text.dropFirst())) {
            return try connection.query("SELECT clock_timestamp()").one(Timestamp.self) + (.zero - span)
        }
        guard let time = Timestamp(rfc3339: text) else {
            throw Refusal(
                .invalidValue, "\(name) must be a time, as in 2026-11-26T17:36:58Z, or a span before now, as in -1h",
                at: .parameter(name))
        }
        return time
    }

    /// The page, and where the next one begins.
    func answer(_ listing: Listing) -> Answer {
        answer(listing.json, next: listing.next?.description, note: listing.note)
    }

    func answer(_ items: [String], next: String?, note: String? = nil) -> Answer {
        var page = JSONObject()
        page.add("items", raw: "[\(items.joined(separator: ","))]".utf8)
        page.add("next", next)
        if let note { page.add("note", note) }
        let answer = Answer.json(page.closed)
        guard let next else { return answer }
        let kept = call.target.parameters.filter { $0.name != "after" } + [("after", next)]
        let query = kept.map { "\($0.name)=\(Self.encoded($0.value))" }.joined(separator: "&")
        return answer.with("Link", "<\(call.target.path)?\(query)>; rel=\"next\"")
    }

    /// RFC 3986 2.3: all but unreserved characters.
    private static func encoded(_ text: String) -> String {
        text.utf8.map { byte in
            let character = Character(Unicode.Scalar(byte))
            let isPlain = byte < 0x80 && (character.isLetter || character.isNumber || "-._~".contains(character))
            return isPlain ? String(character) : "%" + (byte < 16 ? "0" : "") + String(byte, radix: 16, uppercase: true)
        }.joined()
    }
}
