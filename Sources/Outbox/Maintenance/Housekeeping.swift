import FoundationEssentials
package import Postgres

extension Connection {
    /// Reports that this worker process is alive, its complaints and how much of its budgets is
    /// taken; the first report adds its row.
    package mutating func heartbeat(
        worker: String, host: String, pid: Int, complaints: [Complaint] = [], budgets: [BudgetUse] = []
    ) throws {
        try query(
            """
            INSERT INTO outbox.worker AS w (id, version, host, pid, complaints, budgets)
            VALUES (\(worker), \(outboxVersion), \(host), \(Int32(pid)), (
                SELECT coalesce(jsonb_agg(jsonb_build_object(
                           'problem', c.problem, 'since', clock_timestamp() - c.age, 'detail', c.detail, 'fix', c.fix)), '[]')
                  FROM unnest(\(complaints.map(\.problem)), \(complaints.map(\.age)), \(complaints.map(\.detail)), \(complaints.map(\.fix)))
                       AS c(problem, age, detail, fix)), (
                SELECT coalesce(jsonb_object_agg(b.name, jsonb_build_object('used', b.used, 'limit', b.most)), '{}')
                  FROM unnest(\(budgets.map(\.name)), \(budgets.map { Int64($0.used) }), \(budgets.map { Int64($0.limit) }))
                       AS b(name, used, most)))
            ON CONFLICT (id) DO UPDATE SET heartbeat_at = clock_timestamp(), complaints = excluded.complaints,
                                           budgets = excluded.budgets
            """)
    }

    /// Records where this database is, and returns the timeline when it was not recorded yet: after
    /// a failover or a recovery.
    package mutating func noteTimeline() throws -> Int? {
        try query(
            """
            INSERT INTO outbox.timeline (timeline)
            SELECT t.timeline FROM (SELECT outbox.current_timeline() AS timeline) t
             WHERE NOT EXISTS (SELECT FROM outbox.timeline o WHERE o.timeline = t.timeline
                                  AND o.cluster = outbox.cluster_identifier() AND o.database = outbox.database_identifier())
            ON CONFLICT DO NOTHING RETURNING timeline
            """
        ).first(Int.self)
    }

    /// Removes this worker from the list, at a graceful stop.
    package mutating func removeWorker(_ worker: String) throws {
        try query("DELETE FROM outbox.worker WHERE id = \(worker)")
    }

    /// Makes partitions ahead, drops expired ones with nothing outstanding, and removes rows past
    /// their use: step by step, for as long as that may take. Each step keeps its work and fits its
    /// deadline. One step that fails stops no other. Several workers may do each step at once.
    package mutating func keepHouse(within limit: Duration = .seconds(20)) -> Housekeeping {
        var house = Housekeeping()
        let end = ContinuousClock.now + limit
        for chore in Housekeeping.Chore.allCases {
            do {
                while try house.note(perform(chore), of: chore) {
                    guard .now < end else {
                        house.isUnfinished = true
                        break
                    }
                }
            } catch {
                house.failures[chore] = error
            }
        }
        do {
            house.hasLeftovers =
                try query(
                    "SELECT FROM outbox.expired_partitions() x WHERE x.oid <> ALL ((SELECT outbox.needed_partitions())::oid[]) LIMIT 1"
                ).count > 0
        } catch { house.failures[.dropping] = house.failures[.dropping] ?? error }
        return house
    }

    /// One step of a chore: its work, as a name or a number of rows; nil and zero when nothing is
    /// left to do.
    private mutating func perform(_ chore: Housekeeping.Chore) throws -> Housekeeping.Step {
        func named(_ step: SQL) throws -> Housekeeping.Step {
            .named(try query(step).one(String?.self))
        }
        func counted(_ step: SQL) throws -> Housekeeping.Step {
            .rows(try query(step).one(Int.self))
        }
        func deleted(_ table: String, _ old: SQL) throws -> Housekeeping.Step {
            .rows(
                try query(
                    """
                    DELETE FROM outbox.\(raw: table) t WHERE t.ctid = ANY (ARRAY(
                        SELECT o.ctid FROM outbox.\(raw: table) o WHERE \(old) LIMIT \(raw: "\(Housekeeping.step)")))
                    """
                ).affected)
        }
        switch chore {
        case .partitions:
            return try named("SELECT outbox.make_next_partition()")
        case .closing: return try named("SELECT outbox.close_partition()")
        case .strays: return try counted("SELECT outbox.delete_strays(\(raw: "\(Housekeeping.step)"))")
        case .emptying: return try named("SELECT outbox.empty_expired_partition()")
        case .dropping: return try named("SELECT outbox.drop_expired_partition()")
        case .movingEvents: return try named("SELECT outbox.move_default_rows('event')")
        case .movingAttempts: return try named("SELECT outbox.move_default_rows('attempt')")
        case .expiringEvents:
            return try counted("SELECT outbox.delete_expired_rows('event', \(raw: "\(Housekeeping.step)"))")
        case .expiringAttempts:
            return try counted("SELECT outbox.delete_expired_rows('attempt', \(raw: "\(Housekeeping.step)"))")
        case .history: return .rows(try trimHistory())
        case .deletedEndpoints:
            let waiting = try query(
                """
                SELECT n.id FROM outbox.endpoint n
                 WHERE n.deleted_at IS NOT NULL
                   AND (EXISTS (SELECT FROM outbox.delivery d WHERE d.endpoint_id = n.id AND d.due_at < 'infinity')
                        OR EXISTS (SELECT FROM outbox.delivery d WHERE d.endpoint_id = n.id AND d.ordering_key IS NOT NULL)
                        OR EXISTS (SELECT FROM outbox.unrouted u WHERE u.endpoint_id = n.id)) LIMIT 1
                """
            ).first(EndpointID.self)
            return .rows(try waiting.map { try cancelDeleted($0) } ?? 0)
        case .cancelled:
            return try deleted(
                "dead_letter",
                "o.reason = 'cancelled' AND o.dead_at < statement_timestamp() - (SELECT event_retention FROM outbox.setting)"
            )
        case .deadOfDeleted:
            return try deleted(
                "dead_letter",
                """
                o.endpoint_id = ANY (ARRAY(SELECT n.id FROM outbox.endpoint n WHERE n.deleted_at IS NOT NULL))
                AND o.dead_at < statement_timestamp() - (SELECT event_retention FROM outbox.setting)
                """)
        case .workers: return try deleted("worker", "o.heartbeat_at < clock_timestamp() - interval '1 day'")
        case .secrets: return try deleted("secret", "o.expires_at < clock_timestamp() - interval '1 day'")
        case .dedupKeys:
            return try deleted(
                "dedup", "o.created_at < statement_timestamp() - (SELECT event_retention FROM outbox.setting)")
        case .ghosts:
            return try deleted(
                "ghost", "o.noted_at < statement_timestamp() - (SELECT attempt_retention FROM outbox.setting)")
        }
    }

    /// The installation's part of every webhook-id.
    package mutating func instance() throws -> String {
        try query("SELECT instance FROM outbox.setting").one(String.self)
    }

    /// Writes one line of the audit log, in the caller's transaction.
    package mutating func audit(
        _ action: String, endpoint: EndpointID, reason: String? = nil, detail: JSONText = JSONText("{}"),
        by actor: Actor
    ) throws {
        try audit(action, object: "endpoint/\(endpoint)", reason: reason, detail: detail, by: actor)
    }

    /// With the requested values as detail; nil values are left out.
    mutating func audit(
        _ action: String, endpoint: EndpointID, reason: String? = nil, detail: [String: String?], by actor: Actor
    ) throws {
        let json = try JSONEncoder().encode(detail.compactMapValues(\.self))
        try audit(action, endpoint: endpoint, reason: reason, detail: JSONText(Array(json)), by: actor)
    }

    package mutating func audit(
        _ action: String, object: String, reason: String? = nil, detail: JSONText = JSONText("{}"), by actor: Actor
    ) throws {
        try query("SELECT outbox.record_audit(\(actor.text), \(action), \(object), \(reason), \(detail)::jsonb)")
    }
}

/// A fault that only a worker knows of: a row of `outbox.problems` for as long as it lasts.
package struct Complaint: Sendable {
    package let problem: String
    /// How long the fault has lasted.
    package let age: Duration
    /// After the worker's name.
    package let detail: String
    package let fix: String

    package init(_ problem: String, age: Duration, detail: String, fix: String) {
        self.problem = problem
        self.age = age
        self.detail = detail
        self.fix = fix
    }
}

/// How much of a budget that customers share in a worker is taken.
package struct BudgetUse: Sendable {
    package let name: String
    package let used: Int
    package let limit: Int

    package init(name: String, used: Int, limit: Int) { (self.name, self.used, self.limit) = (name, used, limit) }
}

/// The result of one round of housekeeping.
package struct Housekeeping: Sendable {
    /// The chores, in their order.
    package enum Chore: String, CaseIterable, Sendable {
        case partitions
        case closing = "closed partitions"
        case strays
        case movingEvents = "events of the default partition"
        case movingAttempts = "attempts of the default partition"
        case emptying = "expired partitions"
        case dropping = "empty partitions"
        case expiringEvents = "expired events of the default partition"
        case expiringAttempts = "expired attempts of the default partition"
        case history
        case deletedEndpoints = "deliveries of deleted endpoints"
        case cancelled = "cancelled deliveries"
        case deadOfDeleted = "dead letters of deleted endpoints"
        case workers, secrets
        case dedupKeys = "dedup keys"
        case ghosts
    }

    fileprivate enum Step {
        case named(String?)
        case rows(Int)
    }

    /// Rows in one statement.
    fileprivate static let step = 10_000

    /// The partitions that were dropped.
    package fileprivate(set) var dropped: [String] = []
    /// How many rows each chore removed or moved.
    package fileprivate(set) var rows: [Chore: Int] = [:]
    /// The chores that failed.
    package fileprivate(set) var failures: [Chore: any Error] = [:]
    /// True when expired partitions that nothing needs still exist: another session used them, or
    /// their table.
    package fileprivate(set) var hasLeftovers = false
    /// True when the time did not suffice for everything.
    package fileprivate(set) var isUnfinished = false

    /// Notes the result of a step; true when another step may follow.
    fileprivate mutating func note(_ step: Step, of chore: Chore) -> Bool {
        switch step {
        case .named(let name):
            if let name, chore == .dropping { dropped.append(name) }
            return name != nil
        case .rows(let count):
            if count > 0 { rows[chore, default: 0] += count }
            return count > 0
        }
    }
}
