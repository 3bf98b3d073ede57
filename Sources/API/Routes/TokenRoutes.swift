import Operator
import Outbox
import Postgres
import Templates

/// Tokens. Nobody gives a token more than their own has.
enum TokenRoutes {
    static let all: [Route] = [
        Route("GET", "/v1/tokens", "token.list", .scope(.admin), parameters: ListQuery.paging) { call in
            let query = ListQuery(call)
            let (tokens, next) = try await call.outbox.tokens.list(
                limit: query.limit, after: query.place { UniqueID($0) })
            return query.answer(tokens.json, next: next?.description)
        },
        Route("POST", "/v1/tokens", "token.create", .scope(.admin), create),
        Route("GET", "/v1/tokens/{token}", "token.get", .scope(.admin)) { call in
            let found = try await call.outbox.tokens.get(try id(call))
            return .json((found.json.first ?? "{}").utf8)
        },
        Route("DELETE", "/v1/tokens/{token}", "token.revoke", .scope(.admin), parameters: ["reason"]) { call in
            try await call.outbox.tokens.revoke(try id(call), reason: call.parameter("reason"))
            return .empty
        },
    ]

    private static func id(_ call: Call) throws -> UniqueID {
        guard let id = UniqueID(call.name("token")) else {
            throw Problem(.notFound, "there is no such token: it is named by a UUID")
        }
        return id
    }

    private static func create(_ call: Call) async throws -> Answer {
        let members = try call.object(["name", "identity", "scopes", "rate", "expires_at"])
        guard let name = try members.text("name") else {
            throw Problem(.invalidValue, "a token needs a name", at: .member("name"), .required)
        }
        guard case .array(let elements) = members["scopes"]?.kind else {
            throw Problem(.invalidValue, "scopes must be a list", at: .member("scopes"), .type)
        }
        let scopes = try elements.enumerated().map { place, element in
            try Token.Scope(named: element.text, at: .member(["scopes", "\(place)"]))
        }
        if let token = call.token, let more = scopes.first(where: { !token.allows($0) }) {
            throw Refusal(.forbidden, "your token does not have the scope \(more.rawValue), and cannot give it")
        }
        var wish = TokenWish(name: name, scopes: Set(scopes))
        wish.identity = try members.text("identity")
        wish.rate = try members.text("rate").map { try RateLimit($0) }
        wish.expiresAt = try members.time("expires_at")
        let (row, token) = try await call.outbox.tokens.create(wish)
        guard let json = row.json.first, let id = row.first("id") else {
            throw Problem(.stateConflict, "the token was not created")
        }
        return Answer.json("\(json.dropLast()),\"token\":\"\(token.text)\"}".utf8, status: 201)
            .with("Location", "/v1/tokens/\(id)")
    }
}
