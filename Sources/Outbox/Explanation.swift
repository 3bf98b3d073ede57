package import Postgres

extension Connection {
    /// Why a delivery has not gone out, or what became of it: one row for each thing that holds it, with `reason`, `detail`
    /// and the command that would change it (`fix`), the first to deal with first.
    ///
    /// Throws a `Problem` when there is no such event or endpoint.
    package mutating func explainDelivery(_ pair: Pair) throws -> Listing {
        let holds = try holds(of: pair.endpoint)
        let explanation = try listing(
            """
            \(Self.waitingPair(pair)), explanation AS (
                SELECT 1 AS place, h.reason, h.detail, h.fix
                  FROM pair, unnest(\(holds.map(\.reason)), \(holds.map(\.detail)), \(holds.map(\.fix))) AS h(reason, detail, fix)
                UNION ALL
                -- The dead letter that blocks the key, or the first of its line.
                SELECT 5, 'order', format('behind %s:%s%s of ordering key %s', coalesce(x.event_id, f.event_id), name,
                                          CASE WHEN x.event_id IS NOT NULL THEN ', a dead letter,' ELSE '' END, outbox.key_of(p.ordering_key)),
                       CASE WHEN x.event_id IS NOT NULL THEN format('outboxctl dead replay %1$s %2$s, or: outboxctl dead drop %1$s %2$s', x.event_id, p.endpoint_id)
                            ELSE format('outboxctl delivery explain %s %s', f.event_id, p.endpoint_id) END
                  FROM pair p
                  LEFT JOIN LATERAL (SELECT event_id FROM outbox.dead_letter x
                                      WHERE x.endpoint_id = p.endpoint_id AND x.ordering_key = p.ordering_key AND x.reason <> 'cancelled'
                                        AND p.on_dead = 'block' ORDER BY pass, event_id LIMIT 1) x ON true
                  LEFT JOIN LATERAL (SELECT event_id, event_at FROM outbox.delivery f
                                      WHERE f.endpoint_id = p.endpoint_id AND f.ordering_key = p.ordering_key
                                      ORDER BY f.due_at = 'infinity', pass, event_id LIMIT 1) f ON true
                 WHERE p.due_at = 'infinity' AND (x.event_id IS NOT NULL OR (f.event_id, f.event_at) <> (p.event_id, p.event_at))
                UNION ALL
                SELECT 5, 'order', 'the first of ordering key ' || outbox.key_of(p.ordering_key) || '; it goes when all that was committed with it is in line', NULL
                  FROM pair p
                 WHERE p.due_at = 'infinity' AND NOT outbox.is_blocked(p.endpoint_id, p.ordering_key)
                   AND NOT EXISTS (SELECT FROM outbox.delivery f WHERE f.endpoint_id = p.endpoint_id AND f.ordering_key = p.ordering_key
                                      AND (f.event_id, f.event_at) <> (p.event_id, p.event_at) AND (f.due_at < 'infinity' OR (f.pass, f.event_id) < (p.pass, p.event_id)))
                UNION ALL
                SELECT 6, 'retry', format('attempt %s failed (%s); the next of %s is at %s', attempts,
                                          concat_ws(', ', last_status, last_error_class), cardinality(retry_schedule) + 1, \(time("due_at"))),
                       format('outboxctl delivery retry %s %s', event_id, endpoint_id)
                  FROM pair WHERE attempts > 0 AND due_at > clock_timestamp() AND due_at < 'infinity'
                UNION ALL
                SELECT 7, 'scheduled', 'not to be sent before ' || \(time("due_at")), format('outboxctl delivery retry %s %s', event_id, endpoint_id)
                  FROM pair WHERE attempts = 0 AND due_at > clock_timestamp() AND due_at < 'infinity'
                UNION ALL
                SELECT 8, 'limit', 'the endpoint takes at most ' || concat_ws(' and ', max_concurrency || ' requests at a time',
                                          nullif(array_to_string(rates || drain_rate, ' and '), '')), format('outboxctl endpoint update %s --max-concurrency N --rate N/1s', endpoint_id)
                  FROM pair WHERE due_at <= clock_timestamp() AND (max_concurrency IS NOT NULL OR cardinality(rates) > 0 OR drain_rate IS NOT NULL)
                UNION ALL
                SELECT 9, 'due', format('due since %s, with %s before it; %s', \(time("due_at")), before,
                                        CASE WHEN lease_until > clock_timestamp() THEN format('worker %s has the lane until %s', worker, \(time("lease_until")))
                                             ELSE 'no worker has the lane' END),
                       CASE WHEN NOT EXISTS (SELECT FROM outbox.worker WHERE heartbeat_at > clock_timestamp() - interval '30 s') THEN 'outboxctl run' END
                  FROM pair p
                 CROSS JOIN LATERAL (SELECT count(*) AS before FROM (
                       SELECT FROM outbox.delivery d WHERE d.endpoint_id = p.endpoint_id AND (d.due_at, d.event_id) < (p.due_at, p.event_id) AND d.due_at < 'infinity' LIMIT 10000) b) b
                 WHERE due_at <= clock_timestamp())
            SELECT reason, detail, fix FROM explanation ORDER BY place
            """)
        if !explanation.rows.isEmpty { return explanation }
        let unrouted = try explainUnrouted(pair)
        if !unrouted.rows.isEmpty { return unrouted }
        let ended = try explainEnd(pair)
        return try ended.rows.isEmpty ? explainAbsence(pair) : ended
    }

    /// Why nothing is sent to the endpoint now, the first to deal with first.
    private mutating func holds(of endpoint: EndpointID) throws -> [(reason: String, detail: String, fix: String)] {
        let found = try query(
            """
            SELECT clock_timestamp(), n.disabled_at, l.paused_by, l.pause_reason, \(raw: "\(EndpointState.columns)")
              FROM outbox.lane l JOIN outbox.endpoint n ON n.id = l.endpoint_id WHERE l.endpoint_id = \(endpoint)
            """
        ).first { row throws(PostgresError) in
            (
                now: try row[0] as Timestamp, disabledAt: try row[1] as Timestamp?, pausedBy: try row[2] as String?,
                pauseReason: try row[3] as String?, state: try EndpointState(row, from: 4)
            )
        }
        guard let (now, disabledAt, pausedBy, pauseReason, state) = found else { return [] }
        func time(_ time: Timestamp?) -> String {
            guard let time else { return "then" }
            return time == .distantFuture ? "it is resumed" : time.rfc3339(fractionDigits: 0)
        }
        let resume = "outboxctl endpoint resume \(endpoint)"
        var holds: [(reason: String, detail: String, fix: String)] = []
        if let reason = state.disabledReason {
            holds.append(
                (
                    "disabled", "the endpoint is disabled since \(time(disabledAt)): \(reason)",
                    "outboxctl endpoint enable \(endpoint)"
                ))
        }
        if state.pause.holds(at: now) {
            holds.append(
                ("paused", "paused by \(pausedBy ?? "") until \(time(state.pause.until)): \(pauseReason ?? "")", resume)
            )
        }
        switch state.status(at: now) {
        case .open(let probe):
            holds.append(
                (
                    "failing",
                    "the endpoint has been failing since \(time(state.breaker.failing?.since)); the next probe is at \(time(probe))",
                    resume
                ))
        case .probing, .recovering:
            holds.append(
                (
                    "failing",
                    "the endpoint has been failing since \(time(state.breaker.failing?.since)); the next probe is due",
                    resume
                ))
        case .resting(let end):
            holds.append(
                (
                    "resting",
                    "the endpoint rests until \(time(end)), after an answer that there were too many requests, or that asked for it (Retry-After)",
                    resume
                ))
        case .active, .paused, .disabled: break
        }
        return holds
    }

    /// The delivery as it waits, with its lane and its endpoint.
    private static func waitingPair(_ pair: Pair) -> SQL {
        """
        WITH pair AS (
            SELECT d.event_id, d.event_at, d.endpoint_id, d.due_at, d.attempts, d.last_status, d.last_error_class, d.ordering_key, d.pass,
                   l.drain_rate, l.worker, l.lease_until, n.name, n.max_concurrency, n.rates, n.on_dead, n.retry_schedule
              FROM outbox.delivery d JOIN outbox.lane l USING (endpoint_id) JOIN outbox.endpoint n ON n.id = d.endpoint_id
             WHERE \(lookUp("d", pair)))
        """
    }

    /// A delivery that has not come into its lane, because somebody had that locked.
    private mutating func explainUnrouted(_ pair: Pair) throws -> Listing {
        try listing(
            """
            SELECT 'lane_locked' AS reason,
                   format('somebody had the endpoint''s lane locked when the event was cut, at %s; the next cut that finds it free puts the event in line',
                          \(time("u.noted_at"))) AS detail,
                   CASE WHEN u.noted_at < clock_timestamp() - interval '30 s' THEN 'outboxctl doctor' END AS fix
              FROM outbox.unrouted u WHERE \(lookUp("u", pair))
            """)
    }

    /// A delivery that does not wait any more.
    private mutating func explainEnd(_ pair: Pair) throws -> Listing {
        try listing(
            """
            SELECT state AS reason,
                   CASE WHEN state = 'delivered' THEN format('delivered with attempt %s at %s', attempts, \(time("last_at")))
                        WHEN state = 'cancelled' THEN format('cancelled at %s', \(time("last_at")))
                        ELSE format('given up after %s attempts at %s: %s', attempts, \(time("last_at")), concat_ws(', ', reason, last_status, last_error)) END AS detail,
                   CASE WHEN state <> 'delivered' THEN format('outboxctl dead replay %s %s', event_id, endpoint_id) END AS fix
              FROM json_to_record(\(try listDeliveries(ListFilter(pair)).json.first ?? "{}")::json) AS d(
                   event_id bigint, endpoint_id uuid, state text, attempts int, last_at timestamptz, last_status int, last_error text, reason text)
             WHERE state IS NOT NULL
            """)
    }

    /// A pair of which nothing is written yet, or that never was one.
    private mutating func explainAbsence(_ pair: Pair) throws -> Listing {
        _ = try event(pair.event)
        return try listing(
            """
            WITH event AS (SELECT * FROM outbox.events_at(\([pair.event.id]), \([pair.event.createdAt]))),
            newest AS (SELECT c AS k FROM outbox.cut c ORDER BY c.id DESC LIMIT 1),
            explanation AS (
                SELECT 1 AS place, 'on_its_way' AS reason,
                       CASE WHEN b.lease_until > clock_timestamp() THEN format('worker %s has its batch until %s', b.worker, \(time("b.lease_until")))
                            ELSE 'no worker has taken its batch' END AS detail, NULL AS fix
                  FROM outbox.batch b
                 WHERE b.ids @> \(pair.event.id) AND \(pair.event.createdAt) BETWEEN b.first_at AND b.last_at
                UNION ALL
                SELECT 2, 'not_cut', 'committed, and no worker has seen it yet', NULL FROM event e, newest
                 WHERE NOT outbox.is_cut(newest.k, e.tx, e.id)
                UNION ALL
                SELECT 3, 'no_match', concat_ws('; ',
                           CASE WHEN n.customer_id NOT IN ('*', e.customer_id) THEN format('its customer is %s, the endpoint''s is %s', e.customer_id, n.customer_id) END,
                           CASE WHEN NOT outbox.takes_type(n.event_types, e.type)
                                THEN format('its type is %s, the endpoint takes %s', e.type, outbox.patterns_in_words(n.event_types)) END,
                           CASE WHEN NOT outbox.matches(n.change_types, e.change_type)
                                THEN format('its change type is %s, the endpoint takes %s', e.change_type, outbox.patterns_in_words(n.change_types)) END,
                           CASE WHEN n.filter IS NOT NULL THEN format('its filter may not hold: %s', n.filter) END,
                           CASE WHEN n.created_at > e.created_at THEN 'the endpoint was created after it' END,
                           CASE WHEN n.disabled_at IS NOT NULL THEN 'the endpoint is disabled since ' || \(time("n.disabled_at")) END,
                           'the endpoint did not want it when it was dispatched'),
                       'outboxctl endpoint get ' || n.id
                  FROM event e, outbox.endpoint n WHERE n.id = \(pair.endpoint))
            SELECT reason, detail, fix FROM explanation ORDER BY place LIMIT 1
            """)
    }
}

/// A time as everything else prints it, to the second.
private func time(_ column: StaticString) -> SQL {
    """
    CASE WHEN \(raw: "\(column)") = 'infinity' THEN 'the end of time'
         ELSE to_char(\(raw: "\(column)") AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') END
    """
}
