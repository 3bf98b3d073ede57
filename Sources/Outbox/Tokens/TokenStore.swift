package import Postgres

/// What a new token may do.
package struct TokenWish: Sendable {
    package var name: String
    /// Nil for its name.
    package var identity: String?
    package var scopes: Set<Token.Scope>
    package var customerID: String?
    package var endpoints: [UniqueID]?
    package var rate: RateLimit?
    /// Nil for a token that does not expire.
    package var expiresAt: Timestamp?

    package init(name: String, scopes: Set<Token.Scope>) { (self.name, self.scopes) = (name, scopes) }

    func validate() throws {
        for (text, what) in [(name, "name"), (identity ?? "x", "identity"), (customerID ?? "x", "customer_id")] {
            guard (1...256).contains(text.unicodeScalars.count), !text.utf8.contains(where: { $0 < 0x20 || $0 == 0x7F })
            else {
                throw Problem(
                    .invalidValue, "\(what) must have 1 to 256 characters, and no control characters", at: .member(what)
                )
            }
        }
        if scopes.isEmpty {
            throw Problem(
                .invalidValue, "a token needs a scope",
                hint: Token.Scope.known,
                at: .member("scopes"))
        }
    }
}

extension Connection {
    /// Creates a token, and returns its row and the token itself, which is not shown again.
    package mutating func createToken(_ wish: TokenWish, by actor: Actor = .session) throws -> (Listing, TokenText) {
        try wish.validate()
        let text = TokenText.new()
        return try transaction { connection in
            let id = try connection.query(
                """
                INSERT INTO outbox.token (name, identity, prefix, hash, scopes, customer_id, endpoint_ids, rate, created_by, expires_at)
                SELECT \(wish.name), \(wish.identity ?? wish.name), \(text.prefix), \(Bytes(text.hash)),
                       \(wish.scopes.map(\.rawValue).sorted()), \(wish.customerID), \(wish.endpoints), \(wish.rate?.description),
                       coalesce(\(actor.text), 'database:' || session_user), \(wish.expiresAt ?? .distantFuture)
                 WHERE \(wish.expiresAt ?? .distantFuture) > clock_timestamp()
                RETURNING id
                """
            ).first(UniqueID.self)
            guard let id else {
                throw Problem(.invalidValue, "the token would have expired already", at: .member("expires_at"))
            }
            try connection.audit("token.create", object: "token/\(id)", by: actor)
            return (try connection.token(id), text)
        }
    }

    /// One token, without anything that would let it be used.
    package mutating func token(_ id: UniqueID) throws -> Listing {
        let found = try tokens("t.id = \(id)", limit: 1)
        if found.rows.isEmpty { throw Problem(.notFound, "there is no token \(id)", next: UseCase("token.list")) }
        return found
    }

    /// A page of tokens, newest first, and the last one where more follow.
    package mutating func listTokens(limit: Int, after: UniqueID?) throws -> (tokens: Listing, next: UniqueID?) {
        let found = try tokens(
            after.map { "(t.created_at, t.id) < (SELECT a.created_at, a.id FROM outbox.token a WHERE a.id = \($0))" }
                ?? "true",
            limit: limit + 1)
        let page = found.prefix(limit)
        return (page, found.rows.count > limit ? page.last("id").flatMap { UniqueID($0) } : nil)
    }

    private mutating func tokens(_ condition: SQL, limit: Int) throws -> Listing {
        try listing(
            """
            SELECT t.id, t.name, t.identity, t.prefix, t.scopes, t.customer_id, t.endpoint_ids, t.rate, t.created_by, t.created_at,
                   t.expires_at, t.revoked_at, t.last_used_at
              FROM outbox.token t WHERE \(condition) ORDER BY t.created_at DESC, t.id DESC LIMIT \(limit)
            """)
    }

    /// Revokes a token for good; one that is revoked stays so.
    package mutating func revokeToken(_ id: UniqueID, reason: String?, by actor: Actor = .session) throws {
        try transaction { connection in
            _ = try connection.token(id)
            let isNew =
                try connection.query(
                    "UPDATE outbox.token SET revoked_at = clock_timestamp() WHERE id = \(id) AND revoked_at IS NULL"
                ).affected == 1
            if isNew { try connection.audit("token.revoke", object: "token/\(id)", reason: reason, by: actor) }
        }
    }

    /// The valid token with this hash, and the database's time; its use is noted, at most once a
    /// minute.
    package mutating func validToken(_ hash: [UInt8]) throws -> (token: Token, now: Timestamp)? {
        let found = try query(
            """
            SELECT id, name, identity, scopes, customer_id, endpoint_ids, rate, expires_at, clock_timestamp(),
                   coalesce(last_used_at < clock_timestamp() - interval '1 minute', true)
              FROM outbox.token WHERE hash = \(Bytes(hash)) AND revoked_at IS NULL AND expires_at > clock_timestamp()
            """
        ).first { row throws(PostgresError) in
            let rate: String? = try row[6]
            return (
                try row[0] as UniqueID, try row[1] as String, try row[2] as String, try row[3] as [String],
                try row[4] as String?, try row[5] as [UniqueID]?, rate, try row[7] as Timestamp,
                try row[8] as Timestamp, try row[9] as Bool
            )
        }
        guard let (id, name, identity, scopes, customer, endpoints, rate, expiresAt, now, isStale) = found else {
            return nil
        }
        if isStale { try query("UPDATE outbox.token SET last_used_at = clock_timestamp() WHERE id = \(id)") }
        let token = Token(
            id: id, name: name, identity: identity, scopes: Set(scopes.compactMap { Token.Scope(rawValue: $0) }),
            customerID: customer, endpoints: endpoints, rate: try rate.map { try RateLimit($0) }, expiresAt: expiresAt)
        return (token, now)
    }
}
