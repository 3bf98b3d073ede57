import Operator
import Outbox
import Postgres

/// Deliveries, the requests that were sent for them, and what was given up.
enum DeliveryRoutes {
    private static let states = ["batched", "waiting", "paused", "delivered", "dead", "cancelled"]

    static let all: [Route] = [
        Route("GET", "/v1/deliveries", "delivery.list", .scope(.read), parameters: ListQuery.filters) { call in
            let query = ListQuery(call, states: states)
            return query.answer(try await call.outbox.deliveries.list { try query.resolve(&$0) })
        },
        Route("GET", "/v1/deliveries/{delivery}", "delivery.get", .scope(.read)) { call in
            try one(try await call.outbox.deliveries.get(reference(call)))
        },
        Route("POST", "/v1/deliveries/{delivery}/retry", "delivery.retry", .scope(.operate)) { call in
            let reason = try call.object(["reason"]).text("reason")
            return try one(try await call.outbox.deliveries.retry(reference(call), reason: reason))
        },
        Route("POST", "/v1/deliveries/{delivery}/cancel", "delivery.cancel", .scope(.operate)) { call in
            let reason = try call.object(["reason"]).text("reason")
            return try one(try await call.outbox.deliveries.cancel(reference(call), reason: reason))
        },
        Route("GET", "/v1/attempts", "attempt.list", .scope(.read), parameters: ListQuery.filters) { call in
            let query = ListQuery(call, states: ["success", "failure"])
            return query.answer(try await call.outbox.attempts.list { try query.resolve(&$0) })
        },
        Route("GET", "/v1/dead", "dead.list", .scope(.read), parameters: ListQuery.filters) { call in
            let query = ListQuery(call)
            return query.answer(try await call.outbox.dead.list { try query.resolve(&$0) })
        },
        Route("GET", "/v1/dead/{delivery}", "dead.get", .scope(.read)) { call in
            try one(try await call.outbox.dead.get(reference(call)))
        },
    ]

    /// `<event>:<endpoint>`, each by its number or name.
    private static func reference(_ call: Call) throws -> DeliveryReference {
        let parts = call.name("delivery").split(separator: ":", maxSplits: 1).map(String.init)
        guard parts.count == 2 else {
            throw Problem(.notFound, "there is no such delivery: it is named as <event>:<endpoint>")
        }
        return DeliveryReference(event: parts[0], endpoint: parts[1])
    }

    private static func one(_ listing: Listing) throws -> Answer {
        guard let row = listing.json.first else { throw Problem(.notFound, "there is no such row") }
        return .json(row.utf8)
    }
}
