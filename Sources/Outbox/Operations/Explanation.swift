package import Postgres

/// One reason why a delivery is held, or its final result.
package struct Explanation: Sendable, Equatable {
    package enum Reason: String, Sendable {
        // Reasons in its endpoint.
        case disabled, paused, failing, resting
        // Reasons in the waiting delivery itself.
        case order, retry, scheduled, limit, due
        case laneLocked = "lane_locked"
        // Its final result.
        case delivered, cancelled, dead
        // Not written yet, or never a delivery.
        case onItsWay = "on_its_way"
        case notCut = "not_cut"
        case noMatch = "no_match"
    }

    package let reason: Reason
    package let detail: String
    /// The use cases that would change that: one of them is enough.
    package let fixes: [UseCase]

    init(_ reason: Reason, _ detail: String, _ fixes: UseCase...) {
        (self.reason, self.detail, self.fixes) = (reason, detail, fixes)
    }
}

extension Connection {
    /// Why a delivery has not gone out, or its final result: one explanation per reason, the first
    /// to deal with first.
    ///
    /// Throws a `Problem` when there is no such event or endpoint.
    package mutating func explain(_ delivery: DeliveryID) throws -> [Explanation] {
        if let facts = try waitingFacts(of: delivery) { return facts.explanations }
        if let explanation = try explainUnrouted(delivery) { return [explanation] }
        if let explanation = try explainEnd(delivery) { return [explanation] }
        return [try explainAbsence(delivery)]
    }

    /// The waiting delivery with its lane and its endpoint; nil when it is not waiting.
    private mutating func waitingFacts(of delivery: DeliveryID) throws -> WaitingFacts? {
        try query(
            """
            SELECT \(raw: "\(EndpointState.columns)"), d.event_id, d.endpoint_id, n.name, n.disabled_at, l.paused_by, l.pause_reason,
                   clock_timestamp() AS now, d.due_at, d.attempts, d.last_status, d.last_error_class,
                   cardinality(n.retry_schedule) + 1 AS max_attempts, n.max_concurrency, n.rates, l.worker, l.lease_until,
                   EXISTS (SELECT FROM outbox.worker w WHERE w.heartbeat_at > clock_timestamp() - interval '30 s') AS has_worker,
                   outbox.key_of(d.ordering_key) AS key, x.event_id AS blocked_by,
                   CASE WHEN (f.event_id, f.event_at) <> (d.event_id, d.event_at) THEN f.event_id END AS behind, b.count AS before
              FROM outbox.delivery d JOIN outbox.lane l USING (endpoint_id) JOIN outbox.endpoint n ON n.id = d.endpoint_id
              LEFT JOIN LATERAL (
                   SELECT x.event_id FROM outbox.dead_letter x
                    WHERE x.endpoint_id = d.endpoint_id AND x.ordering_key = d.ordering_key AND x.reason <> 'cancelled'
                      AND n.on_dead = 'block' AND d.due_at = 'infinity' ORDER BY x.scan, x.event_id LIMIT 1) x ON true
              LEFT JOIN LATERAL (
                   SELECT f.event_id, f.event_at FROM outbox.delivery f
                    WHERE f.endpoint_id = d.endpoint_id AND f.ordering_key = d.ordering_key AND d.due_at = 'infinity'
                    ORDER BY f.due_at = 'infinity', f.scan, f.event_id LIMIT 1) f ON true
             CROSS JOIN LATERAL (
                   SELECT count(*) AS count FROM (
                          SELECT FROM outbox.delivery b
                           WHERE b.endpoint_id = d.endpoint_id AND (b.due_at, b.event_id) < (d.due_at, d.event_id)
                             AND b.due_at < 'infinity' AND d.due_at <= clock_timestamp() LIMIT 10000) b) b
             WHERE \(lookUp("d", delivery))
            """
        ).all(as: WaitingFacts.self).first
    }

    /// A delivery that has not come into its lane, because another session had the lane locked.
    private mutating func explainUnrouted(_ delivery: DeliveryID) throws -> Explanation? {
        let found = try query(
            """
            SELECT u.noted_at, u.noted_at < clock_timestamp() - interval '30 s' FROM outbox.unrouted u WHERE \(lookUp("u", delivery))
            """
        ).first(Timestamp.self, Bool.self)
        guard let (notedAt, isLong) = found else { return nil }
        let detail =
            "another session had the endpoint's lane locked when the event was cut, at \(time(notedAt)); "
            + "the next cut that finds it free puts the event in line"
        return isLong ? Explanation(.laneLocked, detail, UseCase("doctor")) : Explanation(.laneLocked, detail)
    }

    /// A delivery that no longer waits.
    private mutating func explainEnd(_ delivery: DeliveryID) throws -> Explanation? {
        let found = try listDeliveries(ListFilter(delivery))
        guard let state = found.first("state") else { return nil }
        let attempts = found.first("attempts") ?? "0"
        let at = found.first("last_at").flatMap { Timestamp(listed: $0) }
        switch state {
        case "delivered": return Explanation(.delivered, "delivered with attempt \(attempts) at \(time(at))")
        case "cancelled":
            return Explanation(.cancelled, "cancelled at \(time(at))", .delivery("dead.replay", delivery))
        default:
            let why = ["reason", "last_status", "last_error"].compactMap { found.first($0) }.joined(separator: ", ")
            return Explanation(
                .dead, "given up after \(attempts) attempts at \(time(at)): \(why)",
                .delivery("dead.replay", delivery))
        }
    }

    /// An event and an endpoint without a written delivery: not yet, or never.
    private mutating func explainAbsence(_ delivery: DeliveryID) throws -> Explanation {
        _ = try event(delivery.event)
        let batch = try query(
            """
            SELECT b.worker, b.lease_until, b.lease_until > clock_timestamp() FROM outbox.batch b
             WHERE b.ids @> \(delivery.event.id) AND \(delivery.event.createdAt) BETWEEN b.first_at AND b.last_at LIMIT 1
            """
        ).first(String?.self, Timestamp?.self, Bool?.self)
        if let (worker, until, isHeld) = batch {
            return Explanation(
                .onItsWay,
                isHeld == true
                    ? "worker \(worker ?? "") has its batch until \(time(until))" : "no worker has taken its batch")
        }
        let isCut = try query(
            """
            SELECT outbox.is_cut(k, e.tx, e.id) FROM outbox.events_at(\([delivery.event.id]), \([delivery.event.createdAt])) e
             CROSS JOIN (SELECT c AS k FROM outbox.cut c ORDER BY c.id DESC LIMIT 1) c
            """
        ).first(Bool.self)
        if isCut == false { return Explanation(.notCut, "committed, and no worker has seen it yet") }
        let mismatch = try query(
            """
            SELECT concat_ws('; ',
                       CASE WHEN n.customer_id NOT IN ('*', e.customer_id)
                            THEN format('its customer is %s, the endpoint''s is %s', e.customer_id, n.customer_id) END,
                       CASE WHEN NOT outbox.takes_type(n.event_types, e.type)
                            THEN format('its type is %s, the endpoint takes %s', e.type, outbox.patterns_in_words(n.event_types)) END,
                       CASE WHEN NOT outbox.matches(n.change_types, e.change_type)
                            THEN format('its change type is %s, the endpoint takes %s',
                                        e.change_type, outbox.patterns_in_words(n.change_types)) END,
                       CASE WHEN n.filter IS NOT NULL THEN format('its filter may not hold: %s', n.filter) END,
                       CASE WHEN n.created_at > e.created_at THEN 'the endpoint was created after it' END,
                       CASE WHEN n.disabled_at IS NOT NULL THEN 'the endpoint is disabled' END,
                       'the endpoint did not want it when it was dispatched')
              FROM outbox.events_at(\([delivery.event.id]), \([delivery.event.createdAt])) e, outbox.endpoint n
             WHERE n.id = \(delivery.endpoint)
            """
        ).first(String.self)
        return Explanation(
            .noMatch, mismatch ?? "there is no such endpoint", UseCase("endpoint.get", "\(delivery.endpoint)"))
    }
}

/// Everything known of a waiting delivery. The conclusions from it need no database.
struct WaitingFacts: RowDecodable, Sendable {
    let event: EventID
    let endpoint: EndpointID
    let name: String
    let state: EndpointState
    let disabledAt: Timestamp?
    let pausedBy: String?
    let pauseReason: String?
    let now: Timestamp
    let dueAt: Timestamp
    let attempts: Int
    let lastStatus: Int?
    let lastErrorClass: String?
    let maxAttempts: Int
    let maxConcurrency: Int?
    let rates: [String]
    let worker: String?
    let leaseUntil: Timestamp?
    let hasWorker: Bool
    let key: String?
    /// The dead letter that blocks its ordering key.
    let blockedBy: EventID?
    /// The first delivery of its line, when that is another one.
    let behind: EventID?
    /// The number of deliveries due before it, up to 10,000.
    let before: Int

    init(_ row: Row) throws(PostgresError) {
        state = try EndpointState(row, from: 0)
        (event, endpoint, name) = (try row["event_id"], try row["endpoint_id"], try row["name"])
        disabledAt = try row["disabled_at"]
        (pausedBy, pauseReason) = (try row["paused_by"], try row["pause_reason"])
        (now, dueAt, attempts) = (try row["now"], try row["due_at"], try row["attempts"])
        (lastStatus, lastErrorClass) = (try row["last_status"], try row["last_error_class"])
        (maxAttempts, maxConcurrency) = (try row["max_attempts"], try row["max_concurrency"])
        rates = try row["rates"]
        (worker, leaseUntil, hasWorker) = (try row["worker"], try row["lease_until"], try row["has_worker"])
        (key, blockedBy, behind, before) = (
            try row["key"], try row["blocked_by"], try row["behind"], try row["before"]
        )
    }

    /// The reasons that hold it, the first to deal with first.
    var explanations: [Explanation] { holdsOfEndpoint + holdsOfItself }

    private var holdsOfEndpoint: [Explanation] {
        let resume = UseCase("endpoint.resume", "\(endpoint)")
        var holds: [Explanation] = []
        if let reason = state.disabledReason {
            holds.append(
                Explanation(
                    .disabled, "the endpoint is disabled since \(time(disabledAt)): \(reason)",
                    UseCase("endpoint.enable", "\(endpoint)")))
        }
        if state.pause.holds(at: now) {
            let end = state.pause.until == .distantFuture ? "it is resumed" : time(state.pause.until)
            holds.append(
                Explanation(.paused, "paused by \(pausedBy ?? "") until \(end): \(pauseReason ?? "")", resume))
        }
        let failing = "the endpoint has been failing since \(time(state.breaker.failing?.since)); the next probe is "
        switch state.status(at: now) {
        case .open(let probe): holds.append(Explanation(.failing, failing + "at \(time(probe))", resume))
        case .probing, .recovering: holds.append(Explanation(.failing, failing + "due", resume))
        case .resting(let end):
            holds.append(
                Explanation(
                    .resting,
                    "the endpoint rests until \(time(end)), after a response that there were too many requests, "
                        + "or that asked for it (Retry-After)", resume))
        case .active, .paused, .disabled: break
        }
        return holds
    }

    private var holdsOfItself: [Explanation] {
        let retry = UseCase("delivery.retry", "\(event)", "\(endpoint)")
        if dueAt == .distantFuture { return [order] }
        if dueAt > now {
            if attempts == 0 { return [Explanation(.scheduled, "not to be sent before \(time(dueAt))", retry)] }
            let last = [lastStatus.map { "\($0)" }, lastErrorClass].compactMap(\.self).joined(separator: ", ")
            return [
                Explanation(
                    .retry, "attempt \(attempts) failed (\(last)); the next of \(maxAttempts) is at \(time(dueAt))",
                    retry)
            ]
        }
        let limits =
            (maxConcurrency.map { ["\($0) requests at a time"] } ?? [])
            + (state.pause.drainRate.map { rates + ["\($0)"] } ?? rates)
        let limit = Explanation(
            .limit, "the endpoint takes at most \(limits.joined(separator: " and "))",
            UseCase("endpoint.update", "\(endpoint)"))
        return (limits.isEmpty ? [] : [limit]) + [due]
    }

    private var order: Explanation {
        func id(_ event: EventID) -> (String, String) { ("\(event)", "\(endpoint)") }
        let key = key ?? ""
        if let blockedBy {
            let (event, endpoint) = id(blockedBy)
            return Explanation(
                .order, "behind \(blockedBy):\(name), a dead letter, of ordering key \(key)",
                UseCase("dead.replay", event, endpoint), UseCase("dead.drop", event, endpoint))
        }
        if let behind {
            let (event, endpoint) = id(behind)
            return Explanation(
                .order, "behind \(behind):\(name) of ordering key \(key)", UseCase("delivery.explain", event, endpoint))
        }
        return Explanation(
            .order, "the first of ordering key \(key); it goes when all that was committed with it is in line")
    }

    private var due: Explanation {
        let holder =
            leaseUntil.flatMap { $0 > now ? "worker \(worker ?? "") has the lane until \(time($0))" : nil }
            ?? "no worker has the lane"
        let detail = "due since \(time(dueAt)), with \(before) before it; \(holder)"
        return hasWorker ? Explanation(.due, detail) : Explanation(.due, detail, UseCase("run"))
    }
}

/// A time in the common printed form, to the second.
private func time(_ time: Timestamp?) -> String {
    switch time {
    case nil: "then"
    case .distantFuture?: "the end of time"
    case let time?: time.rfc3339(fractionDigits: 0)
    }
}
