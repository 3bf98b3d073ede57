import Bytewise
import Operator
import Outbox
import Postgres
import StandardWebhooks
import Templates

/// Endpoints: their configuration, under a strong ETag, and what an operator does with them.
enum EndpointRoutes {
    static let all: [Route] = [
        Route("GET", "/v1/endpoints", "endpoint.list", .scope(.read), parameters: ["search"] + ListQuery.paging, list),
        Route("POST", "/v1/endpoints", "endpoint.create", .scope(.admin)) { call in
            try await create(EndpointConfiguration(json: call.body), call)
        },
        Route("GET", "/v1/endpoints/{endpoint}", "endpoint.get", .scope(.read)) { call in
            answer(try await call.outbox.endpoints.document(call.name("endpoint")))
        },
        Route("PUT", "/v1/endpoints/{endpoint}", "endpoint.replace", .scope(.admin), replace),
        Route(
            "PATCH", "/v1/endpoints/{endpoint}", "endpoint.patch", .scope(.admin),
            mediaTypes: ["application/merge-patch+json", "application/json"], patch),
        Route(
            "DELETE", "/v1/endpoints/{endpoint}", "endpoint.delete", .scope(.admin), parameters: ["waiting", "reason"],
            delete),
        Route("PUT", "/v1/endpoints/{endpoint}/pause", "endpoint.pause", .scope(.operate), pause),
        Route("PUT", "/v1/endpoints/{endpoint}/resume", "endpoint.resume", .scope(.operate)) { call in
            let members = try call.object(["rate"])
            let rate = try members.text("rate").map { try RateLimit($0) }
            return try await changed(call) { _ = try await $0.resume($1, rate: rate) }
        },
        Route("PUT", "/v1/endpoints/{endpoint}/enable", "endpoint.enable", .scope(.operate)) { call in
            _ = try call.object([])
            return try await changed(call) { _ = try await $0.enable($1) }
        },
        Route("PUT", "/v1/endpoints/{endpoint}/disable", "endpoint.disable", .scope(.operate)) { call in
            let reason = try call.object(["reason"]).text("reason")
            return try await changed(call) { _ = try await $0.disable($1, reason: reason) }
        },
    ]

    private static func answer(_ document: (json: String, revision: Int)) -> Answer {
        .json(document.json.utf8).with("ETag", "\"\(document.revision)\"")
    }

    private static func list(_ call: Call) async throws -> Answer {
        let query = ListQuery(call)
        let after = try query.place { UniqueID($0).map(EndpointID.init) }
        let (documents, next) = try await call.outbox.endpoints.documents(
            search: call.parameter("search"), limit: query.limit, after: after)
        return query.answer(documents, next: next?.description)
    }

    private static func create(_ configuration: EndpointConfiguration, _ call: Call) async throws -> Answer {
        let secret = SigningSecret.generate()
        let created = try await call.outbox.endpoints.create(configuration, secret: secret)
        guard let id = created.first("id") else { throw Problem(.stateConflict, "the endpoint was not created") }
        let document = try await call.outbox.endpoints.document(id)
        var text: [UInt8] = []
        text.appendJSONString(secret.revealed.utf8)
        let json = "\(document.json.dropLast()),\"signing_secret\":\(String(decoding: text, as: UTF8.self))}"
        var answer = answer((json, document.revision)).with("Location", "/v1/endpoints/\(id)")
        answer.status = 201
        return answer
    }

    /// The revision that the caller has seen; nil for any. A change without it would overwrite what
    /// somebody else has done meanwhile.
    private static func expected(_ call: Call) throws -> Int? {
        guard let field = call.ifMatch else {
            throw Refusal(
                .preconditionRequired, "this takes If-Match with the ETag that you have seen",
                hint: "Get the endpoint, and send its ETag; * stands for any", at: .header("If-Match"))
        }
        if field.trimmed == "*" { return nil }
        let text = field.trimmed
        // What was never an ETag of ours is the ETag of no state that there is.
        guard text.hasPrefix("\""), text.hasSuffix("\""), let revision = Int(text.dropFirst().dropLast()) else {
            return -1
        }
        return revision
    }

    private static func replace(_ call: Call) async throws -> Answer {
        let name = call.name("endpoint")
        var body = call.body
        if case .object(let members) = try Call.json(call.body).kind, !members.contains(where: { $0.name == "name" }),
            UniqueID(name) == nil
        {
            // The path has said it.
            var named = JSONObject()
            named.add("name", name)
            for (name, value) in members { named.add(name.text, raw: value.source) }
            body = named.closed
        }
        let wanted = try EndpointConfiguration(json: body)
        let revision = try call.ifMatch.flatMap { _ in try expected(call) }
        do {
            return answer(
                try await call.outbox.endpoints.update(name, expecting: revision) { configuration in
                    // An equal configuration changes nothing, whatever was seen.
                    if call.ifMatch == nil, try !wanted.isEqual(to: configuration) { _ = try expected(call) }
                    configuration = wanted
                })
        } catch let problem as Problem where problem.code == .notFound && UniqueID(name) == nil {
            guard ExactText(wanted.name) == ExactText(name) else {
                throw Problem(.invalidValue, "the body names another endpoint than the path", at: .member("name"))
            }
            if call.ifMatch != nil {
                throw Problem(.etagMismatch, "there is no endpoint that If-Match could match", at: .header("If-Match"))
            }
            return try await create(wanted, call)
        }
    }

    private static func patch(_ call: Call) async throws -> Answer {
        let revision = try expected(call)
        let patch = call.body
        _ = try Call.json(patch)
        return answer(
            try await call.outbox.endpoints.update(call.name("endpoint"), expecting: revision) {
                $0 = try $0.patched(patch)
            })
    }

    private static func delete(_ call: Call) async throws -> Answer {
        let revision = try expected(call)
        let waiting = call.parameter("waiting")
        guard waiting == nil || waiting == "cancel" else {
            throw Refusal(.invalidValue, "waiting can only be cancel", at: .parameter("waiting"))
        }
        try await call.outbox.endpoints.delete(
            call.name("endpoint"), expecting: revision, cancelsWaiting: waiting == "cancel",
            reason: call.parameter("reason"))
        return .empty
    }

    private static func pause(_ call: Call) async throws -> Answer {
        let members = try call.object(["reason", "from", "until", "resume_rate"])
        guard let reason = try members.text("reason"), !reason.isEmpty else {
            throw Problem(
                .invalidValue, "a pause needs a reason", hint: "Other operators will ask", at: .member("reason"),
                .required)
        }
        let (from, until) = (try members.time("from"), try members.time("until"))
        let rate = try members.text("resume_rate").map { try RateLimit($0) }
        return try await changed(call) {
            _ = try await $0.pause($1, from: from, until: until, rate: rate, reason: reason)
        }
    }

    private static func changed(
        _ call: Call, _ change: (EndpointUseCases, String) async throws -> Void
    ) async throws -> Answer {
        try await change(call.outbox.endpoints, call.name("endpoint"))
        return answer(try await call.outbox.endpoints.document(call.name("endpoint")))
    }
}
