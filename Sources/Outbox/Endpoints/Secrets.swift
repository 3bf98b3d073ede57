package import Postgres
package import StandardWebhooks

/// A signing secret of an endpoint, and until when requests are signed with it, by the database's
/// clock.
package struct ValidSecret: Sendable {
    package let secret: SigningSecret
    package let expiresAt: Timestamp

    package init(_ secret: SigningSecret, until expiresAt: Timestamp = .distantFuture) {
        (self.secret, self.expiresAt) = (secret, expiresAt)
    }
}

extension Connection {
    /// The max number of signing secrets of an endpoint: each adds a signature to every request.
    static let maxSecrets = 10

    /// Adds a signing secret; requests are then signed with all that are valid.
    package mutating func addSecret(_ secret: SigningSecret, to id: EndpointID, keyring: Keyring) throws {
        let sealed = try keyring.seal(secret.bytes, .signing(secret.scheme), for: id)
        try query(
            """
            INSERT INTO outbox.secret (endpoint_id, kind, key_id, sealed)
            VALUES (\(id), \(secret.scheme.rawValue), \(sealed.keyID), \(Bytes(sealed.bytes)))
            """)
    }

    /// Puts a new secret beside those of the same scheme; they stay valid for the overlap, so that
    /// receivers can change over. No overlap ends them at once.
    ///
    /// Throws, and changes nothing, when the endpoint's other secrets are sealed with other keys:
    /// the workers could not open the new one.
    package mutating func rotateSecret(
        _ id: EndpointID, to secret: SigningSecret, overlap: Duration, keyring: Keyring, reason: String?,
        by actor: Actor = .session
    ) throws {
        try transaction { connection in
            try connection.requireKeys(keyring, of: id)
            let valid = try connection.query(
                """
                SELECT id FROM outbox.secret
                 WHERE endpoint_id = \(id) AND kind IN ('v1', 'v1a') AND expires_at > clock_timestamp() FOR UPDATE
                """
            ).count
            guard overlap == .zero || valid < Self.maxSecrets else {
                throw Problem(
                    .stateConflict, "the endpoint has \(valid) valid signing secrets already",
                    hint: "Retire some first", next: UseCase("endpoint.secret.retire", "\(id)"))
            }
            try connection.query(
                """
                UPDATE outbox.secret SET expires_at = least(expires_at, clock_timestamp() + \(overlap))
                 WHERE endpoint_id = \(id) AND kind = \(secret.scheme.rawValue) AND expires_at > clock_timestamp()
                """)
            try connection.addSecret(secret, to: id, keyring: keyring)
            try connection.audit(
                "endpoint.secret.rotate", endpoint: id, reason: reason,
                detail: ["scheme": secret.scheme.rawValue, "overlap_seconds": "\(overlap.components.seconds)"],
                by: actor)
        }
    }

    /// Throws unless these keys open the secrets sealed for the endpoint, or, while it has none,
    /// the secret sealed last in this installation: no worker could open a secret sealed with other
    /// keys.
    mutating func requireKeys(_ keyring: Keyring, of id: EndpointID) throws {
        let sealed = try query(
            """
            SELECT s.endpoint_id, s.kind, s.key_id, s.sealed FROM (
                (SELECT * FROM outbox.secret WHERE endpoint_id = \(id) AND expires_at > clock_timestamp())
                UNION ALL
                (SELECT * FROM outbox.secret WHERE NOT EXISTS (SELECT FROM outbox.secret WHERE endpoint_id = \(id) AND expires_at > clock_timestamp())
                  ORDER BY created_at DESC LIMIT 1)) s
            """
        ).map { row throws(PostgresError) in
            (
                endpoint: try row[0] as EndpointID, kind: try row[1] as String, keyID: try row[2] as String,
                bytes: (try row[3] as Bytes).bytes
            )
        }
        for sealed in sealed {
            let purpose: Keyring.Purpose =
                sealed.kind == "credentials"
                ? .credentials : .signing(try known(SigningSecret.Scheme.self, sealed.kind, "kind of secret"))
            _ = try keyring.open(sealed.bytes, purpose, keyID: sealed.keyID, for: sealed.endpoint)
        }
    }

    /// Ends secrets before their time: one, or all but the newest of each scheme. Returns how many.
    package mutating func retireSecrets(
        _ id: EndpointID, only secret: UniqueID?, reason: String?, by actor: Actor = .session
    ) throws -> Int {
        try transaction { connection in
            let retired = try connection.query(
                """
                UPDATE outbox.secret s SET expires_at = clock_timestamp()
                 WHERE endpoint_id = \(id) AND kind IN ('v1', 'v1a') AND expires_at > clock_timestamp()
                   AND CASE WHEN \(secret) IS NOT NULL THEN s.id = \(secret)
                       ELSE EXISTS (SELECT FROM outbox.secret n WHERE n.endpoint_id = s.endpoint_id AND n.kind = s.kind
                                       AND n.expires_at > clock_timestamp() AND (n.created_at, n.id) > (s.created_at, s.id)) END
                RETURNING s.id
                """
            ).count
            if secret != nil, retired == 0 {
                throw Problem(.notFound, "the endpoint has no valid secret with that id")
            }
            let left = try connection.query(
                """
                SELECT FROM outbox.secret
                 WHERE endpoint_id = \(id) AND kind IN ('v1', 'v1a') AND expires_at > clock_timestamp() LIMIT 1
                """
            ).count
            if retired > 0, left == 0 {
                throw Problem(
                    .stateConflict, "it is the last secret: deliveries would go out unsigned",
                    hint: "Rotate it instead, with no overlap", next: UseCase("endpoint.secret.rotate", "\(id)"))
            }
            try connection.audit("endpoint.secret.retire", endpoint: id, reason: reason, by: actor)
            return retired
        }
    }

    /// The valid signing secrets, newest first.
    package mutating func signingSecrets(
        _ id: EndpointID, keyring: Keyring
    ) throws -> [(id: UniqueID, secret: SigningSecret, createdAt: Timestamp, expiresAt: Timestamp)] {
        let rows = try query(
            """
            SELECT id, kind, key_id, sealed, created_at, expires_at FROM outbox.secret
             WHERE endpoint_id = \(id) AND kind IN ('v1', 'v1a') AND expires_at > clock_timestamp()
             ORDER BY created_at DESC, id
            """
        ).map { row throws(PostgresError) in
            (
                id: try row[0] as UniqueID, kind: try row[1] as String, keyID: try row[2] as String,
                sealed: (try row[3] as Bytes).bytes, createdAt: try row[4] as Timestamp,
                expiresAt: try row[5] as Timestamp
            )
        }
        return try rows.map { row in
            let scheme = try known(SigningSecret.Scheme.self, row.kind, "kind of secret")
            let bytes = try keyring.open(row.sealed, .signing(scheme), keyID: row.keyID, for: id)
            let secret = try SigningSecret(bytes: bytes, scheme: scheme)
            return (row.id, secret, row.createdAt, row.expiresAt)
        }
    }
}
