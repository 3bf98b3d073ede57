package import Outbox
package import Postgres

/// The tokens of the HTTP API.
package struct TokenUseCases: Sendable {
    private let host: Operator

    init(_ host: Operator) { self.host = host }

    /// Creates a token and returns its row, and the token itself, which is not shown again.
    package func create(_ wish: TokenWish) async throws -> (row: Listing, token: TokenText) {
        try await host.run { [actor = host.actor] in try $0.createToken(wish, by: actor) }
    }

    /// A page of tokens, newest first, and the last one where more follow.
    package func list(limit: Int, after: UniqueID? = nil) async throws -> (tokens: Listing, next: UniqueID?) {
        try await host.run { try $0.listTokens(limit: limit, after: after) }
    }

    package func get(_ id: UniqueID) async throws -> Listing { try await host.run { try $0.token(id) } }

    /// Revokes a token for good.
    package func revoke(_ id: UniqueID, reason: String?) async throws {
        try await host.run { [actor = host.actor] in try $0.revokeToken(id, reason: reason, by: actor) }
    }

    /// The valid token with this hash, and the database's time.
    package func valid(_ hash: [UInt8]) async throws -> (token: Token, now: Timestamp)? {
        try await host.run { try $0.validToken(hash) }
    }
}
