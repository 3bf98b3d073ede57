package import Postgres

/// The result of a claim: the database's clock, whether there is news of the endpoints, and a batch
/// when one was free.
package struct BatchClaim: Sendable {
    package let now: Timestamp
    package let hasEndpointNews: Bool
    package let batch: ClaimedBatch?
}

/// A batch of events that this worker owns until the lease ends.
package struct ClaimedBatch: Sendable {
    package let held: HeldBatch
    package var id: BatchID { held.id }
    /// The number of claims, this one included; more than one means that a worker lost it.
    package let claims: Int
    /// The number of events cut into it; `events` has fewer only when rows are gone, which must
    /// never happen.
    package let size: Int
    /// Endpoints that already have its events in their lanes, in order.
    package let ordered: [EndpointID]
    package let events: [Event]

    package init(held: HeldBatch, claims: Int, size: Int, ordered: [EndpointID], events: [Event]) {
        (self.held, self.claims, self.size, self.ordered, self.events) = (held, claims, size, ordered, events)
    }
}

/// No batch that could be claimed lies before it. Without it a claim would begin at the dead rows
/// of finished batches.
package struct BatchFloor: Sendable {
    /// The lowest batch of all.
    let lowest: BatchID
    /// Of the unclaimed batches, the one whose turn it is.
    let turn: Int64
    let next: BatchID

    package static let none = BatchFloor(lowest: BatchID(rawValue: 0), turn: 0, next: BatchID(rawValue: 0))
}

extension Connection {
    /// Claims the free batch whose turn it is and reads its events, in one statement and so one
    /// short transaction. A batch that lost its worker comes first.
    ///
    /// - Parameters:
    ///   - lease: made by the caller, so that a claim whose response was lost can be given back
    ///     (`releaseLeases`).
    ///   - seen: how far this worker has read the endpoints.
    ///   - instance: which installation it must be; nil for any.
    ///   - isSmall: only a batch of the many customers with few events; for a worker that has
    ///     enough batches of the others.
    ///   - customers: no batch of these alone; for a worker that has enough of theirs.
    ///   - memory: where the events are accounted for.
    ///   - customers: customers of which this worker has enough batches.
    package mutating func claimBatch(
        lease: LeaseID, worker: String, for duration: Duration, floor: BatchFloor = .none, isSmall: Bool = false,
        excluding customers: [String] = [], endpoints seen: EndpointsSeen = .nothing, instance: String? = nil,
        in memory: EventMemory? = nil
    ) throws -> BatchClaim {
        // Ids go in as a subselect, not as `LIMIT $n`, which makes the planner expect a tenth of
        // the table.
        let small: SQL =
            isSmall
            ? "AND b.customer_id IS NULL"
            : customers.isEmpty ? "" : "AND (b.customer_id IS NULL OR b.customer_id <> ALL (\(customers)))"
        let rows = try query(
            """
            WITH claimed AS (
                UPDATE outbox.batch
                   SET lease_id = \(lease), worker = \(worker), claims = least(claims, 1000000) + 1,
                       lease_until = clock_timestamp() + \(duration)
                 WHERE outbox.is_home(\(instance)) AND id = coalesce(
                           (SELECT b.id FROM outbox.batch b
                             WHERE b.claims > 0 AND b.id >= \(floor.lowest) AND b.lease_until < clock_timestamp()
                             ORDER BY b.id LIMIT 1 FOR UPDATE SKIP LOCKED),
                           (SELECT b.id FROM outbox.batch b
                             WHERE b.claims = 0 AND (b.turn, b.id) >= (\(floor.turn), \(floor.next)) \(small)
                             ORDER BY b.turn, b.id LIMIT 1 FOR UPDATE SKIP LOCKED))
                RETURNING id, claims, size, ordered, ids, first_at, last_at)
            SELECT clock_timestamp(), g.has_news, c.id, c.claims, c.size, c.ordered, pg_postmaster_start_time(), \(raw: Event.noColumns)
              FROM (SELECT \(seen.hasNews) AS has_news) g LEFT JOIN claimed c ON true
            UNION ALL
            -- What is said once is not sent with every event.
            SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, \(raw: Event.columns)
              FROM claimed c CROSS JOIN LATERAL outbox.events_in(c.ids, c.first_at, c.last_at) e
            """)
        var (now, hasEndpointNews) = (Timestamp.distantPast, true)
        var (held, claims, size, ordered): (HeldBatch?, Int, Int, [EndpointID]) = (nil, 0, 0, [])
        var events: [Event] = []
        // SQL promises no order of the rows: one that has a time, and the events.
        _ = try rows.map { row throws(PostgresError) in
            guard let time = try row[0] as Timestamp? else {
                return events.append(try Event(row: row, from: 7, in: memory))
            }
            (now, hasEndpointNews) = (time, try row[1])
            guard let id = try row[2] as BatchID? else { return }
            held = HeldBatch(id: id, lease: lease, server: ServerStart(time: try row[6]))
            (claims, size, ordered) = (try row[3], try row[4], try row[5])
        }
        let batch = held.map { ClaimedBatch(held: $0, claims: claims, size: size, ordered: ordered, events: events) }
        return BatchClaim(now: now, hasEndpointNews: hasEndpointNews, batch: batch)
    }

    /// Where claims may begin to scan from now on: batches made later come after it. A cut that is
    /// under way may still put batches into the turn of the last cut, even when batches of later
    /// turns were claimed meanwhile.
    ///
    /// - Parameter floor: the previous floor; nothing claimable lay before it.
    package mutating func batchFloor(from floor: BatchFloor = .none) throws -> BatchFloor {
        try query(
            """
            SELECT coalesce((SELECT id FROM outbox.batch WHERE id >= \(floor.lowest) ORDER BY id LIMIT 1), k.first_id),
                   least(b.turn, k.turn), coalesce(b.id, k.first_id)
              FROM (SELECT * FROM outbox.cut ORDER BY id DESC LIMIT 1) k
              LEFT JOIN LATERAL (SELECT turn, id FROM outbox.batch
                                  WHERE claims = 0 AND (turn, id) >= (\(floor.turn), \(floor.next)) ORDER BY turn, id LIMIT 1) b ON true
            """
        ).first { row throws(PostgresError) in BatchFloor(lowest: try row[0], turn: try row[1], next: try row[2]) }
            ?? .none
    }

    /// The deliveries of these events that a former holder of the batch has resolved or moved into
    /// a lane.
    ///
    /// A failed attempt alone does not count: its worker may have lost the lease before it could
    /// record what comes next. Nor does any row about another event of the same number: a failover
    /// may have lost that event, and its attempts came later.
    package mutating func resolvedDeliveries(of events: [EventKey]) throws -> Set<DeliveryID> {
        let deliveries = try query(
            """
            SELECT event_id, event_at, endpoint_id FROM \(attemptRows(of: events))
             WHERE outcome = 'success' AND outbox.is_delivery(trigger)
            UNION SELECT event_id, event_at, endpoint_id FROM outbox.delivery WHERE event_id = ANY (\(events.map(\.id)))
            UNION SELECT event_id, event_at, endpoint_id FROM outbox.dead_letter WHERE event_id = ANY (\(events.map(\.id)))
            """
        ).all(as: DeliveryID.self)
        // Compared here and not in the statement: a worker's plans have no hash, and would compare
        // every row with every other.
        let wanted = Set(events)
        return Set(deliveries.filter { wanted.contains($0.event) })
    }
}
