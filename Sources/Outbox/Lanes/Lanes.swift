package import Bytewise
package import Postgres

/// The result of a claim of lanes: the database's clock, whether there is news of the endpoints,
/// the lanes that this worker now owns, and when the next one will be due.
package struct LaneClaim: Sendable {
    package let now: Timestamp
    package let hasEndpointNews: Bool
    package let lanes: [ClaimedLane]
    package let nextDueAt: Timestamp?
}

/// An endpoint's lane that this worker owns until the lease ends.
package struct ClaimedLane: Sendable {
    package let endpoint: EndpointID
    package let lease: LeaseID
    /// The number of claims since it was last released cleanly, this claim included.
    package let claims: Int
    /// The state at the time of the claim.
    package let state: EndpointState
    /// True when a rest that its receiver asked for has just ended.
    package let hasJustRested: Bool
    package let floor: LaneFloor
}

/// A time before which nothing in a lane is due, on the server that reported it. A server that
/// replaced it after a failover or a restore may again have rows that were already delivered, and
/// has to be queried again.
package struct LaneFloor: Sendable, Equatable {
    package let dueAt: Timestamp
    let server: ServerStart

    package init(dueAt: Timestamp, server: ServerStart) {
        self.dueAt = dueAt
        self.server = server
    }

    /// The floor when nothing is known of the lane.
    package static let none = LaneFloor(dueAt: .distantPast, server: ServerStart(time: .distantPast))

    /// The floor as an expression in a statement.
    var bound: SQL {
        "CASE WHEN pg_postmaster_start_time() = \(server.time) THEN \(dueAt) ELSE '-infinity'::timestamptz END"
    }
}

/// The result of a scan of held lanes: the database's clock, whether there is news of the
/// endpoints, and when the earliest delivery of each lane is due; an empty lane has no entry.
package struct LaneLook: Sendable {
    package let now: Timestamp
    package let hasEndpointNews: Bool
    package let due: [EndpointID: Timestamp]
}

/// A waiting delivery that is due.
package struct WaitingDelivery: Sendable {
    /// The max number of a lane's deliveries taken into memory at a time.
    package static let page = 200

    package let event: EventKey
    package let dueAt: Timestamp
    package let attempts: Int
    package let crashes: Int
    package let trigger: Trigger
    /// True when other deliveries of its ordering key wait for it.
    package let isOrdered: Bool
    /// Nil only when the event's row is gone, which retention rules out.
    package fileprivate(set) var content: Event?

    package init(
        event: EventKey, dueAt: Timestamp, attempts: Int, crashes: Int, trigger: Trigger, isOrdered: Bool,
        content: Event? = nil
    ) {
        (self.event, self.dueAt, self.attempts, self.crashes) = (event, dueAt, attempts, crashes)
        (self.trigger, self.isOrdered, self.content) = (trigger, isOrdered, content)
    }
}

/// Due deliveries of a lane, with their events.
package struct LanePage: Sendable {
    package let deliveries: [WaitingDelivery]
    /// The bytes of the first one's event, when it was too large to be read; then there are no
    /// deliveries here.
    package let needed: Int?
}

/// How far a lane's reader has got; rows before it are in flight or were moved.
package struct LaneCursor: Sendable, Equatable {
    package let dueAt: Timestamp
    package let event: EventID

    package init(dueAt: Timestamp, event: EventID) {
        self.dueAt = dueAt
        self.event = event
    }

    /// Before everything that is due at this time or later. Starting there, and not at the head of
    /// the index, skips the dead entries of delivered rows, which stay for as long as a session
    /// holds a snapshot.
    package static func start(_ floor: LaneFloor) -> LaneCursor {
        LaneCursor(dueAt: floor.dueAt, event: EventID(rawValue: 0))
    }
}

extension Connection {
    /// Claims lanes that have due deliveries, longest due first.
    ///
    /// - Parameters:
    ///   - excluded: endpoints that this worker cannot serve or already serves.
    ///   - customers: customers that have enough lanes in this worker.
    ///   - seen: how far this worker has read the endpoints.
    ///   - instance: which installation it must be; nil for any.
    package mutating func claimLanes(
        lease: LeaseID, worker: String, for duration: Duration, excluding excluded: [EndpointID],
        customers: [String] = [], endpoints seen: EndpointsSeen = .nothing, instance: String? = nil
    ) throws -> LaneClaim {
        let rows = try query(
            """
            WITH due AS MATERIALIZED (
                SELECT l.endpoint_id FROM outbox.lane l JOIN outbox.endpoint n ON n.id = l.endpoint_id
                 WHERE outbox.is_home(\(instance)) AND l.due_at <= clock_timestamp() AND l.lease_until < clock_timestamp()
                   AND outbox.accepts_requests(l, n) AND l.endpoint_id <> ALL (\(excluded))
                   AND n.customer_id <> ALL (\(customers))
                 ORDER BY l.due_at LIMIT 16 FOR UPDATE OF l SKIP LOCKED),
            claimed AS (
                UPDATE outbox.lane l
                   SET lease_id = \(lease), worker = \(worker), claims = least(l.claims, 1000000) + 1,
                       lease_until = clock_timestamp() + \(duration)
                  FROM due WHERE l.endpoint_id = due.endpoint_id
                RETURNING l.*)
            SELECT clock_timestamp(), g.has_news,
                   (SELECT min(outbox.claimable_at(l)) FROM outbox.lane l JOIN outbox.endpoint n ON n.id = l.endpoint_id
                     WHERE l.due_at < 'infinity' AND n.disabled_at IS NULL AND n.deleted_at IS NULL
                       AND l.endpoint_id <> ALL (\(excluded)) AND l.endpoint_id NOT IN (SELECT endpoint_id FROM claimed)),
                   l.endpoint_id, l.claims, l.due_at, pg_postmaster_start_time(), \(raw: "\(EndpointState.columns)")
              FROM (SELECT \(seen.hasNews) AS has_news) g
              LEFT JOIN (claimed l JOIN outbox.endpoint n ON n.id = l.endpoint_id) ON true
            """)
        let head =
            try rows.first { row throws(PostgresError) in
                (now: try row[0] as Timestamp, hasNews: try row[1] as Bool, nextDueAt: try row[2] as Timestamp?)
            } ?? (.distantPast, true, nil)
        let lanes = try rows.map { row throws(PostgresError) -> ClaimedLane? in
            guard let endpoint = try row[3] as EndpointID? else { return nil }
            let state = try EndpointState(row, from: 7)
            return ClaimedLane(
                endpoint: endpoint, lease: lease, claims: try row[4], state: state,
                hasJustRested: state.hasJustRested(at: head.now),
                floor: LaneFloor(dueAt: try row[5], server: ServerStart(time: try row[6])))
        }
        return LaneClaim(
            now: head.now, hasEndpointNews: head.hasNews, lanes: lanes.compactMap { $0 }, nextDueAt: head.nextDueAt)
    }

    /// How long ago the last requests to an endpoint started, newest first, as counted by its
    /// rates. Endpoint tests count, too.
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

    /// The due deliveries of a lane after the cursor, oldest first, at most `WaitingDelivery.page`,
    /// and no more than the bytes allow.
    ///
    /// - Parameters:
    ///   - recoveredAt: deliveries last tried before this time are due, too.
    ///   - instance: which installation it must be; nil for any.
    ///   - bytes: the max of their events together.
    ///   - memory: where the events are accounted for.
    ///   - party: whose they count as: the endpoint's customer's, who may get everybody's events.
    package mutating func lanePage(
        of endpoint: EndpointID, after cursor: LaneCursor, recoveredAt: Timestamp?, instance: String? = nil,
        atMost bytes: Int = EventMemory.mostAtATime, in memory: EventMemory? = nil, of party: ExactText? = nil
    ) throws -> LanePage {
        // statement_timestamp() is stable and so can bound the index scan; clock_timestamp()
        // cannot. Deliveries that were tried and are not due have an index of their own, so that a
        // million untried rows cost nothing.
        let waiting: SQL = """
            SELECT * FROM outbox.delivery
             WHERE outbox.is_home(\(instance)) AND endpoint_id = \(endpoint) AND due_at <= statement_timestamp() AND due_at < 'infinity'
               AND (due_at, event_id) > (\(cursor.dueAt), \(cursor.event))
             ORDER BY due_at, event_id LIMIT \(raw: "\(WaitingDelivery.page)")
            """
        let rows: SQL =
            if let recoveredAt {
                """
                SELECT * FROM ((\(waiting)) UNION ALL (
                    SELECT * FROM outbox.delivery
                     WHERE outbox.is_home(\(instance)) AND endpoint_id = \(endpoint) AND due_at > statement_timestamp() AND due_at < 'infinity'
                       AND last_at IS NOT NULL AND last_at < \(recoveredAt)
                       AND (due_at, event_id) > (\(cursor.dueAt), \(cursor.event))
                     ORDER BY due_at, event_id LIMIT \(raw: "\(WaitingDelivery.page)"))) both_parts
                 ORDER BY due_at, event_id LIMIT \(raw: "\(WaitingDelivery.page)")
                """
            } else { waiting }
        let found = try query(
            """
            WITH page AS MATERIALIZED (\(rows)),
            -- In the order of the page, so far as few partitions have them.
            found AS (
                SELECT e.*, sum(e.bytes) OVER (ORDER BY e.ordinality ROWS UNBOUNDED PRECEDING) AS bytes_so_far
                  FROM outbox.first_events_at(
                           ARRAY(SELECT d.event_id FROM page d ORDER BY d.due_at, d.event_id),
                           ARRAY(SELECT d.event_at FROM page d ORDER BY d.due_at, d.event_id)) WITH ORDINALITY e)
            SELECT d.event_id, d.event_at, d.due_at, d.attempts, d.crashes, d.trigger, d.ordering_key IS NOT NULL, \(raw: Event.noColumns)
              FROM page d
            UNION ALL
            SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, \(raw: Event.columns)
              FROM found e WHERE e.bytes_so_far <= \(Int64(bytes))
            UNION ALL
            -- The size of the first, when it alone is too large.
            SELECT NULL, NULL, NULL, e.bytes, NULL, NULL, NULL, \(raw: Event.noColumns)
              FROM found e WHERE e.ordinality = 1 AND e.bytes > \(Int64(bytes))
            """)
        var (page, events): ([WaitingDelivery], [EventKey: Event]) = ([], [:])
        var needed: Int?
        // SQL promises no order of the rows: neither of deliveries nor of events.
        _ = try found.map { row throws(PostgresError) in
            guard let id = try row[0] as EventID? else {
                if let bytes = try row[3] as Int? { return needed = bytes }
                let event = try Event(row: row, from: 7, in: memory, of: party)
                return events[event.key] = event
            }
            page.append(
                WaitingDelivery(
                    event: EventKey(id: id, createdAt: try row[1]), dueAt: try row[2], attempts: try row[3],
                    crashes: try row[4],
                    trigger: try row[5], isOrdered: try row[6], content: nil))
        }
        for index in page.indices { page[index].content = events[page[index].event] }
        page.sort { ($0.dueAt, $0.event.id.rawValue) < ($1.dueAt, $1.event.id.rawValue) }
        // Deliveries after the last event that was read are left for another page. When no event
        // was read, the first one's row is gone, and nothing is known of the others.
        let last = page.lastIndex { $0.content != nil } ?? 0
        return LanePage(deliveries: needed == nil ? Array(page.prefix(last + 1)) : [], needed: needed)
    }

    /// Which of these deliveries are still in the lane.
    package mutating func waiting(_ events: [EventKey], in endpoint: EndpointID) throws -> [EventKey] {
        try query(
            """
            SELECT d.event_id, d.event_at FROM unnest(\(events.map(\.id)), \(events.map(\.createdAt))) AS w(event_id, event_at)
              JOIN outbox.delivery d ON d.event_id = ANY (ARRAY[w.event_id]) AND d.endpoint_id = \(endpoint) AND d.event_at = w.event_at
            """
        ).all(as: EventKey.self)
    }

    /// Records, before the send, that its worker died in it: one more attempt, one more crash, due
    /// again later. The outcome overwrites this; only a worker that really dies leaves it in place.
    ///
    /// Returns false, and writes nothing, when the lane is no longer held under this lease.
    package mutating func presumeCrash(
        _ delivery: DeliveryID, lane lease: LeaseID, dueIn delay: Duration
    ) throws -> Bool {
        try transaction { connection in
            guard try connection.lockLane(delivery.endpoint, lease: lease) else { return false }
            return try connection.query(
                """
                UPDATE outbox.delivery
                   SET attempts = attempts + 1, crashes = crashes + 1, due_at = outbox.due_in(\(delay)), trigger = 'retry'
                 WHERE \(lookUp("delivery", delivery)) AND due_at < 'infinity'
                """
            ).affected == 1
        }
    }

    /// Releases a lane. Its row is locked first and its due time computed after that: another
    /// session adds a delivery either before the lock, and it is counted, or after it, and lowers
    /// the due time. No wake-up is lost between the two.
    ///
    /// - Parameter floor: the time before which nothing in the lane is due.
    package mutating func releaseLane(_ endpoint: EndpointID, lease: LeaseID, floor: LaneFloor) throws -> Bool {
        try transaction { connection in
            // A clock that was set back meanwhile may have put a delivery before the floor.
            let earliest = connection.earliest(
                in: endpoint, from: LaneFloor(dueAt: floor.dueAt + .seconds(-60), server: floor.server))
            guard try connection.lockLane(endpoint, lease: lease) else { return false }
            try connection.query(
                """
                UPDATE outbox.lane l
                   SET lease_id = NULL, worker = NULL, lease_until = '-infinity', claims = 0,
                       -- While it is failing or recovering, what waits is due as soon as it may be sent.
                       due_at = CASE WHEN outbox.is_well(l)
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

    /// The time before which nothing in the lane is or becomes due, while we own it; nil when we do
    /// not. Nothing is written: a session that adds a delivery locks the lane first, and reads the
    /// clock after that.
    ///
    /// - Parameter floor: the previously known floor.
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

    /// When the held lanes are due, and what a worker has to know before it sends.
    package mutating func earliestDue(
        in lanes: [EndpointID: LaneFloor], endpoints seen: EndpointsSeen = .nothing
    ) throws -> LaneLook {
        let rows = try query(
            """
            SELECT clock_timestamp(), g.has_news, l.endpoint_id, d.due_at
              FROM (SELECT \(seen.hasNews) AS has_news) g
              LEFT JOIN (unnest(\(Array(lanes.keys)), \(lanes.values.map(\.dueAt)), \(lanes.values.map(\.server.time))) AS l(endpoint_id, floor, server)
                         CROSS JOIN LATERAL (
                             SELECT d.due_at FROM outbox.delivery d
                              WHERE d.endpoint_id = l.endpoint_id AND d.due_at < 'infinity'
                                AND d.due_at >= CASE WHEN pg_postmaster_start_time() = l.server THEN l.floor ELSE '-infinity'::timestamptz END
                              ORDER BY d.due_at LIMIT 1) d) ON true
            """)
        let head =
            try rows.first(Timestamp.self, Bool.self)
            ?? (.distantPast, true)
        let due = try rows.map { row throws(PostgresError) -> (EndpointID, Timestamp)? in
            guard let endpoint = try row[2] as EndpointID? else { return nil }
            return (endpoint, try row[3])
        }
        return LaneLook(
            now: head.0, hasEndpointNews: head.1,
            due: Dictionary(due.compactMap(\.self), uniquingKeysWith: { first, _ in first }))
    }

    /// Applies an event to the endpoint of a lane, and returns its state after that; nil when we no
    /// longer own the lane.
    package mutating func change(
        _ endpoint: EndpointID, by event: EndpointState.Event, owning lease: LeaseID
    ) throws -> EndpointState? {
        try transaction { try $0.change(endpoint, by: event, under: lease)?.after }
    }

    private mutating func lockLane(_ endpoint: EndpointID, lease: LeaseID) throws -> Bool {
        try query("SELECT FROM outbox.lane WHERE endpoint_id = \(endpoint) AND lease_id = \(lease) FOR UPDATE").count
            == 1
    }
}
