// The lease protocol is docs/architecture/leases.md: the rules R1 to R10, where each is kept, and
// how the races end.
//
// A batch is claimed in Batches.swift and a lane in Lanes.swift; both are renewed and given back
// here. The worker trusts a lease on its own clock (Scheduler's Lease.swift), and what it writes
// names the lease and reads the row count (Record.swift).

package import Postgres

/// The batches and lanes that a worker holds, each under its lease.
package struct HeldLeases: Sendable {
    package var batches: [LeaseID: BatchID] = [:]
    package var lanes: [EndpointID: LeaseID] = [:]
    /// Batches that we still hold and could not renew now, because another session has them locked.
    package var lockedBatches: Set<LeaseID> = []
    /// Lanes that we still hold and could not renew now, because another session has them locked.
    package var locked: Set<EndpointID> = []

    package init() {}
}

extension Connection {
    /// Renews the leases and returns those that we still hold; the missing ones were taken over.
    package mutating func renew(_ held: HeldLeases, for duration: Duration) throws -> HeldLeases {
        var renewed = HeldLeases()
        let batches = held.batches.sorted { $0.value.rawValue < $1.value.rawValue }
        if !batches.isEmpty {
            let ids = try query(
                """
                WITH free AS MATERIALIZED (
                    SELECT b.id FROM outbox.batch b WHERE b.id = ANY (\(batches.map(\.value))) ORDER BY b.id FOR UPDATE SKIP LOCKED),
                renewed AS (
                    UPDATE outbox.batch b SET lease_until = clock_timestamp() + \(duration)
                      FROM unnest(\(batches.map(\.value)), \(batches.map(\.key))) AS held(id, lease_id)
                     WHERE b.id = ANY (ARRAY[held.id]) AND b.lease_id = held.lease_id AND (b.id IN (SELECT f.id FROM free f)) IS TRUE
                    RETURNING b.lease_id)
                SELECT lease_id, false FROM renewed
                UNION ALL
                SELECT held.lease_id, true FROM unnest(\(batches.map(\.value)), \(batches.map(\.key))) AS held(id, lease_id)
                  JOIN outbox.batch b ON b.id = ANY (ARRAY[held.id]) AND b.lease_id = held.lease_id
                 WHERE (b.id IN (SELECT f.id FROM free f)) IS NOT TRUE
                """
            ).all(LeaseID.self, Bool.self)
            for (id, isLocked) in ids {
                if isLocked { renewed.lockedBatches.insert(id) } else { renewed.batches[id] = held.batches[id] }
            }
        }
        let lanes = held.lanes.sorted { $0.key.description < $1.key.description }
        if !lanes.isEmpty {
            // No lane's lock is waited for: without a renewal that lane's lease ends, and no other.
            let ids = try query(
                """
                WITH free AS MATERIALIZED (
                    SELECT l.endpoint_id FROM outbox.lane l WHERE l.endpoint_id = ANY (\(lanes.map(\.key))) ORDER BY l.endpoint_id FOR UPDATE SKIP LOCKED),
                renewed AS (
                    UPDATE outbox.lane l SET lease_until = clock_timestamp() + \(duration)
                      FROM unnest(\(lanes.map(\.key)), \(lanes.map(\.value))) AS held(endpoint_id, lease_id)
                     WHERE l.endpoint_id = ANY (ARRAY[held.endpoint_id]) AND l.lease_id = held.lease_id
                       AND (l.endpoint_id IN (SELECT f.endpoint_id FROM free f)) IS TRUE
                    RETURNING l.endpoint_id)
                SELECT endpoint_id, false FROM renewed
                UNION ALL
                SELECT l.endpoint_id, true FROM unnest(\(lanes.map(\.key)), \(lanes.map(\.value))) AS held(endpoint_id, lease_id)
                  JOIN outbox.lane l ON l.endpoint_id = ANY (ARRAY[held.endpoint_id]) AND l.lease_id = held.lease_id
                 WHERE (l.endpoint_id IN (SELECT f.endpoint_id FROM free f)) IS NOT TRUE
                """
            ).all(EndpointID.self, Bool.self)
            for (id, isLocked) in ids {
                if isLocked { renewed.locked.insert(id) } else { renewed.lanes[id] = held.lanes[id] }
            }
        }
        return renewed
    }

    /// Gives back everything that a claim took whose response was lost. Nothing happens when it
    /// took nothing. A batch comes back as one that lost its worker: claims find those even behind
    /// the floor of the others.
    ///
    /// - Parameter countsAsClaim: the claimed batch could not be dispatched. The claim counts, so
    ///   that a batch that never can be dispatched goes to the lanes.
    package mutating func releaseLeases(of lease: LeaseID, countsAsClaim: Bool = false) throws {
        let undone: Int32 = countsAsClaim ? 0 : 1
        try query(
            """
            UPDATE outbox.batch SET lease_id = NULL, lease_until = clock_timestamp(), claims = greatest(claims - \(undone), 1)
             WHERE lease_id = \(lease)
            """)
        try query(
            """
            UPDATE outbox.lane SET lease_id = NULL, lease_until = '-infinity', claims = greatest(claims - \(undone), 0)
             WHERE lease_id = \(lease)
            """)
    }
}
