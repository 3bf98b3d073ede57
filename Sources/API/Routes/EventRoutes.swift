import Bytewise
import Crypto
import Operator
import Outbox
import Postgres
import Templates

/// Events: published, listed, and given out byte for byte.
enum EventRoutes {
    static let all: [Route] = [
        Route(
            "POST", "/v1/events", "event.publish", .scope(.publish), maxBody: 16 << 20,
            mediaTypes: ["application/json", "application/jsonl"], publish),
        Route("GET", "/v1/events", "event.list", .scope(.read), parameters: ListQuery.filters) { call in
            let query = ListQuery(call)
            return query.answer(try await call.outbox.events.list { try query.resolve(&$0) })
        },
        Route("GET", "/v1/events/{event}", "event.get", .scope(.read), parameters: ["include"]) { call in
            let includes = try included(call, among: ["body"])
            return .json(try document(try await call.outbox.events.get(call.name("event")), body: !includes.isEmpty))
        },
        Route("GET", "/v1/events/{event}/before", "event.before", .scope(.read)) { try await body($0, "before") },
        Route("GET", "/v1/events/{event}/after", "event.after", .scope(.read)) { try await body($0, "after") },
        Route("GET", "/v1/transactions/{transaction}", "event.trace", .scope(.read)) { call in
            guard let id = UniqueID(call.name("transaction")) else {
                throw Problem(.notFound, "there is no such transaction: it is named by a UUID")
            }
            return .json(try await call.outbox.events.trace(id).json.utf8)
        },
    ]

    /// What the query asks for beside the usual members.
    static func included(_ call: Call, among known: [String]) throws -> [String] {
        let asked = call.parameter("include")?.split(separator: ",").map(String.init) ?? []
        if let other = asked.first(where: { !known.contains($0) }) {
            throw Refusal(
                .invalidValue, "\"\(other.prefix(64))\" cannot be included",
                hint: "Expected some of: \(known.joined(separator: ", "))", at: .parameter("include"))
        }
        return asked
    }

    private static let bodies = ["before", "after", "headers"]

    private static func document(_ event: Listing, body: Bool) throws -> [UInt8] {
        guard let text = event.json.first else { throw Problem(.notFound, "there is no such event") }
        if body { return Array(text.utf8) }
        guard case .object(let members) = try JSON(text.utf8).kind else { return Array(text.utf8) }
        var shown = JSONObject()
        for (name, value) in members where !bodies.contains(name.text) { shown.add(name.text, raw: value.source) }
        return shown.closed
    }

    /// The stored bytes; nothing for null.
    private static func body(_ call: Call, _ column: String) async throws -> Answer {
        let event = try await call.outbox.events.get(call.name("event"))
        guard let text = event.first(column) else { return .empty }
        return .json(text.utf8)
    }

    // MARK: Publishing

    private static let members = [
        "type", "change_type", "customer_id", "identity", "transaction_id", "ordering_key", "dedup_key", "deliver_at",
        "occurred_at", "before", "after", "headers",
    ]

    private static func publish(_ call: Call) async throws -> Answer {
        let (wishes, areSeveral) = try wishes(call)
        let key = try call.idempotencyKey.map { key in
            guard (1...255).contains(key.utf8.count), key.utf8.allSatisfy({ (0x21...0x7E).contains($0) }) else {
                throw Refusal(
                    .invalidValue, "an Idempotency-Key has 1 to 255 visible ASCII characters",
                    at: .header("Idempotency-Key"))
            }
            let request = SHA256.hash(data: Array("\(call.target.path) \(call.contentType ?? "")\n".utf8) + call.body)
            return IdempotencyKey(
                holder: call.token.map { "token/\($0.id)" } ?? "", key: key, request: Array(request))
        }
        let (text, isRepeated) = try await call.outbox.events.publish(
            wishes, identity: call.token?.identity, once: key
        ) { events in
            let items = events.map { event in
                var item = JSONObject()
                item.add("id", Int(event.id.rawValue))
                item.add("webhook_id", event.webhookID)
                item.add("transaction_id", event.transactionID?.description)
                item.add("deduplicated", event.isRepeated)
                return String(decoding: item.closed, as: UTF8.self)
            }
            return areSeveral ? "{\"items\":[\(items.joined(separator: ","))]}" : items.first ?? "{}"
        }
        var answer = Answer.json(text.utf8, status: isRepeated ? 200 : 201)
        if isRepeated { answer = answer.with("Idempotency-Replayed", "true") }
        let published = try JSON(text.utf8)
        let first = published.value(at: areSeveral ? ["items", "0"] : [])
        if let transaction = first?.value(at: ["transaction_id"]), !transaction.isNull {
            answer = answer.with("Outbox-Transaction-Id", transaction.text)
        }
        guard !areSeveral, let id = first?.value(at: ["webhook_id"]), !id.isNull else { return answer }
        return answer.with("Location", "/v1/events/\(id.text)")
    }

    /// The largest number of events in one request.
    private static let most = 10_000

    private static func wishes(_ call: Call) throws -> (wishes: [EventWish], areSeveral: Bool) {
        let isLines = call.contentType?.lowercased().hasPrefix("application/jsonl") ?? false
        let elements: [JSON]
        if isLines {
            let lines = call.body.split(separator: UInt8(ascii: "\n")).filter { line in
                line.contains { $0 != 0x20 && $0 != 0x09 && $0 != 0x0D }
            }
            elements = try lines.map { try Call.json($0) }
        } else {
            let json = try Call.json(call.body)
            guard case .array(let found) = json.kind else { return ([try wish(json, call, at: [])], false) }
            elements = found
        }
        guard (1...most).contains(elements.count) else {
            throw Refusal(.invalidValue, "1 to \(most) events are published at a time")
        }
        return (try elements.enumerated().map { try wish($1, call, at: ["\($0)"]) }, true)
    }

    private static func wish(_ json: JSON, _ call: Call, at path: [String]) throws -> EventWish {
        let members = try call.members(of: json, members, at: path)
        guard let type = try members.text("type", at: path), !type.isEmpty else {
            throw Problem(.invalidValue, "an event needs a type", at: .member(path + ["type"]), .required)
        }
        func raw(_ name: String) -> String? {
            members[name].flatMap { $0.isNull ? nil : String(decoding: $0.source, as: UTF8.self) }
        }
        var wish = EventWish(type: type)
        wish.changeType = try members.text("change_type", at: path)
        wish.customerID = try members.text("customer_id", at: path)
        wish.identity = try members.text("identity", at: path)
        wish.transactionID = try members.uuid("transaction_id", at: path)
        wish.orderingKey = try members.text("ordering_key", at: path)
        wish.dedupKey = try members.text("dedup_key", at: path)
        wish.deliverAt = try members.time("deliver_at", at: path)
        wish.occurredAt = try members.time("occurred_at", at: path)
        (wish.before, wish.after, wish.headers) = (raw("before"), raw("after"), raw("headers"))
        return wish
    }
}
