package import Postgres

/// An event that a caller of the HTTP API wants published.
package struct EventWish: Sendable {
    package var type: String
    package var changeType: String?
    package var customerID: String?
    /// JSON texts, kept byte for byte.
    package var before: String?
    package var after: String?
    package var headers: String?
    package var identity: String?
    package var transactionID: UniqueID?
    package var orderingKey: String?
    package var dedupKey: String?
    package var deliverAt: Timestamp?
    package var occurredAt: Timestamp?

    package init(type: String) { self.type = type }
}

/// An event that was published, now or, with a known deduplication key, before.
package struct PublishedEvent: Sendable {
    package let id: EventID
    /// Nil when the event of a known deduplication key is gone.
    package let webhookID: String?
    package let transactionID: UniqueID?
    package let isRepeated: Bool

    /// The same, published before in the same transaction.
    fileprivate func repeated(_ again: Bool) -> PublishedEvent {
        PublishedEvent(id: id, webhookID: webhookID, transactionID: transactionID, isRepeated: isRepeated || again)
    }
}

extension Connection {
    /// Publishes events in the caller's transaction, and returns them in the same order. They have
    /// one TransactionId unless an event names another.
    package mutating func publish(
        _ wishes: [EventWish], transactionID: UniqueID?, identity: String?
    ) throws -> [PublishedEvent] {
        try beginOperation(transactionID: transactionID, identity: identity)
        // In their order, which lines keep: what stands between two of them is inserted at once.
        var published: [PublishedEvent] = []
        var (plain, seen): ([EventWish], Set<EventID>) = ([], [])
        for wish in wishes {
            guard wish.dedupKey != nil else {
                plain.append(wish)
                continue
            }
            published += try insert(plain)
            plain = []
            let event = try publishOnce(wish)
            published.append(event.repeated(seen.insert(event.id).inserted == false))
        }
        return published + (try insert(plain))
    }

    /// In one statement. Numbers are given in the order of the array.
    private mutating func insert(_ wishes: [EventWish]) throws -> [PublishedEvent] {
        if wishes.isEmpty { return [] }
        return try query(
            """
            WITH made AS (
                INSERT INTO outbox.event (
                    type, change_type, customer_id, before, after, headers, identity, transaction_id, ordering_key, deliver_at, occurred_at)
                SELECT u.type, coalesce(u.change_type, 'Create'), coalesce(u.customer_id, 'default'), u.before::json, u.after::json,
                       coalesce(u.headers::jsonb, '{}'), coalesce(u.identity, outbox.current_identity()),
                       coalesce(u.transaction_id, outbox.current_transaction_id()), u.ordering_key, u.deliver_at, u.occurred_at
                  FROM unnest(\(wishes.map(\.type)), \(wishes.map(\.changeType)), \(wishes.map(\.customerID)), \(wishes.map(\.before)),
                              \(wishes.map(\.after)), \(wishes.map(\.headers)), \(wishes.map(\.identity)), \(wishes.map(\.transactionID)),
                              \(wishes.map(\.orderingKey)), \(wishes.map(\.deliverAt)), \(wishes.map(\.occurredAt))) WITH ORDINALITY AS u(
                       type, change_type, customer_id, before, after, headers, identity, transaction_id, ordering_key, deliver_at,
                       occurred_at, place)
                 ORDER BY u.place
                RETURNING id, created_at, transaction_id)
            SELECT m.id, outbox.webhook_id(m.id, m.created_at), m.transaction_id FROM made m ORDER BY m.id
            """
        ).map { row throws(PostgresError) in
            PublishedEvent(id: try row[0], webhookID: try row[1], transactionID: try row[2], isRepeated: false)
        }
    }

    private mutating func publishOnce(_ wish: EventWish) throws -> PublishedEvent {
        let id = try query(
            """
            SELECT outbox.publish(
                type => \(wish.type), after => \(wish.after)::text::json, change_type => \(wish.changeType),
                customer_id => \(wish.customerID), before => \(wish.before)::text::json, identity => \(wish.identity),
                transaction_id => \(wish.transactionID), ordering_key => \(wish.orderingKey), dedup_key => \(wish.dedupKey),
                deliver_at => \(wish.deliverAt), headers => \(wish.headers)::text::jsonb, occurred_at => \(wish.occurredAt))
            """
        ).one(EventID.self)
        let event = try query(
            """
            SELECT outbox.webhook_id(e.id, e.created_at), e.transaction_id, e.tx <> pg_current_xact_id()
              FROM outbox.event e WHERE e.id = \(id) ORDER BY e.created_at DESC LIMIT 1
            """
        ).first(String.self, UniqueID.self, Bool.self)
        return PublishedEvent(
            id: id, webhookID: event?.0, transactionID: event?.1, isRepeated: event?.2 ?? true)
    }
}

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
                    DELETE FROM outbox.idempotency WHERE (holder, key) IN (
                        SELECT holder, key FROM outbox.idempotency
                         WHERE created_at < clock_timestamp() - interval '1 day' ORDER BY holder = \(key.holder) AND key = \(key.key) DESC, created_at
                         LIMIT 10 FOR UPDATE SKIP LOCKED)
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
