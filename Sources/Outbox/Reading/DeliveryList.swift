package import Postgres

/// Lists of deliveries: waiting and parked ones, each from their own table, and delivered ones,
/// from the attempts.
extension Connection {
    /// Deliveries by the columns of `outbox.deliveries`, newest event first.
    package mutating func listDeliveries(_ filter: ListFilter) throws -> Listing {
        try page(filter) {
            try $0.deliveryList($1)
        } cursor: {
            ListCursor($0, time: "created_at", event: "event_id", endpoint: "endpoint_id")
        }
    }

    private mutating func deliveryList(_ filter: ListFilter) throws -> Listing {
        var isCut = false
        let (rows, note) = try walk(filter, eventTime: true) { connection, filter in
            // A delivery that completes meanwhile is in the list twice, and never missing from it.
            let outstanding = try connection.outstanding(filter)
            return try (outstanding + connection.delivered(filter, isCut: &isCut)).filter { filter.names($0.event) }
        }
        let events = try eventColumns(of: rows.map(\.event))
        return try listing(
            """
            WITH found AS (
                SELECT DISTINCT ON (p.event_id, p.event_at, p.endpoint_id) p.*, e.*, n.name, n.disabled_at
                  FROM unnest(\(rows.map(\.json)), \(rows.map { events[$0.event] ?? "{}" })) WITH ORDINALITY AS f(json, event, place)
                 CROSS JOIN LATERAL json_to_record(f.json::json) AS p(
                       event_id bigint, endpoint_id uuid, event_at timestamptz, state text, attempts int, trigger text, due_at timestamptz,
                       last_at timestamptz, last_status int, last_error_class text, last_error text, reason text)
                 CROSS JOIN LATERAL json_to_record(f.event::json) AS e(customer_id text, event_type text, change_type text, transaction_id uuid)
                  LEFT JOIN outbox.endpoint n ON n.id = p.endpoint_id
                 ORDER BY p.event_id, p.event_at, p.endpoint_id, f.place DESC)
            SELECT p.event_id || ':' || p.endpoint_id AS id, p.event_id, outbox.webhook_id(p.event_id, p.event_at) AS webhook_id, p.endpoint_id,
                   p.name AS endpoint, p.customer_id, p.event_type, p.change_type, p.transaction_id,
                   CASE WHEN p.state = 'waiting' AND \(Self.isPaused("l", "p")) THEN 'paused' ELSE p.state END AS state,
                   p.attempts, p.trigger,
                   CASE WHEN p.due_at IS NOT NULL THEN outbox.sent_at_the_earliest(l, p.due_at) END AS due_at,
                   p.last_at, p.last_status, p.last_error_class, p.last_error, p.reason, p.event_at AS created_at
              FROM found p LEFT JOIN outbox.lane l ON l.endpoint_id = p.endpoint_id
             ORDER BY p.event_id DESC, p.event_at DESC, p.endpoint_id DESC LIMIT \(filter.rows)
            """
        ).noting(
            note
                ?? (isCut
                    ? "not all successes were looked through: most are of events that are gone; narrow it by since or event_id"
                    : nil))
    }

    private static func isPaused(_ lane: String, _ endpoint: String) -> SQL {
        """
        (\(raw: endpoint).disabled_at IS NOT NULL OR outbox.is_paused(\(raw: lane)))
        """
    }

    /// For each state that the filter allows, as many deliveries as the list may have, newest event
    /// first.
    private mutating func outstanding(_ filter: ListFilter) throws -> [FoundRow] {
        let deliveries =
            filter.deliveries("x") + filter.within("x.event_at") + (filter.after?.isBefore("x") ?? [])
        var kinds: [SQL] = []
        func add(_ select: SQL, _ state: [SQL]) {
            kinds.append(
                "(\(select) WHERE \(conjunction(deliveries + state)) ORDER BY x.event_id DESC FETCH FIRST \(filter.rows) ROWS WITH TIES)"
            )
        }
        if filter.state == nil || filter.state == "waiting" || filter.state == "paused" {
            let paused: SQL = """
                (ARRAY(SELECT l.endpoint_id FROM outbox.lane l JOIN outbox.endpoint n ON n.id = l.endpoint_id WHERE \(Self.isPaused("l", "n"))))
                """
            let state: [SQL] =
                switch filter.state {
                case "waiting": ["x.endpoint_id <> ALL \(paused)"]
                case "paused": ["x.endpoint_id = ANY \(paused)"]
                default: []
                }
            add(
                """
                SELECT x.event_id, x.event_at, x.endpoint_id, 'waiting' AS state, x.attempts, x.trigger, x.due_at, x.last_at, x.last_status,
                       x.last_error_class, x.last_error, NULL::text AS reason FROM outbox.delivery x
                """, state)
            add(
                """
                SELECT x.event_id, x.event_at, x.endpoint_id, 'waiting' AS state, 0, 'first', NULL::timestamptz, NULL::timestamptz, NULL::int,
                       NULL::text, NULL::text, NULL::text FROM outbox.unrouted x
                """, state)
        }
        if filter.state == nil || filter.state == "dead" || filter.state == "cancelled" {
            let state: [SQL] =
                switch filter.state {
                case "dead": ["x.reason <> 'cancelled'"]
                case "cancelled": ["x.reason = 'cancelled'"]
                default: []
                }
            add(
                """
                SELECT x.event_id, x.event_at, x.endpoint_id, CASE x.reason WHEN 'cancelled' THEN 'cancelled' ELSE 'dead' END AS state, x.attempts,
                       NULL::text AS trigger, NULL::timestamptz AS due_at, x.dead_at AS last_at, x.status AS last_status,
                       x.error_class AS last_error_class, x.error AS last_error, x.reason FROM outbox.dead_letter x
                """, state)
        }
        guard let first = kinds.first else { return [] }
        let all = kinds.dropFirst().reduce(first) { "\($0) UNION ALL \($1)" }
        return try queryInOrder(
            "SELECT p.event_id, p.event_at, row_to_json(p)::text FROM (\(all)) p", as: FoundRow.self)
    }

    /// The last success of each delivery that has nothing outstanding and whose event is here: a
    /// success for a missing event is a true record of a request, and no delivery.
    private mutating func delivered(_ filter: ListFilter, isCut: inout Bool) throws -> [FoundRow] {
        guard filter.state == nil || filter.state == "delivered" else { return [] }
        var scan = DeliveredScan(filter)
        let began = ContinuousClock.now
        let since = [filter.attemptedSince, filter.since.map { $0 + .seconds(-3600) }].compactMap { $0 }.max()
        for span in try spans(of: "attempt", since: since, isOfEvents: true) {
            while let statement = scan.statement(in: span) {
                if ContinuousClock.now - began > filter.patience, !filter.namesEvents {
                    isCut = true
                    return scan.found
                }
                let page = try queryInOrder(statement, as: DeliveredScan.Success.self)
                let events = try eventColumns(of: page.map(\.row.event))
                scan.take(page) { events[$0] != nil }
            }
            if scan.isFull(downTo: span.begin ?? .distantPast) { break }
            scan.endSpan()
        }
        return scan.found
    }
}

/// Successes in pages, newest first, in the order of an index: those of an endpoint by time, all
/// others by the number of their event.
private struct DeliveredScan {
    struct Success: RowDecodable {
        let row: FoundRow
        let endpoint: EndpointID
        let startedAt: Timestamp

        /// Reads the columns of `FoundRow`, the endpoint and the time of the attempt.
        init(_ row: Row) throws(PostgresError) {
            (self.row, endpoint, startedAt) = (try FoundRow(row), try row[3], try row[4])
        }
    }

    private let filter: ListFilter
    private let isByTime: Bool
    private let size: Int
    private var seen: Set<DeliveryID> = []
    private(set) var found: [FoundRow] = []
    private var foundInSpan = 0
    /// The last success of the previous page; nil before the first page.
    private var last: Success?
    private var isDone = false

    init(_ filter: ListFilter) {
        self.filter = filter
        isByTime = filter.endpoint != nil && !filter.namesEvents
        size = filter.limit
    }

    /// True when the remaining attempts, all from before a time, belong to older events than the
    /// list has room for.
    func isFull(downTo time: Timestamp) -> Bool {
        !filter.namesEvents && found.count >= filter.limit
            && found.count { $0.event.createdAt >= time } >= filter.limit
    }

    mutating func endSpan() { (last, isDone, foundInSpan) = (nil, false, 0) }

    mutating func take(_ page: [Success], isHere: (EventKey) -> Bool) {
        for success in page where isHere(success.row.event) {
            guard seen.insert(DeliveryID(event: success.row.event, endpoint: success.endpoint)).inserted else {
                continue
            }
            found.append(success.row)
            foundInSpan += 1
        }
        last = page.last
        isDone =
            page.count < size || filter.namesEvents
            || (isByTime ? last.map { isFull(downTo: $0.startedAt) } ?? true : foundInSpan >= filter.limit)
    }

    /// The next page of a span of time; nil when the span is exhausted.
    ///
    /// `OFFSET 0`: outstanding rows are looked up by key; a join would read all of them.
    func statement(in span: Span) -> SQL? {
        if isDone { return nil }
        var conditions: [SQL] =
            filter.deliveries("x") + filter.within("x.event_at") + (filter.after?.isBefore("x") ?? []) + [
                span.holds("x.started_at"), "x.outcome = 'success'", "outbox.is_delivery(x.trigger)",
                "NOT EXISTS (SELECT FROM outbox.delivery d WHERE \(lookUp("d", by: "x")) OFFSET 0)",
                "NOT EXISTS (SELECT FROM outbox.dead_letter d WHERE \(lookUp("d", by: "x")) OFFSET 0)",
            ]
        let (deliveries, order): (SQL, SQL)
        switch (isByTime, last) {
        case (true, let last):
            if let last {
                conditions.append("x.started_at <= \(last.startedAt)")
                conditions.append("(x.started_at, x.event_id) < (\(last.startedAt), \(last.row.event.id))")
            }
            order = "x.started_at DESC, x.event_id DESC, x.number DESC, x.lease_id DESC"
            deliveries = """
                SELECT * FROM outbox.attempt x WHERE \(conjunction(conditions))
                 ORDER BY x.started_at DESC, x.event_id DESC FETCH FIRST \(filter.rows) ROWS WITH TIES
                """
        case (false, let last):
            if let last { conditions.append("x.event_id < \(last.row.event.id)") }
            order = "x.event_id DESC, x.started_at DESC, x.number DESC, x.lease_id DESC"
            let all: SQL = "SELECT * FROM outbox.attempt x WHERE \(conjunction(conditions))"
            deliveries =
                filter.namesEvents ? all : "\(all) ORDER BY x.event_id DESC FETCH FIRST \(filter.rows) ROWS WITH TIES"
        }
        return """
            SELECT x.event_id, x.event_at, row_to_json(p)::text, x.endpoint_id, x.started_at FROM (\(deliveries)) x
             CROSS JOIN LATERAL (
                   SELECT x.event_id, x.event_at, x.endpoint_id, 'delivered' AS state, x.number AS attempts, x.trigger,
                          x.started_at AS last_at, x.status AS last_status) p
             ORDER BY \(order)
            """
    }
}
