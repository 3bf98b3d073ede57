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
        _ wishes: [EventWish], identity: String?
    ) throws -> [PublishedEvent] {
        try beginOperation(identity: identity)
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
