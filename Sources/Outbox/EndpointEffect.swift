import Postgres

/// A rest or an end that an answer asks for, for the whole endpoint.
package enum EndpointEffect: Sendable {
    /// Send nothing for that long (`Retry-After`).
    case hold(Duration)
    /// It is failing: send nothing but a probe now and then, and none before the rest that it asked for is over.
    case open(atLeast: Duration)
    /// Send nothing until an operator enables it again; what waits stays.
    case disable(reason: String)
}

extension EndpointEffect {
    /// Both: an end outweighs a rest, and the longer rest the shorter.
    package func merged(with other: EndpointEffect) -> EndpointEffect {
        switch (self, other) {
        case (.disable, _): self
        case (_, .disable): other
        case (.open(let one), .open(let two)), (.open(let one), .hold(let two)), (.hold(let one), .open(let two)):
            .open(atLeast: max(one, two))
        case (.hold(let one), .hold(let two)): .hold(max(one, two))
        }
    }
}

extension Connection {
    /// The same, unless somebody else is changing endpoints and does not end (`outbox.endpoint_changed`); then it returns what is to
    /// be written later, and what else the transaction does is done.
    mutating func applyUnlessLocked(
        _ effects: [EndpointID: EndpointEffect]
    ) throws -> [EndpointID: EndpointEffect] {
        if effects.isEmpty { return [:] }
        try query("SAVEPOINT effects")
        try query("SET LOCAL lock_timeout = '100ms'")
        do { try apply(effects) } catch let error as PostgresError where error.sqlState == "55P03" {
            try query("ROLLBACK TO SAVEPOINT effects")
            return effects
        }
        return [:]
    }

    /// Writes what answers mean for their endpoints; the lanes are locked.
    mutating func apply(_ effects: [EndpointID: EndpointEffect]) throws {
        for (endpoint, effect) in effects.sorted(by: { $0.key.description < $1.key.description }) {
            switch effect {
            case .hold(let duration):
                // Only a rest that is clearly longer moves the time, so that a burst of 429s is one change, not many.
                try query(
                    """
                    UPDATE outbox.lane SET held_until = outbox.due_in(\(duration))
                     WHERE endpoint_id = \(endpoint) AND held_until < clock_timestamp() + \(duration) - interval '500 ms'
                    """)
            case .open(let rest):
                try openBreaker(endpoint, atLeast: rest)
            case .disable(let reason):
                let changed = try query(
                    """
                    UPDATE outbox.endpoint
                       SET disabled_at = clock_timestamp(), disabled_reason = \(reason), generation = generation + 1,
                           updated_at = clock_timestamp()
                     WHERE id = \(endpoint) AND disabled_at IS NULL
                    """
                ).affected
                if changed > 0 {
                    try audit("endpoint.disable", endpoint: endpoint, reason: reason)
                    try publishDisabled(endpoint, reason: reason)
                }
            }
        }
    }

    /// Tells whoever takes events of that very type; `*` does not include what the service says about itself.
    private mutating func publishDisabled(_ endpoint: EndpointID, reason: String) throws {
        try query(
            """
            INSERT INTO outbox.event (type, change_type, customer_id, identity, after)
            SELECT 'outbox.endpoint.disabled', 'Update', CASE n.customer_id WHEN '*' THEN 'outbox' ELSE n.customer_id END, 'outbox',
                   json_build_object('endpoint_id', n.id, 'endpoint', n.name, 'customer_id', n.customer_id, 'reason', \(reason))
              FROM outbox.endpoint n WHERE n.id = \(endpoint)
            """)
    }

    /// Opens the breaker, or opens it again after a probe that failed; once, however many failures say so at a time. An
    /// endpoint that has been failing for five days, and through at least 20 probes, is disabled.
    private mutating func openBreaker(_ endpoint: EndpointID, atLeast rest: Duration) throws {
        let isLost =
            try query(
                """
                UPDATE outbox.lane
                   SET held_until = greatest(held_until, clock_timestamp() + greatest(
                                    \(rest), interval '5 s' * least(2 ^ least(opens, 10), 60))), opens = least(opens, 1000000) + 1,
                       opened_at = coalesce(opened_at, clock_timestamp()), recovered_at = NULL,
                       due_at = least(due_at, clock_timestamp())
                 WHERE endpoint_id = \(endpoint) AND (opens = 0 OR held_until <= clock_timestamp())
                RETURNING opens > 20 AND greatest(opened_at, paused_until) < clock_timestamp() - interval '5 days'
                """
            ).first { row throws(PostgresError) in try row[0] as Bool } ?? false
        if isLost { try apply([endpoint: .disable(reason: "failing for five days")]) }
    }
}
