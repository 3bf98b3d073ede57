package import Postgres

extension Connection {
    /// Makes deliveries wait from a time on (now), until a time or `resumeEndpoint`. Nothing is
    /// lost: new ones wait in the lane. It replaces an earlier pause.
    ///
    /// - Parameter rate: how fast the waiting deliveries go out afterwards; nil for as fast as the
    ///   endpoint's limits allow.
    package mutating func pauseEndpoint(
        _ id: EndpointID, from: Timestamp? = nil, until: Timestamp?, rate: RateLimit? = nil, reason: String,
        by actor: Actor = .session
    ) throws {
        if let from, let until, from >= until {
            throw Problem(.invalidValue, "the pause ends before it begins", hint: "It must begin first")
        }
        try transaction { connection in
            let now: Timestamp =
                try connection.query("SELECT clock_timestamp()").one(Timestamp.self)
            if let until, until <= now {
                throw Problem(
                    .invalidValue,
                    "the pause would be over already: it ends at \(until), and it is \(now) in the database",
                    hint: "Give it an end that is to come, or none")
            }
            try connection.change(
                id, by: .pause(from: from ?? .distantPast, until: until ?? .distantFuture, drainRate: rate))
            try connection.query(
                "UPDATE outbox.lane SET pause_reason = \(reason), paused_by = coalesce(\(actor.text), session_user) WHERE endpoint_id = \(id)"
            )
            try connection.audit(
                "endpoint.pause", endpoint: id, reason: reason,
                detail: ["from": from?.description, "until": until?.description, "rate": rate?.description], by: actor)
        }
    }

    /// Ends a pause, even one that is only announced, and a rest that the receiver asked for.
    ///
    /// - Parameter rate: how fast the waiting deliveries go out; nil for as fast as the endpoint's
    ///   limits allow.
    package mutating func resumeEndpoint(
        _ id: EndpointID, rate: RateLimit? = nil, by actor: Actor = .session
    ) throws {
        try transaction { connection in
            try connection.change(id, by: .resume(drainRate: rate))
            try connection.query(
                "UPDATE outbox.lane SET pause_reason = NULL, paused_by = NULL WHERE endpoint_id = \(id)")
            try connection.audit("endpoint.resume", endpoint: id, detail: ["rate": rate?.description], by: actor)
        }
    }

    /// Routes no new events to it and sends nothing; waiting deliveries stay. An endpoint that is
    /// already disabled keeps its time of disabling, and only gets another reason when one is
    /// given.
    package mutating func disableEndpoint(
        _ id: EndpointID, reason: String?, by actor: Actor = .session
    ) throws {
        try transaction { connection in
            if let (before, after) = try connection.change(id, by: .disable(reason: reason)), before != after {
                try connection.audit("endpoint.disable", endpoint: id, reason: reason, by: actor)
            }
        }
    }

    /// Undoes `disableEndpoint`; the waiting deliveries go out. An enabled endpoint does not
    /// change.
    package mutating func enableEndpoint(_ id: EndpointID, by actor: Actor = .session) throws {
        try transaction { connection in
            if let (before, after) = try connection.change(id, by: .enable), before != after {
                try connection.audit("endpoint.enable", endpoint: id, by: actor)
            }
        }
    }

    /// How many deliveries wait for the endpoint.
    package mutating func waitingCount(_ id: EndpointID) throws -> Int {
        try query(
            """
            SELECT (SELECT count(*) FROM outbox.delivery WHERE endpoint_id = \(id))
                 + (SELECT count(*) FROM outbox.unrouted WHERE endpoint_id = \(id))
            """
        ).one(Int.self)
    }

    /// Deletes an endpoint. Its waiting deliveries are cancelled and stay visible as such; so does
    /// its history.
    ///
    /// - Parameters:
    ///   - revision: the one that the caller has seen; nil for any.
    ///   - cancelsWaiting: false when deliveries that wait are a reason not to.
    package mutating func deleteEndpoint(
        _ id: EndpointID, expecting revision: Int? = nil, cancelsWaiting: Bool = true, reason: String?,
        by actor: Actor = .session
    ) throws {
        try transaction { connection in
            try connection.lockLanes([id])
            if let revision { try connection.requireRevision(revision, of: id) }
            let waiting = cancelsWaiting ? 0 : try connection.waitingCount(id)
            if waiting > 0 {
                let name = try connection.query("SELECT name FROM outbox.endpoint WHERE id = \(id)").one(String.self)
                throw Problem(
                    .deliveriesWaiting, "\(waiting) deliveries wait for \"\(name)\" and would be cancelled",
                    hint: "Agree to that, or disable the endpoint, which keeps them",
                    next: UseCase("endpoint.disable", name))
            }
            try connection.query(
                """
                UPDATE outbox.endpoint
                   SET deleted_at = clock_timestamp(), revision = revision + 1, updated_at = clock_timestamp() WHERE id = \(id)
                """)
            try connection.query("DELETE FROM outbox.secret WHERE endpoint_id = \(id)")
            try connection.audit("endpoint.delete", endpoint: id, reason: reason, by: actor)
        }
        while try cancelDeleted(id) > 0 {}
    }

    /// Cancels some of a deleted endpoint's waiting deliveries, and returns how many. It works in
    /// steps, because a session that holds a lane's lock for long holds up the cut and every
    /// worker's records; workers finish a deletion that was interrupted.
    mutating func cancelDeleted(_ id: EndpointID) throws -> Int {
        try transaction { connection in
            try connection.lockLanes([id])
            return try connection.query(
                """
                WITH gone AS (
                    DELETE FROM outbox.delivery
                     WHERE (event_id, endpoint_id, event_at) IN (
                           (SELECT event_id, endpoint_id, event_at FROM outbox.delivery WHERE endpoint_id = \(id) AND due_at < 'infinity' LIMIT 2000)
                           UNION (SELECT event_id, endpoint_id, event_at FROM outbox.delivery
                                   WHERE endpoint_id = \(id) AND ordering_key IS NOT NULL LIMIT 2000))
                    RETURNING *),
                unrouted AS (
                    DELETE FROM outbox.unrouted
                     WHERE (event_id, endpoint_id, event_at) IN (
                           SELECT event_id, endpoint_id, event_at FROM outbox.unrouted WHERE endpoint_id = \(id) LIMIT 2000)
                    RETURNING *),
                cancelled AS (
                    SELECT event_id, endpoint_id, event_at, attempts, last_status, last_error_class FROM gone
                    UNION ALL SELECT event_id, endpoint_id, event_at, 0, NULL, NULL FROM unrouted),
                parked AS (
                    INSERT INTO outbox.dead_letter (event_id, endpoint_id, event_at, reason, attempts, status, error_class, error, fingerprint)
                    SELECT event_id, endpoint_id, event_at, 'cancelled', attempts, last_status, last_error_class, 'the endpoint was deleted',
                           'cancelled' FROM cancelled ON CONFLICT DO NOTHING)
                SELECT count(*) FROM cancelled
                """
            ).one(Int.self)
        }
    }
}
