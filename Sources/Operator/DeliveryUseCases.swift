package import Outbox
package import OutboxPublishing
package import Postgres
package import Transport

/// Events on their way to endpoints.
package struct DeliveryUseCases: Sendable {
    private let host: Operator

    init(_ host: Operator) { self.host = host }

    package func list(
        _ filter: @escaping @Sendable (inout Connection) throws -> ListFilter
    ) async throws -> Listing { try await host.run { try $0.listDeliveries(try filter(&$0)) } }

    package func get(_ delivery: DeliveryReference) async throws -> Listing {
        try await host.run { try $0.delivery(try delivery.resolve(&$0)) }
    }

    /// Why it has not gone out.
    package func explain(_ delivery: DeliveryReference) async throws -> [Explanation] {
        try await host.run { try $0.explain(try delivery.resolve(&$0)) }
    }

    /// Makes a waiting delivery due now, and returns its state.
    package func retry(_ delivery: DeliveryReference, reason: String?) async throws -> Listing {
        try await changing(delivery) { try $0.retryDelivery($1, reason: reason, by: $2) }
    }

    /// Takes a waiting delivery out of its lane, and returns its state.
    package func cancel(_ delivery: DeliveryReference, reason: String?) async throws -> Listing {
        try await changing(delivery) { try $0.cancelDelivery($1, reason: reason, by: $2) }
    }

    fileprivate func changing(
        _ delivery: DeliveryReference,
        _ change: @escaping @Sendable (inout Connection, DeliveryID, Actor) throws -> Void
    ) async throws -> Listing {
        try await host.run { [actor = host.actor] connection in
            let id = try delivery.resolve(&connection)
            try change(&connection, id, actor)
            return try connection.delivery(id)
        }
    }
}

/// Dead letters: deliveries that were given up.
package struct DeadLetterUseCases: Sendable {
    private let host: Operator

    init(_ host: Operator) { self.host = host }

    /// The selection of dead letters.
    package enum Many: Sendable {
        case all
        case of(endpoint: String?, fingerprint: String?)
    }

    package func list(
        _ filter: @escaping @Sendable (inout Connection) throws -> ListFilter
    ) async throws -> Listing { try await host.run { try $0.listDeadLetters(try filter(&$0)) } }

    package func get(_ delivery: DeliveryReference) async throws -> Listing {
        try await host.run { try $0.deadLetter(try delivery.resolve(&$0)) }
    }

    /// Drops a dead letter for good, and returns its state.
    package func drop(_ delivery: DeliveryReference, reason: String?) async throws -> Listing {
        try await host.deliveries.changing(delivery) { try $0.dropDeadLetter($1, reason: reason, by: $2) }
    }

    /// Puts a dead letter back into its lane; returns how many, which is one.
    package func replay(_ delivery: DeliveryReference, reason: String?) async throws -> Int {
        try await host.run { [actor = host.actor] connection in
            let id = try delivery.resolve(&connection)
            let count = try connection.replayDeadLetters(id, reason: reason, by: actor)
            if count == 0 { _ = try connection.deadLetter(id) }
            return count
        }
    }

    /// Puts many dead letters back, and returns how many. It needs a reason, since other operators
    /// will ask.
    package func replay(_ many: Many, reason: String?) async throws -> Int {
        guard let reason, !reason.isEmpty else {
            throw Problem(
                .invalidValue, "many dead letters are replayed only with a reason", hint: "Give one, for the audit log")
        }
        let (endpoint, fingerprint): (String?, String?) =
            switch many {
            case .all: (nil, nil)
            case .of(let endpoint, let fingerprint): (endpoint, fingerprint)
            }
        if case .of(nil, nil) = many {
            throw Problem(
                .filterRequired, "it is not said which dead letters", hint: "Name an endpoint, a fingerprint, or all")
        }
        return try await host.run { [actor = host.actor] connection in
            let id = try endpoint.map { try connection.endpointID($0) }
            return try connection.replayDeadLetters(
                nil, endpoint: id, fingerprint: fingerprint, reason: reason, by: actor)
        }
    }
}

/// The requests that were sent.
package struct AttemptUseCases: Sendable {
    private let host: Operator

    init(_ host: Operator) { self.host = host }

    package func list(
        _ filter: @escaping @Sendable (inout Connection) throws -> ListFilter
    ) async throws -> Listing { try await host.run { try $0.listAttempts(try filter(&$0)) } }

    /// The request of a delivery as it would be sent now, and the endpoint that it is for.
    ///
    /// - Parameter reveals: its secrets are shown, which is audited.
    package func request(
        _ delivery: DeliveryReference, reveals: Bool, reason: String?
    ) async throws -> (endpoint: Endpoint, request: HTTPRequest) {
        let keyring = try host.keyring()
        return try await host.run { [actor = host.actor] connection in
            let id = try delivery.resolve(&connection)
            let endpoint = try connection.endpoint(id.endpoint, keyring: keyring)
            if reveals {
                try connection.audit("attempt.curl.reveal", endpoint: id.endpoint, reason: reason, by: actor)
            }
            let (now, instance) = try connection.endpointTestContext()
            let event = try connection.readEvent(id.event)
            do {
                let webhookID = id.event.webhookID(instance: instance)
                return (
                    endpoint,
                    try HTTPRequest.delivery(of: event, to: endpoint, number: 1, webhookID: webhookID, at: now).request
                )
            } catch { throw Problem(.invalidValue, "the request cannot be built: \(error)") }
        }
    }
}

/// Published events.
package struct EventUseCases: Sendable {
    private let host: Operator

    init(_ host: Operator) { self.host = host }

    /// Publishes an event and returns its number and its state.
    package func publish(_ event: NewEvent) async throws -> (id: EventID, event: Listing) {
        try await host.run { connection in
            let id = try connection.publish(event)
            return (id, try connection.event(try connection.eventKey("\(id)")))
        }
    }

    /// Publishes events, all or none, and returns the answer that the closure makes of them; the
    /// answer of the first time when the key is known.
    package func publish(
        _ events: [EventWish], identity: String?, once key: IdempotencyKey?,
        answering answer: @escaping @Sendable ([PublishedEvent]) -> String
    ) async throws -> (answer: String, isRepeated: Bool) {
        if let place = events.firstIndex(where: { $0.type.utf8.starts(with: "outbox.".utf8) }) {
            throw Problem(
                .reservedType, "types that begin with outbox. are the service's own",
                hint: "Choose another beginning, such as the name of your application",
                at: .member((events.count > 1 ? ["\(place)"] : []) + ["type"]))
        }
        return try await host.run { connection in
            try connection.once(key) {
                answer(try $0.publish(events, identity: identity))
            }
        }
    }

    package func list(
        _ filter: @escaping @Sendable (inout Connection) throws -> ListFilter
    ) async throws -> Listing { try await host.run { try $0.listEvents(try filter(&$0)) } }

    package func get(_ event: String) async throws -> Listing {
        try await host.run { try $0.event(try $0.eventKey(event)) }
    }

    /// Everything that one operation caused.
    package func trace(_ transaction: UniqueID) async throws -> Trace {
        try await host.run { try $0.trace(transaction) }
    }
}
