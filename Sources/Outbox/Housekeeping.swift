package import Postgres

extension Connection {
    /// Reports that this worker process is alive; the first report adds its row.
    package mutating func heartbeat(worker: String, host: String, pid: Int) throws {
        try query(
            """
            INSERT INTO outbox.worker (id, version, host, pid)
            VALUES (\(worker), \(outboxVersion), \(host), \(Int32(pid)))
            ON CONFLICT (id) DO UPDATE SET heartbeat_at = clock_timestamp()
            """)
    }

    /// Writes down where this database is, and returns the timeline when nobody had: after a failover or a recovery.
    package mutating func noteTimeline() throws -> Int? {
        try query(
            """
            INSERT INTO outbox.timeline (timeline)
            SELECT t.timeline FROM (SELECT outbox.current_timeline() AS timeline) t
             WHERE NOT EXISTS (SELECT FROM outbox.timeline o WHERE o.timeline = t.timeline
                                  AND o.cluster = outbox.cluster_identifier() AND o.database = outbox.database_identifier())
            ON CONFLICT DO NOTHING RETURNING timeline
            """
        ).first { row throws(PostgresError) in try row[0] as Int }
    }

    /// Takes this worker off the list, at a graceful stop.
    package mutating func removeWorker(_ worker: String) throws {
        try query("DELETE FROM outbox.worker WHERE id = \(worker)")
    }

    /// Makes partitions ahead, drops expired ones of which nothing is outstanding, and removes small rows past their use.
    /// Every step may be done by several workers at once. Returns the names of dropped partitions.
    package mutating func keepHouse() throws -> [String] {
        try query("SELECT outbox.make_partitions()")
        // One a statement: however many have expired, no lock is held for long, and each fits its deadline.
        func each(_ step: SQL) throws -> [String] {
            var names: [String] = []
            while case let name?? = try query(step).first({ row throws(PostgresError) in try row[0] as String? }) {
                names.append(name)
            }
            return names
        }
        _ = try each("SELECT outbox.empty_expired_partition()")
        let dropped = try each("SELECT outbox.drop_expired_partition()")
        try trimHistory()
        let deleted = try query(
            """
            SELECT n.id FROM outbox.endpoint n
             WHERE n.deleted_at IS NOT NULL 
               AND (EXISTS (SELECT FROM outbox.delivery d WHERE d.endpoint_id = n.id AND d.due_at < 'infinity')
                    OR EXISTS (SELECT FROM outbox.delivery d WHERE d.endpoint_id = n.id AND d.ordering_key IS NOT NULL)
                    OR EXISTS (SELECT FROM outbox.unrouted u WHERE u.endpoint_id = n.id))
            """
        ).map { row throws(PostgresError) in try row[0] as EndpointID }
        for endpoint in deleted { while try cancelDeleted(endpoint) > 0 {} }
        try query("DELETE FROM outbox.worker WHERE heartbeat_at < clock_timestamp() - interval '1 day'")
        try query("DELETE FROM outbox.secret WHERE expires_at < clock_timestamp() - interval '1 day'")
        try query(
            "DELETE FROM outbox.dedup WHERE created_at < clock_timestamp() - (SELECT event_retention FROM outbox.setting)"
        )
        try query(
            "DELETE FROM outbox.ghost WHERE noted_at < clock_timestamp() - (SELECT attempt_retention FROM outbox.setting)"
        )
        return dropped
    }

    /// The installation's part of every webhook-id.
    package mutating func instance() throws -> String {
        try query("SELECT instance FROM outbox.setting").first { row throws(PostgresError) in try row[0] } ?? ""
    }

    /// Writes one line of the audit log, in the caller's transaction.
    package mutating func audit(
        _ action: String, endpoint: EndpointID, reason: String? = nil, detail: JSONText = JSONText("{}")
    ) throws {
        try audit(action, object: "endpoint/\(endpoint)", reason: reason, detail: detail)
    }

    package mutating func audit(
        _ action: String, object: String, reason: String? = nil, detail: JSONText = JSONText("{}")
    ) throws {
        try query(
            """
            SELECT outbox.record_audit(\(action), \(object), \(reason), \(detail)::jsonb)
            """)
    }
}
