import Postgres

extension EndpointState {
    /// The columns of a lane `l` and its endpoint `n` that a statement selects to read the state.
    static let columns: StaticString = """
        CASE WHEN n.disabled_at IS NOT NULL THEN coalesce(n.disabled_reason, '') END, l.paused_from, l.paused_until, l.drain_rate,
        l.resting_until, l.trips, l.failing_since, l.recovered_at
        """

    /// Reads these columns, starting at `place`.
    init(_ row: Row, from place: Int) throws(PostgresError) {
        disabledReason = try row[place]
        pause = Pause(
            from: try row[place + 1], until: try row[place + 2],
            // The column holds no rate that cannot be read.
            drainRate: (try row[place + 3] as String?).flatMap { try? RateLimit($0) })
        restingUntil = try row[place + 4]
        let failing = Breaker.Failing(trips: try row[place + 5], since: try row[place + 6])
        let recoveredAt: Timestamp? = try row[place + 7]
        breaker =
            switch (failing.trips > 0, recoveredAt) {
            case (true, nil): .open(failing)
            case (true, let since?): .recovering(failing, since: since)
            case (false, let since?): .catchingUp(since: since)
            case (false, nil): .closed
            }
    }
}

extension Connection {
    /// Applies an event to an endpoint, at the database's time and under its lane's lock, and
    /// returns the state before and after. Runs in a transaction.
    ///
    /// - Parameter lease: the lane must be held under it.
    /// - Returns: nil when there is no such endpoint, or the lane is not held under the lease any
    ///   more.
    @discardableResult
    mutating func change(
        _ endpoint: EndpointID, by event: EndpointState.Event, under lease: LeaseID? = nil
    ) throws -> (before: EndpointState, after: EndpointState)? {
        let isOurs: SQL = lease.map { "l.lease_id = \($0)" } ?? "true"
        let found = try query(
            """
            SELECT clock_timestamp(), \(raw: "\(EndpointState.columns)")
              FROM outbox.lane l JOIN outbox.endpoint n ON n.id = l.endpoint_id WHERE l.endpoint_id = \(endpoint) AND \(isOurs) FOR UPDATE OF l
            """
        ).map { row throws(PostgresError) in (now: try row[0] as Timestamp, state: try EndpointState(row, from: 1)) }
        guard let (now, before) = found.first else { return nil }
        guard let after = before.after(event, at: now) else { return (before, before) }
        try write(after, instead: before, of: endpoint)
        return (before, after)
    }

    private mutating func write(_ state: EndpointState, instead before: EndpointState, of endpoint: EndpointID) throws {
        if state.disabledReason != before.disabledReason {
            try query(
                """
                UPDATE outbox.endpoint
                   SET disabled_at = CASE WHEN \(state.isDisabled) THEN coalesce(disabled_at, clock_timestamp()) END,
                       disabled_reason = \(state.disabledReason), revision = revision + 1, updated_at = clock_timestamp()
                 WHERE id = \(endpoint)
                """)
        }
        var lane = before
        lane.disabledReason = state.disabledReason
        if lane == state { return }
        let failing = state.breaker.failing
        // The lane's owner sends a probe, whether or not a delivery in the lane is due.
        let isTripped = (failing?.trips ?? 0) > (before.breaker.failing?.trips ?? 0)
        try query(
            """
            UPDATE outbox.lane
               SET paused_from = \(state.pause.from), paused_until = \(state.pause.until), drain_rate = \(state.pause.drainRate?.description),
                   resting_until = \(state.restingUntil), trips = \(failing?.trips ?? 0), failing_since = \(failing?.since),
                   recovered_at = \(state.breaker.recoveredAt),
                   due_at = CASE WHEN \(isTripped) THEN least(due_at, clock_timestamp()) ELSE due_at END
             WHERE endpoint_id = \(endpoint)
            """)
    }

    /// Applies the events that responses reported; the lanes are locked. When another session holds
    /// one of the endpoints' locks for too long, it returns the events to be written later, and the
    /// rest of the transaction still takes effect.
    mutating func changeUnlessLocked(
        _ events: [EndpointID: EndpointState.Event], by actor: Actor
    ) throws -> [EndpointID: EndpointState.Event] {
        if events.isEmpty { return [:] }
        try query("SAVEPOINT endpoints")
        try query("SET LOCAL lock_timeout = '100ms'")
        do {
            for (endpoint, event) in events.sorted(by: { $0.key.description < $1.key.description }) {
                try changeAndTell(endpoint, by: event, actor)
            }
        } catch let error as PostgresError where error.sqlState == "55P03" {
            try query("ROLLBACK TO SAVEPOINT endpoints")
            return events
        }
        return [:]
    }

    /// An end that no operator asked for goes into the audit log, and is published as an event for
    /// endpoints that want it.
    private mutating func changeAndTell(
        _ endpoint: EndpointID, by event: EndpointState.Event, _ actor: Actor
    ) throws {
        guard let (before, after) = try change(endpoint, by: event), !before.isDisabled,
            let reason = after.disabledReason
        else { return }
        try audit("endpoint.disable", endpoint: endpoint, reason: reason, by: actor)
        // `*` does not include the events that the service publishes about itself.
        try query(
            """
            INSERT INTO outbox.event (type, change_type, customer_id, identity, after)
            SELECT 'outbox.endpoint.disabled', 'Update', CASE n.customer_id WHEN '*' THEN 'outbox' ELSE n.customer_id END, 'outbox',
                   json_build_object('endpoint_id', n.id, 'endpoint', n.name, 'customer_id', n.customer_id, 'reason', \(reason))
              FROM outbox.endpoint n WHERE n.id = \(endpoint)
            """)
    }
}
