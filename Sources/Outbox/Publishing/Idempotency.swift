package import Postgres

/// A call that must be carried out once, by its caller's key (draft-ietf-httpapi-idempotency-key).
package struct IdempotencyKey: Sendable {
    /// Whose key it is, as in `token/<id>`.
    package let holder: String
    package let key: String
    /// SHA-256 of the request: the same key with another request is a mistake.
    package let request: [UInt8]

    package init(holder: String, key: String, request: [UInt8]) {
        (self.holder, self.key, self.request) = (holder, key, request)
    }
}

extension Connection {
    /// Carries out the call in one transaction with its answer, or returns the answer of the first
    /// time. A call that is still being carried out is waited for, for five seconds.
    package mutating func once(
        _ key: IdempotencyKey?, _ body: (inout Connection) throws -> String
    ) throws -> (answer: String, isRepeated: Bool) {
        guard let key else { return (try transaction(body), false) }
        return try transaction { connection in
            do {
                try connection.script("SET LOCAL lock_timeout = '5s'")
                // Keys count for a day; each new one takes a few old ones away, so that none are
                // left.
                try connection.query(
                    """
                    DELETE FROM outbox.idempotency
                     WHERE holder = \(key.holder) AND key = \(key.key) AND created_at < clock_timestamp() - interval '1 day'
                    """)
                try connection.query(
                    """
                    DELETE FROM outbox.idempotency WHERE (holder, key) IN (
                        SELECT holder, key FROM outbox.idempotency WHERE created_at < clock_timestamp() - interval '1 day'
                         ORDER BY created_at LIMIT 10 FOR UPDATE SKIP LOCKED)
                    """)
                let isNew =
                    try connection.query(
                        """
                        INSERT INTO outbox.idempotency (holder, key, request) VALUES (\(key.holder), \(key.key), \(Bytes(key.request)))
                        ON CONFLICT DO NOTHING
                        """
                    ).affected == 1
                guard isNew else { return try connection.knownAnswer(key) }
            } catch let error as PostgresError where error.sqlState == "55P03" {
                throw Problem(
                    .idempotencyInProgress, "a call with this Idempotency-Key is still being carried out",
                    hint: "Repeat it in a moment", at: .header("Idempotency-Key"))
            }
            try connection.script("SET LOCAL lock_timeout = '0'")
            let answer = try body(&connection)
            try connection.query(
                "UPDATE outbox.idempotency SET answer = \(answer)::text::json WHERE holder = \(key.holder) AND key = \(key.key)"
            )
            return (answer, false)
        }
    }

    private mutating func knownAnswer(_ key: IdempotencyKey) throws -> (answer: String, isRepeated: Bool) {
        let known = try query(
            "SELECT request, answer::text FROM outbox.idempotency WHERE holder = \(key.holder) AND key = \(key.key)"
        ).first(Bytes.self, String?.self)
        guard let (request, answer) = known, request.bytes == key.request, let answer else {
            throw Problem(
                .idempotencyMismatch, "this Idempotency-Key was used for another request",
                hint: "Use a new key for each new request", at: .header("Idempotency-Key"))
        }
        return (answer, true)
    }
}
