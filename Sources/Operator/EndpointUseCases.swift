import Bytewise
package import Outbox
package import Postgres
package import StandardWebhooks
import Transport

/// An operator's use cases of endpoints, each by its name or id.
package struct EndpointUseCases: Sendable {
    private let host: Operator

    init(_ host: Operator) { self.host = host }

    package func list(search: String? = nil, limit: Int) async throws -> Listing {
        try await host.run { try $0.listEndpoints(search: search, limit: limit) }
    }

    package func get(_ endpoint: String) async throws -> Listing {
        try await host.run { try $0.listEndpoints(try $0.endpointID(endpoint)) }
    }

    /// Creates an endpoint and returns its state. Its signing secret is not shown afterwards.
    package func create(_ configuration: EndpointConfiguration, secret: SigningSecret) async throws -> Listing {
        let (keyring, policy) = (try host.keyring(), try host.policy())
        return try await host.run { [actor = host.actor] connection in
            let id = try connection.createEndpoint(
                configuration, secret: secret, keyring: keyring, policy: policy.refusing(connection.serverSockets),
                by: actor)
            return try connection.listEndpoints(id)
        }
    }

    /// Changes an endpoint and returns its state.
    package func update(
        _ endpoint: String, _ change: @escaping @Sendable (inout EndpointConfiguration) throws -> Void
    ) async throws -> Listing {
        let (keyring, policy) = (try host.keyring(), try host.policy())
        return try await changing(endpoint) { connection, id, actor in
            try connection.updateEndpoint(
                id, keyring: keyring, policy: policy.refusing(connection.serverSockets), by: actor, change)
        }
    }

    /// A page of endpoints as documents, and the last one where more follow.
    package func documents(
        search: String?, limit: Int, after: EndpointID?
    ) async throws -> (documents: [String], next: EndpointID?) {
        try await host.run { try $0.endpointDocuments(search: search, limit: limit, after: after) }
    }

    /// The endpoint as a document, with its revision.
    package func document(_ endpoint: String) async throws -> (json: String, revision: Int) {
        try await host.run { try $0.endpointDocument(try $0.endpointID(endpoint)) }
    }

    /// Changes an endpoint, and returns it as a document.
    ///
    /// - Parameter revision: the one that the caller has seen; nil for any.
    package func update(
        _ endpoint: String, expecting revision: Int?,
        _ change: @escaping @Sendable (inout EndpointConfiguration) throws -> Void
    ) async throws -> (json: String, revision: Int) {
        let (keyring, policy) = (try host.keyring(), try host.policy())
        return try await host.run { [actor = host.actor] connection in
            let id = try connection.endpointID(endpoint)
            try connection.updateEndpoint(
                id, keyring: keyring, policy: policy.refusing(connection.serverSockets), expecting: revision, by: actor,
                change)
            return try connection.endpointDocument(id)
        }
    }

    /// By a JSON merge patch (RFC 7396).
    package func patch(_ endpoint: String, _ patch: [UInt8]) async throws -> Listing {
        try await update(endpoint) { $0 = try $0.patched(patch) }
    }

    /// Creates the endpoints of these customers and names, or gives them these configurations: all
    /// or none. Returns for each whether it was created.
    package func replace(
        _ wanted: [(configuration: EndpointConfiguration, secret: SigningSecret)]
    ) async throws -> [Bool] {
        let names = Dictionary(grouping: wanted.map(\.configuration)) {
            [ExactText($0.customerID), ExactText($0.name)]
        }
        if let twice = names.values.first(where: { $0.count > 1 })?.first {
            throw Problem(.invalidValue, "endpoint \"\(twice.name)\" is named twice", hint: "Keep one of them")
        }
        let (keyring, policy) = (try host.keyring(), try host.policy())
        return try await host.run { [actor = host.actor] connection in
            try connection.replaceEndpoints(
                wanted, keyring: keyring, policy: policy.refusing(connection.serverSockets), by: actor)
        }
    }

    /// Their configurations as documents, all of them when none is named.
    ///
    /// - Parameter reveals: with their secrets, which is audited.
    package func export(_ endpoints: [String], reveals: Bool, reason: String?) async throws -> [[UInt8]] {
        let keyring = reveals ? try host.keyring() : nil
        return try await host.run { [actor = host.actor] connection in
            let ids = endpoints.isEmpty ? nil : try endpoints.map { try connection.endpointID($0) }
            guard let keyring else { return try connection.configurations(of: ids).map { try $0.json(.masked) } }
            let revealed = try connection.endpoints(ids, keyring: keyring)
            for endpoint in revealed {
                try connection.audit("endpoint.reveal", endpoint: endpoint.id, reason: reason, by: actor)
            }
            return try revealed.map { try $0.configuration.json(.revealed) }
        }
    }

    /// Deletes an endpoint. Its waiting deliveries are cancelled with the operator's consent;
    /// without it there must be none.
    ///
    /// - Parameter revision: the one that the caller has seen; nil for any.
    package func delete(
        _ endpoint: String, expecting revision: Int? = nil, cancelsWaiting: Bool, reason: String?
    ) async throws {
        try await host.run { [actor = host.actor] connection in
            let id = try connection.endpointID(endpoint)
            try connection.deleteEndpoint(
                id, expecting: revision, cancelsWaiting: cancelsWaiting, reason: reason, by: actor)
        }
    }

    package func pause(
        _ endpoint: String, from: Timestamp?, until: Timestamp?, rate: RateLimit?, reason: String
    ) async throws -> Listing {
        try await changing(endpoint) {
            try $0.pauseEndpoint($1, from: from, until: until, rate: rate, reason: reason, by: $2)
        }
    }

    package func resume(_ endpoint: String, rate: RateLimit?) async throws -> Listing {
        try await changing(endpoint) { try $0.resumeEndpoint($1, rate: rate, by: $2) }
    }

    package func enable(_ endpoint: String) async throws -> Listing {
        try await changing(endpoint) { try $0.enableEndpoint($1, by: $2) }
    }

    package func disable(_ endpoint: String, reason: String?) async throws -> Listing {
        try await changing(endpoint) { try $0.disableEndpoint($1, reason: reason, by: $2) }
    }

    /// The number of its waiting deliveries.
    package func waiting(_ endpoint: String) async throws -> Int {
        try await host.run { try $0.waitingCount(try $0.endpointID(endpoint)) }
    }

    private func changing(
        _ endpoint: String, _ change: @escaping @Sendable (inout Connection, EndpointID, Actor) throws -> Void
    ) async throws -> Listing {
        try await host.run { [actor = host.actor] connection in
            let id = try connection.endpointID(endpoint)
            try change(&connection, id, actor)
            return try connection.listEndpoints(id)
        }
    }
}

/// The secrets that an endpoint's deliveries are signed with.
package struct SecretUseCases: Sendable {
    private let host: Operator

    init(_ host: Operator) { self.host = host }

    /// A day: enough time for every receiver to be deployed once (as in similar services).
    package static let usualOverlap = Duration.seconds(86_400)

    package typealias Valid = (id: UniqueID, secret: SigningSecret, createdAt: Timestamp, expiresAt: Timestamp)

    /// The valid secrets, newest first.
    ///
    /// - Parameter reveals: the secrets are shown, which is audited.
    package func list(_ endpoint: String, reveals: Bool = false, reason: String? = nil) async throws -> [Valid] {
        let keyring = try host.keyring()
        return try await host.run { [actor = host.actor] connection in
            let id = try connection.endpointID(endpoint)
            if reveals { try connection.audit("endpoint.secret.reveal", endpoint: id, reason: reason, by: actor) }
            return try connection.signingSecrets(id, keyring: keyring)
        }
    }

    /// Signs with a new secret, and with the old ones for as long as receivers may take to change
    /// over; returns the valid ones.
    package func rotate(
        _ endpoint: String, to secret: SigningSecret, overlap: Duration?, reason: String?
    ) async throws -> [Valid] {
        let keyring = try host.keyring()
        return try await host.run { [actor = host.actor] connection in
            let id = try connection.endpointID(endpoint)
            try connection.rotateSecret(
                id, to: secret, overlap: overlap ?? Self.usualOverlap, keyring: keyring, reason: reason, by: actor)
            return try connection.signingSecrets(id, keyring: keyring)
        }
    }

    /// Ends one secret, or all but the newest; returns how many.
    package func retire(_ endpoint: String, only secret: UniqueID?, reason: String?) async throws -> Int {
        try await host.run { [actor = host.actor] in
            try $0.retireSecrets(try $0.endpointID(endpoint), only: secret, reason: reason, by: actor)
        }
    }
}
