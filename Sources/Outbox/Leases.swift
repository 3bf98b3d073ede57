package import Postgres

/// The batches and lanes that a worker holds, each under its lease.
package struct HeldLeases: Sendable {
    package var batches: [LeaseID: BatchID] = [:]
    package var lanes: [EndpointID: LeaseID] = [:]

    package init() {}
}

extension Connection {
    /// Prolongs the leases and returns those that are still ours; the missing ones were taken over.
    package mutating func renew(_ held: HeldLeases, for duration: Duration) throws -> HeldLeases {
        var renewed = HeldLeases()
        let batches = held.batches.sorted { $0.value.rawValue < $1.value.rawValue }
        if !batches.isEmpty {
            let ids = try query(
                """
                UPDATE outbox.batch b SET lease_until = clock_timestamp() + \(duration)
                  FROM unnest(\(batches.map(\.value)), \(batches.map(\.key))) AS held(id, lease_id)
                 WHERE b.id = ANY (ARRAY[held.id]) AND b.lease_id = held.lease_id
                RETURNING b.lease_id
                """
            ).map { row throws(PostgresError) in try row[0] as LeaseID }
            for id in ids { renewed.batches[id] = held.batches[id] }
        }
        let lanes = held.lanes.sorted { $0.key.description < $1.key.description }
        if !lanes.isEmpty {
            let ids = try query(
                """
                UPDATE outbox.lane l SET lease_until = clock_timestamp() + \(duration)
                  FROM unnest(\(lanes.map(\.key)), \(lanes.map(\.value))) AS held(endpoint_id, lease_id)
                 WHERE l.endpoint_id = ANY (ARRAY[held.endpoint_id]) AND l.lease_id = held.lease_id
                RETURNING l.endpoint_id
                """
            ).map { row throws(PostgresError) in try row[0] as EndpointID }
            for id in ids { renewed.lanes[id] = held.lanes[id] }
        }
        return renewed
    }

    /// Gives back whatever a claim took whose answer was lost. Nothing happens when it took nothing. A batch comes back as one
    /// that lost its worker: those are found also behind the floor of the others.
    ///
    /// - Parameter countsAsClaim: what was claimed could not be dispatched. It counts, so that one that never can goes to the lanes.
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
