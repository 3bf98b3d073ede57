package import Postgres

/// The answer to a claim of lanes: the database's clock and endpoint generation, the lanes that are this worker's now,
/// and when the next one will be due.
package struct LaneClaim: Sendable {
    package let now: Timestamp
    package let generation: Generation
    package let lanes: [ClaimedLane]
    package let nextDueAt: Timestamp?
}

/// An endpoint's waiting line that is this worker's until the lease ends.
package struct ClaimedLane: Sendable {
    package let endpoint: EndpointID
    package let lease: LeaseID
    /// How often it was claimed since it was last released cleanly, this claim included.
    package let claims: Int
    /// True while its breaker is open.
    package let isFailing: Bool
    /// True when its receiver asked for a rest that has just ended.
    package let isRested: Bool
    /// When its endpoint answered again: what was tried before is due.
    package let recoveredAt: Timestamp?
    package let floor: LaneFloor
}

/// Nothing in a lane is due before: on the server that said so. One that was put in its place after a failover or a restore may have
/// rows again that were delivered before, and must be asked anew.
package struct LaneFloor: Sendable, Equatable {
    package let dueAt: Timestamp
    let server: ServerStart

    package init(dueAt: Timestamp, server: ServerStart) {
        self.dueAt = dueAt
        self.server = server
    }

    /// Of somebody who knows nothing of the lane.
    package static let none = LaneFloor(dueAt: .distantPast, server: ServerStart(time: .distantPast))

    /// The time in a statement.
    var bound: SQL {
        "CASE WHEN pg_postmaster_start_time() = \(server.time) THEN \(dueAt) ELSE '-infinity'::timestamptz END"
    }
}

/// The answer to a look at lanes that are held: the database's clock and endpoint generation, and when the earliest delivery
/// of each is due; none for a lane with nothing in it.
package struct LaneLook: Sendable {
    package let now: Timestamp
    package let generation: Generation
    package let due: [EndpointID: Timestamp]
}

/// A delivery that waits in a lane and is due.
package struct WaitingDelivery: Sendable {
    package let event: EventKey
    package let dueAt: Timestamp
    package let attempts: Int
    package let crashes: Int
    package let trigger: Trigger
    /// Others of its ordering key wait for it.
    package let isOrdered: Bool
    /// Nil only when the event's row is gone, which retention never lets happen.
    package fileprivate(set) var content: Event?
}

/// Where a lane's reader has got to; rows before it are in flight or were moved.
package struct LaneCursor: Sendable, Equatable {
    package let dueAt: Timestamp
    package let event: EventID

    package init(dueAt: Timestamp, event: EventID) {
        self.dueAt = dueAt
        self.event = event
    }

    /// Before everything that is due at that time or later. Beginning there, and not at the head of the index, passes by
    /// the dead entries of what was delivered, which stay for as long as somebody holds a snapshot.
    package static func start(_ floor: LaneFloor) -> LaneCursor {
        LaneCursor(dueAt: floor.dueAt, event: EventID(rawValue: 0))
    }
}

extension Connection {
    /// Claims lanes that have due deliveries, longest due first.
    ///
    /// - Parameters:
    ///   - excluded: endpoints that this worker cannot serve or already does.
    ///   - customers: those that have enough lanes here.
    ///   - instance: which installation it must be; nil for any.
    package mutating func claimLanes(
        lease: LeaseID, worker: String, for duration: Duration, excluding excluded: [EndpointID],
        customers: [String] = [], instance: String? = nil
    ) throws -> LaneClaim {
        let rows = try query(
            """
            WITH due AS MATERIALIZED (
                SELECT l.endpoint_id FROM outbox.lane l JOIN outbox.endpoint n ON n.id = l.endpoint_id
                 WHERE outbox.is_home(\(instance)) AND l.due_at <= clock_timestamp() AND l.lease_until < clock_timestamp()
                   AND l.held_until <= clock_timestamp()
                   AND NOT (l.paused_from <= clock_timestamp() AND l.paused_until > clock_timestamp())
                   AND n.disabled_at IS NULL AND n.deleted_at IS NULL AND l.endpoint_id <> ALL (\(excluded))
                   AND n.customer_id <> ALL (\(customers))
                 ORDER BY l.due_at LIMIT 16 FOR UPDATE OF l SKIP LOCKED),
            claimed AS (
                UPDATE outbox.lane l
                   SET lease_id = \(lease), worker = \(worker), claims = least(l.claims, 1000000) + 1,
                       lease_until = clock_timestamp() + \(duration)
                  FROM due WHERE l.endpoint_id = due.endpoint_id
                RETURNING l.endpoint_id, l.claims, l.opens, l.recovered_at, l.due_at, l.held_until)
            SELECT clock_timestamp(), g.mark,
                   (SELECT min(greatest(l.due_at, l.held_until, CASE WHEN l.paused_from <= clock_timestamp() THEN l.paused_until END,
                                        l.lease_until))
                      FROM outbox.lane l JOIN outbox.endpoint n ON n.id = l.endpoint_id
                     WHERE l.due_at < 'infinity' AND n.disabled_at IS NULL AND n.deleted_at IS NULL
                       AND l.endpoint_id <> ALL (\(excluded)) AND l.endpoint_id NOT IN (SELECT endpoint_id FROM claimed)),
                   c.endpoint_id, c.claims, c.opens > 0, c.recovered_at, c.due_at,
                   c.opens = 0 AND c.held_until > clock_timestamp() - interval '10 s', pg_postmaster_start_time()
              FROM (SELECT mark FROM outbox.generation ORDER BY id DESC LIMIT 1) g LEFT JOIN claimed c ON true
            """)
        let head =
            try rows.first { row throws(PostgresError) in
                (try row[0] as Timestamp, try row[1] as Generation, try row[2] as Timestamp?)
            } ?? (.distantPast, .unknown, nil)
        let lanes = try rows.map { row throws(PostgresError) -> ClaimedLane? in
            guard let endpoint = try row[3] as EndpointID? else { return nil }
            return ClaimedLane(
                endpoint: endpoint, lease: lease, claims: try row[4], isFailing: try row[5], isRested: try row[8],
                recoveredAt: try row[6], floor: LaneFloor(dueAt: try row[7], server: ServerStart(time: try row[9])))
        }
        return LaneClaim(now: head.0, generation: head.1, lanes: lanes.compactMap { $0 }, nextDueAt: head.2)
    }

    /// How long ago the last requests to an endpoint started, newest first: what its rates have to count. Trials count, too.
    package mutating func recentStarts(
        of endpoint: EndpointID, atMost count: Int, within period: Duration
    ) throws -> [Duration] {
        try query(
            """
            SELECT (extract(epoch FROM clock_timestamp() - at) * 1000000)::bigint
              FROM outbox.recent_starts(\(endpoint), \(period), \(Int32(clamping: count))) AS at
            """
        ).map { row throws(PostgresError) in .microseconds(try row[0] as Int64) }
    }

    /// The due deliveries of a lane after the cursor, oldest first, at most 200.
    ///
    /// - Parameters:
    ///   - recoveredAt: what was last tried before then is due, too.
    ///   - instance: which installation it must be; nil for any.
    package mutating func lanePage(
        of endpoint: EndpointID, after cursor: LaneCursor, recoveredAt: Timestamp?, instance: String? = nil
    ) throws -> [WaitingDelivery] {
        // statement_timestamp() is stable and so can bound the index scan; clock_timestamp() cannot. What was tried and is not
        // due has an index of its own, so that a million rows that were not cost nothing.
        let waiting: SQL = """
            SELECT * FROM outbox.delivery
             WHERE outbox.is_home(\(instance)) AND endpoint_id = \(endpoint) AND due_at <= statement_timestamp() AND due_at < 'infinity'
               AND (due_at, event_id) > (\(cursor.dueAt), \(cursor.event))
             ORDER BY due_at, event_id LIMIT 200
            """
        let rows: SQL =
            if let recoveredAt {
                """
                SELECT * FROM ((\(waiting)) UNION ALL (
                    SELECT * FROM outbox.delivery
                     WHERE outbox.is_home(\(instance)) AND endpoint_id = \(endpoint) AND due_at > statement_timestamp() AND due_at < 'infinity'
                       AND last_at IS NOT NULL AND last_at < \(recoveredAt)
                       AND (due_at, event_id) > (\(cursor.dueAt), \(cursor.event))
                     ORDER BY due_at, event_id LIMIT 200)) both_parts
                 ORDER BY due_at, event_id LIMIT 200
                """
            } else { waiting }
        let found = try query(
            """
            WITH page AS MATERIALIZED (\(rows))
            SELECT d.event_id, d.event_at, d.due_at, d.attempts, d.crashes, d.trigger, d.ordering_key IS NOT NULL, \(raw: Event.noColumns)
              FROM page d
            UNION ALL
            -- In the order of the page, so far as few partitions have them, and up to 1 MiB of them.
            SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, \(raw: Event.columns)
              FROM (SELECT e.*, sum(outbox.stored_size(e.before, e.after)) OVER (
                               ORDER BY e.ordinality ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
                      FROM outbox.first_events_at(
                               ARRAY(SELECT d.event_id FROM page d ORDER BY d.due_at, d.event_id),
                               ARRAY(SELECT d.event_at FROM page d ORDER BY d.due_at, d.event_id)) WITH ORDINALITY e) e
             WHERE coalesce(e.bytes_before, 0) < 1048576
            """)
        var (page, events): ([WaitingDelivery], [EventKey: Event]) = ([], [:])
        // The rows come in no order that SQL would promise: of deliveries, and of events.
        _ = try found.map { row throws(PostgresError) in
            guard let id = try row[0] as EventID? else {
                let event = try Event(row: row, from: 7)
                return events[event.key] = event
            }
            page.append(
                WaitingDelivery(
                    event: EventKey(id: id, createdAt: try row[1]), dueAt: try row[2], attempts: try row[3],
                    crashes: try row[4],
                    trigger: Trigger(rawValue: try row[5]) ?? .retry, isOrdered: try row[6], content: nil))
        }
        for index in page.indices { page[index].content = events[page[index].event] }
        page.sort { ($0.dueAt, $0.event.id.rawValue) < ($1.dueAt, $1.event.id.rawValue) }
        // What comes after the last event that was read is for another page. When none was, the first one's row is gone, and of the
        // others nobody knows.
        let last = page.lastIndex { $0.content != nil } ?? 0
        return Array(page.prefix(last + 1))
    }

    /// Which of these deliveries are still in the lane.
    package mutating func waiting(_ events: [EventKey], in endpoint: EndpointID) throws -> [EventKey] {
        try query(
            """
            SELECT d.event_id, d.event_at FROM unnest(\(events.map(\.id)), \(events.map(\.createdAt))) AS w(event_id, event_at)
              JOIN outbox.delivery d ON d.event_id = ANY (ARRAY[w.event_id]) AND d.endpoint_id = \(endpoint) AND d.event_at = w.event_at
            """
        ).map { row throws(PostgresError) in EventKey(id: try row[0], createdAt: try row[1]) }
    }

    /// Writes down, before the send, that its worker died in it: one more attempt, one more crash, due again later.
    /// The outcome overwrites this; only a worker that really dies leaves it standing.
    ///
    /// Returns false, and writes nothing, when the lane is not held under this lease any more.
    package mutating func presumeCrash(
        _ pair: Pair, lane lease: LeaseID, dueIn delay: Duration
    ) throws -> Bool {
        try transaction { connection in
            guard try connection.lockLane(pair.endpoint, lease: lease) else { return false }
            return try connection.query(
                """
                UPDATE outbox.delivery
                   SET attempts = attempts + 1, crashes = crashes + 1, due_at = outbox.due_in(\(delay)), trigger = 'retry'
                 WHERE \(lookUp("delivery", pair)) AND due_at < 'infinity'
                """
            ).affected == 1
        }
    }

    /// Gives a lane back. Its row is locked first and its due time computed after: whoever adds a delivery does so
    /// before the lock, and is counted, or after it, and lowers the due time. No wake-up is lost between the two.
    ///
    /// - Parameter floor: nothing in it is due before.
    package mutating func releaseLane(_ endpoint: EndpointID, lease: LeaseID, floor: LaneFloor) throws -> Bool {
        try transaction { connection in
            // A clock that was set back meanwhile may have put something before the floor.
            let earliest = connection.earliest(
                in: endpoint, from: LaneFloor(dueAt: floor.dueAt + .seconds(-60), server: floor.server))
            guard try connection.lockLane(endpoint, lease: lease) else { return false }
            try connection.query(
                """
                UPDATE outbox.lane l
                   SET lease_id = NULL, worker = NULL, lease_until = '-infinity', claims = 0,
                       -- While it is failing or recovering, what waits is due as soon as it may be sent.
                       due_at = CASE WHEN l.opens = 0 AND l.recovered_at IS NULL
                                       OR NOT EXISTS (SELECT FROM outbox.delivery d WHERE d.endpoint_id = \(endpoint)
                                                         AND d.last_at IS NOT NULL AND d.due_at < 'infinity')
                                THEN \(earliest) ELSE least(clock_timestamp(), \(earliest)) END
                 WHERE l.endpoint_id = \(endpoint) AND l.lease_id = \(lease)
                """)
            return true
        }
    }

    /// When the earliest delivery of a lane is due.
    private func earliest(in endpoint: EndpointID, from floor: LaneFloor) -> SQL {
        """
        coalesce((SELECT d.due_at FROM outbox.delivery d WHERE d.endpoint_id = \(endpoint) AND d.due_at >= \(floor.bound)
                      AND d.due_at < 'infinity' ORDER BY d.due_at LIMIT 1), 'infinity')
        """
    }

    /// The time before which nothing in the lane is due or will be, as long as it is ours; nil when it is not. Nothing is written:
    /// whoever adds a delivery locks the lane first, and reads the clock after that.
    ///
    /// - Parameter floor: the one that was known before.
    package mutating func laneFloor(
        of endpoint: EndpointID, lease: LeaseID, from floor: LaneFloor
    ) throws -> LaneFloor? {
        try transaction { connection in
            guard try connection.lockLane(endpoint, lease: lease) else { return nil }
            return try connection.query(
                """
                SELECT least(clock_timestamp(), \(connection.earliest(in: endpoint, from: floor))), pg_postmaster_start_time()
                """
            ).first { row throws(PostgresError) in
                LaneFloor(dueAt: try row[0], server: ServerStart(time: try row[1]))
            }
        }
    }

    /// When something is due in lanes that are held, and what a worker has to know before it sends it.
    package mutating func earliestDue(in lanes: [EndpointID: LaneFloor]) throws -> LaneLook {
        let rows = try query(
            """
            SELECT clock_timestamp(), g.mark, l.endpoint_id, d.due_at
              FROM (SELECT mark FROM outbox.generation ORDER BY id DESC LIMIT 1) g
              LEFT JOIN (unnest(\(Array(lanes.keys)), \(lanes.values.map(\.dueAt)), \(lanes.values.map(\.server.time))) AS l(endpoint_id, floor, server)
                         CROSS JOIN LATERAL (
                             SELECT d.due_at FROM outbox.delivery d
                              WHERE d.endpoint_id = l.endpoint_id AND d.due_at < 'infinity'
                                AND d.due_at >= CASE WHEN pg_postmaster_start_time() = l.server THEN l.floor ELSE '-infinity'::timestamptz END
                              ORDER BY d.due_at LIMIT 1) d) ON true
            """)
        let head =
            try rows.first { row throws(PostgresError) in (try row[0] as Timestamp, try row[1] as Generation) }
            ?? (.distantPast, .unknown)
        let due = try rows.map { row throws(PostgresError) -> (EndpointID, Timestamp)? in
            guard let endpoint = try row[2] as EndpointID? else { return nil }
            return (endpoint, try row[3])
        }
        return LaneLook(
            now: head.0, generation: head.1,
            due: Dictionary(due.compactMap(\.self), uniquingKeysWith: { first, _ in first }))
    }

    /// All that had waited through a pause is through: the rate that was set for it ends.
    package mutating func endDrain(_ endpoint: EndpointID, lease: LeaseID) throws {
        try query(
            """
            UPDATE outbox.lane SET drain_rate = NULL
             WHERE endpoint_id = \(endpoint) AND lease_id = \(lease) AND drain_rate IS NOT NULL AND paused_until <= clock_timestamp()
            """)
    }

    /// The endpoint answers again: from now on everything that was tried before is due. Nil when the lane is not ours, or
    /// somebody has just found the endpoint failing.
    package mutating func beginRecovery(_ endpoint: EndpointID, lease: LeaseID) throws -> Timestamp? {
        try query(
            """
            UPDATE outbox.lane SET recovered_at = clock_timestamp()
             WHERE endpoint_id = \(endpoint) AND lease_id = \(lease) AND held_until <= clock_timestamp()
            RETURNING recovered_at
            """
        ).first { row throws(PostgresError) in try row[0] }
    }

    /// Closes the breaker: everybody sends again. False when the lane is not ours, or the endpoint was just found failing.
    package mutating func closeBreaker(_ endpoint: EndpointID, lease: LeaseID) throws -> Bool {
        try query(
            """
            UPDATE outbox.lane SET opens = 0, opened_at = NULL
             WHERE endpoint_id = \(endpoint) AND lease_id = \(lease) AND held_until <= clock_timestamp()
            """
        ).affected == 1
    }

    /// All that was tried before the recovery is through.
    package mutating func endRecovery(_ endpoint: EndpointID, lease: LeaseID) throws {
        try query(
            "UPDATE outbox.lane SET recovered_at = NULL WHERE endpoint_id = \(endpoint) AND lease_id = \(lease)")
    }

    private mutating func lockLane(_ endpoint: EndpointID, lease: LeaseID) throws -> Bool {
        try query("SELECT FROM outbox.lane WHERE endpoint_id = \(endpoint) AND lease_id = \(lease) FOR UPDATE").count
            == 1
    }
}
