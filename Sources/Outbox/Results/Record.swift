import Bytewise
import Crypto
package import Postgres

extension Connection {
    /// Writes the outcomes in one transaction (docs/architecture/leases.md, "Recording").
    ///
    /// Attempts are always appended. Rows of `delivery` and `dead_letter` are added or moved only
    /// under a lease that is locked first. A success deletes them regardless of who holds the
    /// lease. Locks are taken in one order everywhere (batches by id, then lanes by id), so that
    /// two recorders cannot deadlock. Outcomes for a lane that another session has locked are left
    /// out: afterwards, even after an error, the group tells which ones (`RecordGroup.leaves`).
    package mutating func record(_ whole: inout RecordGroup, worker: String) throws -> RecordReceipt {
        whole.locked = []
        if try recordPlainly(whole, worker: worker) { return RecordReceipt() }
        return try transaction { connection in
            var receipt = RecordReceipt()
            let (lost, dueLanes, locked) = try connection.lockHolders(of: whole)
            whole.locked = locked
            let group = whole.now
            receipt.lost = lost
            let deleted = try connection.deletedEndpoints(of: group)
            let owned = group.outcomes.filter { !lost.contains($0.holder) }.map { outcome in
                // No delivery waits for an endpoint that was deleted while the request was in
                // flight.
                guard case .wait = outcome.resolution, deleted.contains(outcome.delivery.endpoint) else {
                    return outcome
                }
                var outcome = outcome
                outcome.resolution = .dead(.cancelled)
                return outcome
            }

            try connection.append(group.outcomes, worker: worker)
            // A delivery without a row may belong to an event that this database has never seen.
            var strangers: [EventKey] = []
            let cleared = group.outcomes.filter { outcome in
                guard case .delivered = outcome.resolution else { return false }
                if case .lane = outcome.holder { return true }
                return outcome.mayBeShared
            }
            strangers += try connection.clear(cleared.filter { !lost.contains($0.holder) })
            strangers += try connection.clear(cleared.filter { lost.contains($0.holder) }, afterLoss: true)
            strangers += try connection.wait(owned, dueLanes: dueLanes)
            strangers += try connection.bury(owned)
            try connection.discard(owned)
            receipt.lost.formUnion(try connection.finish(group.finishedBatches))
            try connection.heal(receipt.lost, events: group.events)
            strangers += group.outcomes.filter { receipt.lost.contains($0.holder) }.map(\.delivery.event)
            for holder in receipt.lost { strangers += group.events[holder.lease] ?? [] }
            receipt.ghosts = try connection.noteGhosts(among: strangers, worker: worker)
            receipt.effects = try connection.changeUnlessLocked(group.effects, by: Actor(.service, worker))
            return receipt
        }
    }

    // MARK: Fencing

    /// Locks every batch and lane whose state may change, and returns the holders whose lease is
    /// gone, the lanes that are due, and the lanes that another session has locked.
    private mutating func lockHolders(
        of group: RecordGroup
    ) throws -> (lost: Set<Holder>, due: Set<EndpointID>, locked: Set<EndpointID>) {
        var lost: Set<Holder> = []
        var due: Set<EndpointID> = []
        var locked: Set<EndpointID> = []
        // All batches: even for outcomes that are only appended, it checks that the batch was
        // claimed on this server. And the batches that are deleted at the end, since lanes are
        // locked after batches.
        let batches = Set(group.outcomes.compactMap(\.holder.batch)).union(group.finishedBatches)
        if !batches.isEmpty {
            let held = try query(
                """
                SELECT id, lease_id, pg_postmaster_start_time() FROM outbox.batch WHERE id = ANY (\(batches.map(\.id)))
                 ORDER BY id FOR UPDATE
                """
            ).map { row throws(PostgresError) -> HeldBatch? in
                guard let lease = try row[1] as LeaseID? else { return nil }
                return HeldBatch(id: try row[0], lease: lease, server: ServerStart(time: try row[2]))
            }
            lost.formUnion(batches.subtracting(held.compactMap(\.self)).map { .batch($0) })
        }
        let moving = group.outcomes.filter(\.changesLane)
        // Lanes: those that we hold, and those that get new rows.
        let endpoints = Set(moving.map(\.delivery.endpoint)).union(group.effects.keys)
        if !endpoints.isEmpty {
            let held = try query(
                """
                SELECT endpoint_id, lease_id, due_at <= clock_timestamp() FROM outbox.lane
                 WHERE endpoint_id = ANY (\(Array(endpoints))) ORDER BY endpoint_id FOR UPDATE SKIP LOCKED
                """
            ).map { row throws(PostgresError) -> (endpoint: EndpointID, lease: LeaseID?) in
                let id: EndpointID = try row[0]
                if try row[2] { due.insert(id) }
                return (id, try row[1])
            }
            locked = endpoints.subtracting(held.map(\.endpoint))
            let holders = held.compactMap { lane in lane.lease.map { Holder.lane(lane.endpoint, $0) } }
            lost.formUnion(
                moving.filter { !locked.contains($0.delivery.endpoint) }.map(\.holder)
                    .filter { $0.batch == nil && !holders.contains($0) })
        }
        return (lost, due, locked)
    }

    /// Reads the deleted endpoints after the lanes are locked: a session that deletes an endpoint
    /// locks its lane first.
    private mutating func deletedEndpoints(of group: RecordGroup) throws -> Set<EndpointID> {
        let endpoints = Set(
            group.outcomes.compactMap { if case .wait = $0.resolution { $0.delivery.endpoint } else { nil } })
        if endpoints.isEmpty { return [] }
        let deleted = try query(
            "SELECT id FROM outbox.endpoint WHERE id = ANY (\(Array(endpoints))) AND deleted_at IS NOT NULL"
        )
        .all(EndpointID.self)
        return Set(deleted)
    }

    // MARK: The happy path

    /// The happy path in one statement: only first successes of batches that no other worker can
    /// have held. It appends the attempts and deletes the finished batches, all or nothing; false
    /// when the group has more to say or a lease turned out to be gone, and nothing was written.
    private mutating func recordPlainly(_ group: RecordGroup, worker: String) throws -> Bool {
        let isPlain = group.outcomes.allSatisfy { outcome in
            guard case .delivered = outcome.resolution, case .batch = outcome.holder else { return false }
            return !outcome.mayBeShared
        }
        let servers = Set(group.outcomes.compactMap(\.holder.batch?.server))
        guard isPlain, group.effects.isEmpty, servers.count == 1, let server = servers.first else { return false }
        do throws(PostgresError) {
            // It is a commit, and so is not cancelled.
            try query(
                """
                WITH appended AS (\(attempts(of: group.outcomes, worker: worker))),
                finished AS (
                    \(deletion(of: group.finishedBatches)) RETURNING 1)
                SELECT outbox.require_leases(
                    (SELECT count(*) FROM finished) - (pg_postmaster_start_time() <> \(server.time))::int,
                    \(group.finishedBatches.count))
                """, mayCancel: false)
            return true
        } catch {
            guard error.sqlState == "OB011" else { throw error }
            return false
        }
    }

    // MARK: The statements, in the order of the transaction

    /// Success is monotone: it removes waiting and parked rows, whichever worker wrote them.
    ///
    /// - Parameter afterLoss: the lease is gone, and its new holder may be sending the same at this
    ///   moment.
    /// - Returns: the events of lanes that did not wait there.
    private mutating func clear(_ delivered: [Outcome], afterLoss: Bool = false) throws -> [EventKey] {
        if delivered.isEmpty { return [] }
        let deliveries = deliveryRows(delivered.map(\.delivery))
        let waiting = try query(
            """
            DELETE FROM outbox.delivery d USING unnest(\(deliveries)) AS p(event_id, event_at, endpoint_id)
             WHERE \(lookUp("d", by: "p"))
            RETURNING d.endpoint_id, d.ordering_key
            """)
        let parked = try query(
            """
            DELETE FROM outbox.dead_letter d USING unnest(\(deliveries)) AS p(event_id, event_at, endpoint_id)
             WHERE \(lookUp("d", by: "p"))
            RETURNING d.endpoint_id, d.ordering_key
            """)
        try advance(waiting, afterLoss: afterLoss)
        try advance(parked, afterLoss: afterLoss)
        let fromLanes = delivered.filter { if case .lane = $0.holder { true } else { false } }
        // Rows of batches may hide missing rows of lanes in the count; then some events are looked
        // up in vain.
        return waiting.count + parked.count < fromLanes.count || fromLanes.count < delivered.count
            ? fromLanes.map(\.delivery.event) : []
    }

    /// - Parameter dueLanes: no delivery is due before these lanes are.
    /// - Returns: the events of lanes that did not wait there.
    private mutating func wait(_ outcomes: [Outcome], dueLanes: Set<EndpointID>) throws -> [EventKey] {
        var entering: [(Outcome, Duration, Trigger)] = []
        var moving: [(Outcome, Duration, Trigger)] = []
        for outcome in outcomes {
            guard case .wait(let delay, let trigger) = outcome.resolution else { continue }
            if case .batch = outcome.holder {
                entering.append((outcome, delay, trigger))
            } else {
                moving.append((outcome, delay, trigger))
            }
        }
        if !entering.isEmpty {
            // Adding to a lane lowers its due time first, so that it is never later than a row's;
            // the lane is locked.
            var earliest: [EndpointID: Duration] = [:]
            for (outcome, delay, _) in entering where !dueLanes.contains(outcome.delivery.endpoint) {
                earliest[outcome.delivery.endpoint] = min(delay, earliest[outcome.delivery.endpoint] ?? delay)
            }
            if !earliest.isEmpty {
                try query(
                    """
                    UPDATE outbox.lane l SET due_at = outbox.due_in(w.delay)
                      FROM unnest(\(Array(earliest.keys)), \(Array(earliest.values))) AS w(endpoint_id, delay)
                     WHERE l.endpoint_id = ANY (ARRAY[w.endpoint_id]) AND l.due_at > outbox.due_in(w.delay)
                    """)
            }
            // A batch that was claimed before may have been delivered by its former holder in the
            // meantime.
            try query(
                """
                WITH delivered AS MATERIALIZED (\(deliveries(of: entering.map(\.0).filter(\.mayBeShared).map(\.delivery.event))))
                INSERT INTO outbox.delivery (event_id, endpoint_id, event_at, due_at, attempts, trigger, last_at, last_status,
                                             last_error_class, last_error)
                SELECT w.event_id, w.endpoint_id, w.event_at, outbox.due_in(w.delay), w.attempts, w.trigger, w.last_at, w.status,
                       w.error_class, w.error
                  FROM unnest(\(deliveryRows(entering.map(\.0.delivery))), \(entering.map(\.1)), \(entering.map { Int32(clamping: $0.0.attempts) }), \(entering.map(\.2.rawValue)),
                              \(entering.map { $0.0.attempt?.startedAt }), \(entering.map { $0.0.attempt?.status.map { Int32($0) } }),
                              \(entering.map(\.0.errorClass)), \(entering.map(\.0.error)), \(entering.map(\.0.mayBeShared)))
                       AS w(event_id, event_at, endpoint_id, delay, attempts, trigger, last_at, status, error_class, error, shared)
                 WHERE NOT (w.shared AND (
                           EXISTS (SELECT FROM delivered a
                                    WHERE a.event_id = w.event_id AND a.event_at = w.event_at AND a.endpoint_id = w.endpoint_id)
                        OR EXISTS (SELECT FROM outbox.dead_letter x
                                    WHERE x.event_id = w.event_id AND x.event_at = w.event_at AND x.endpoint_id = w.endpoint_id)))
                ON CONFLICT (event_id, endpoint_id, event_at) DO NOTHING
                """)
        }
        if moving.isEmpty { return [] }
        let moved = try query(
            """
            UPDATE outbox.delivery d
               -- Behind others of its key it has no due time, also when an operator has put it there just now.
               SET due_at = CASE WHEN d.due_at = 'infinity' THEN d.due_at ELSE outbox.due_in(w.delay) END, attempts = w.attempts, crashes = w.crashes, trigger = w.trigger,
                   last_at = coalesce(w.last_at, d.last_at), last_status = w.status, last_error_class = w.error_class,
                   last_error = w.error
              FROM unnest(\(deliveryRows(moving.map(\.0.delivery))), \(moving.map(\.1)),
                          \(moving.map { Int32(clamping: $0.0.attempts) }), \(moving.map(\.2.rawValue)),
                          \(moving.map { $0.0.attempt?.startedAt }), \(moving.map { $0.0.attempt?.status.map { Int32($0) } }),
                          \(moving.map(\.0.errorClass)), \(moving.map(\.0.error)), \(moving.map { Int32(clamping: $0.0.crashes) }))
                   AS w(event_id, event_at, endpoint_id, delay, attempts, trigger, last_at, status, error_class, error, crashes)
             WHERE \(lookUp("d", by: "w"))
            """
        ).affected
        return moved < moving.count ? moving.map(\.0.delivery.event) : []
    }

    /// One statement deletes the waiting row and, where it deleted one or the delivery comes
    /// straight from a batch, parks it.
    ///
    /// - Returns: the events of those that were not there.
    private mutating func bury(_ outcomes: [Outcome]) throws -> [EventKey] {
        var dead: [(Outcome, DeadReason)] = []
        for outcome in outcomes {
            if case .dead(let reason) = outcome.resolution { dead.append((outcome, reason)) }
        }
        if dead.isEmpty { return [] }
        let parked = try query(
            """
            WITH delivered AS MATERIALIZED (\(deliveries(of: dead.map(\.0).filter { $0.holder.batch != nil }.map(\.delivery.event)))),
            parked AS (
                SELECT * FROM unnest(\(deliveryRows(dead.map(\.0.delivery))), \(dead.map(\.1.rawValue)), \(dead.map { Int32(clamping: $0.0.attempts) }),
                              \(dead.map { $0.0.attempt?.status.map { Int32($0) } }), \(dead.map(\.0.errorClass)), \(dead.map(\.0.error)),
                              \(dead.map { fingerprint($0.0, $0.1) }), \(dead.map { $0.0.holder.batch != nil }))
                       AS p(event_id, event_at, endpoint_id, reason, attempts, status, error_class, error, fingerprint, from_batch)),
            gone AS (
                DELETE FROM outbox.delivery d USING parked p
                 WHERE \(lookUp("d", by: "p")) AND NOT p.from_batch
                RETURNING d.event_id, d.event_at, d.endpoint_id, d.ordering_key, d.scan)
            INSERT INTO outbox.dead_letter (event_id, endpoint_id, event_at, reason, attempts, status, error_class, error, fingerprint,
                                            ordering_key, scan)
            SELECT p.event_id, p.endpoint_id, p.event_at, p.reason, p.attempts, p.status, p.error_class, p.error, p.fingerprint,
                   g.ordering_key, coalesce(g.scan, 0)
              FROM parked p LEFT JOIN gone g ON g.event_id = p.event_id AND g.event_at = p.event_at AND g.endpoint_id = p.endpoint_id
             WHERE CASE WHEN p.from_batch
                        THEN NOT EXISTS (SELECT FROM delivered a WHERE a.event_id = p.event_id AND a.event_at = p.event_at
                                            AND a.endpoint_id = p.endpoint_id)
                             AND NOT EXISTS (SELECT FROM outbox.delivery d
                                              WHERE d.event_id = p.event_id AND d.event_at = p.event_at AND d.endpoint_id = p.endpoint_id)
                        ELSE g.event_id IS NOT NULL END
            ON CONFLICT (event_id, endpoint_id, event_at) DO NOTHING
            RETURNING endpoint_id, ordering_key
            """)
        try advance(parked, afterLoss: false)
        return parked.count < dead.count ? dead.map(\.0.delivery.event) : []
    }

    /// Removes deliveries that their endpoints do not want from their lanes.
    private mutating func discard(_ outcomes: [Outcome]) throws {
        let deliveries = outcomes.filter { if case .unwanted = $0.resolution { true } else { false } }.map(\.delivery)
        if deliveries.isEmpty { return }
        try advance(
            try query(
                """
                DELETE FROM outbox.delivery d USING unnest(\(deliveryRows(deliveries))) AS p(event_id, event_at, endpoint_id)
                 WHERE \(lookUp("d", by: "p"))
                RETURNING d.endpoint_id, d.ordering_key
                """), afterLoss: false)
    }

    /// Deletes batches whose every delivery is resolved, and returns those that were not ours to
    /// delete.
    private mutating func finish(_ batches: Set<HeldBatch>) throws -> [Holder] {
        if batches.isEmpty { return [] }
        let deleted = try query("\(deletion(of: batches)) RETURNING b.lease_id").all(LeaseID.self)
        return batches.filter { !deleted.contains($0.lease) }.map { .batch($0) }
    }

    private func deletion(of batches: Set<HeldBatch>) -> SQL {
        let batches = Array(batches)
        return """
            DELETE FROM outbox.batch b
             USING unnest(\(batches.map(\.lease)), \(batches.map(\.id)), \(batches.map(\.server.time))) AS f(lease_id, id, server)
             WHERE b.id = ANY (ARRAY[f.id]) AND b.lease_id = f.lease_id AND f.server = pg_postmaster_start_time()
            """
    }

    /// A lost lease on a batch means that its new holder may have moved deliveries into a lane that
    /// we had already delivered. Our recorded successes clear them; a replay that an operator asked
    /// for stays. Successes of a lane clear rows as they are recorded.
    private mutating func heal(_ lost: Set<Holder>, events: [LeaseID: [EventKey]]) throws {
        for holder in lost {
            guard let lease = holder.batch?.lease, let events = events[lease], !events.isEmpty else { continue }
            try query(
                """
                DELETE FROM outbox.delivery d USING \(attemptRows(of: events)) a
                 WHERE a.lease_id = \(lease) AND a.outcome = 'success'
                   AND \(lookUp("d", by: "a")) AND d.trigger <> 'replay'
                """)
            try query(
                """
                DELETE FROM outbox.dead_letter d USING \(attemptRows(of: events)) a
                 WHERE a.lease_id = \(lease) AND a.outcome = 'success'
                   AND \(lookUp("d", by: "a"))
                """)
        }
    }

    /// The delivered ones among the deliveries of these events, as a statement.
    private func deliveries(of events: [EventKey]) -> SQL {
        """
        SELECT a.event_id, a.event_at, a.endpoint_id FROM \(attemptRows(of: events)) a
         WHERE a.outcome = 'success' AND outbox.is_delivery(a.trigger)
        """
    }

    private func fingerprint(_ outcome: Outcome, _ reason: DeadReason) -> String {
        // Digits differ from one failure to the next of the same kind: ports, ids, milliseconds.
        let message = (outcome.error ?? "").filter { !$0.isNumber }
        let text = "\(reason.rawValue)|\(outcome.errorClass ?? "")|\(outcome.attempt?.status ?? 0)|\(message)"
        return hexadecimal(SHA256.hash(data: Array(text.utf8)).prefix(8))
    }
}
