package import Postgres

extension Connection {
    /// Makes a waiting delivery due now. A delivery that is already due keeps its time: it may be
    /// in flight, and a later time would put it in front of its lane's reader a second time. A
    /// delivery behind others of its ordering key stays there, and the refusal says so.
    package mutating func retryDelivery(
        _ delivery: DeliveryID, reason: String?, by actor: Actor = .session
    ) throws {
        try transaction { connection in
            try connection.lowerDueTime(of: [delivery.endpoint])
            let moved = try connection.query(
                """
                UPDATE outbox.delivery SET due_at = least(due_at, clock_timestamp())
                 WHERE \(lookUp("delivery", delivery)) AND due_at < 'infinity'
                """
            ).affected
            guard moved == 1 else { throw try connection.notWaiting(delivery) }
            try connection.audit(
                "delivery.retry", object: "delivery/\(delivery.event.id):\(delivery.endpoint)", reason: reason,
                by: actor)
        }
    }

    /// Takes a waiting delivery out of its lane; it stays visible as cancelled. A request in flight
    /// is not recalled, and when it succeeds, the delivery counts as delivered.
    package mutating func cancelDelivery(
        _ delivery: DeliveryID, reason: String?, by actor: Actor = .session
    ) throws {
        try transaction { connection in
            try connection.lockLanes([delivery.endpoint])
            let mayBeInFlight = try connection.mayBeInFlight(delivery)
            let parked = try connection.query(
                """
                WITH gone AS (DELETE FROM outbox.delivery WHERE \(lookUp("delivery", delivery)) RETURNING *),
                unrouted AS (DELETE FROM outbox.unrouted WHERE \(lookUp("unrouted", delivery)) RETURNING *)
                INSERT INTO outbox.dead_letter (event_id, endpoint_id, event_at, reason, attempts, status, error_class, error, fingerprint,
                                                ordering_key, scan)
                SELECT event_id, endpoint_id, event_at, 'cancelled', attempts, last_status, last_error_class, last_error, 'cancelled',
                       ordering_key, scan FROM gone
                UNION ALL
                SELECT event_id, endpoint_id, event_at, 'cancelled', 0, NULL, NULL, NULL, 'cancelled', ordering_key, scan FROM unrouted
                RETURNING endpoint_id, ordering_key
                """)
            guard parked.count == 1 else { throw try connection.notWaiting(delivery) }
            try connection.advance(parked, afterLoss: mayBeInFlight)
            try connection.audit(
                "delivery.cancel", object: "delivery/\(delivery.event.id):\(delivery.endpoint)", reason: reason,
                by: actor)
        }
    }

    /// Puts dead letters back into their lanes, due now and with a whole retry schedule before
    /// them; returns how many. The same `webhook-id` goes out again, with attempts marked as a
    /// replay.
    ///
    /// - Parameter delivery: only this one; nil for all that match the other arguments, in steps of
    ///   a thousand.
    package mutating func replayDeadLetters(
        _ delivery: DeliveryID?, endpoint: EndpointID? = nil, fingerprint: String? = nil, reason: String?,
        by actor: Actor = .session
    ) throws -> Int {
        var total = 0
        // A delivery that fails again meanwhile is not replayed a second time.
        let begin = try query("SELECT clock_timestamp()").one(Timestamp.self)
        let chosenOnes: [SQL?] = [
            delivery.map { lookUp("d", $0) } ?? "d.reason <> 'cancelled'", endpoint.map { "d.endpoint_id = \($0)" },
            fingerprint.map { "d.fingerprint = \($0)" },
        ]
        let conditions = chosenOnes.compactMap(\.self)
        while true {
            let moved = try transaction { connection in
                let chosen = try connection.query(
                    """
                    SELECT d.event_id, d.event_at, d.endpoint_id FROM outbox.dead_letter d JOIN outbox.endpoint n ON n.id = d.endpoint_id
                     WHERE n.deleted_at IS NULL AND d.reason <> 'event_missing' AND d.dead_at < \(begin)
                       AND \(conjunction(conditions))
                     ORDER BY d.endpoint_id, d.dead_at LIMIT 1000
                    """
                ).all(as: DeliveryID.self)
                if chosen.isEmpty { return 0 }
                try connection.lowerDueTime(of: Array(Set(chosen.map(\.endpoint))))
                let mayBeInFlight = try delivery.map { try connection.mayBeInFlight($0) } ?? false
                let replayed = try connection.query(
                    """
                    WITH gone AS (
                        DELETE FROM outbox.dead_letter d
                         USING unnest(\(deliveryRows(chosen))) AS p(event_id, event_at, endpoint_id), outbox.endpoint n
                         WHERE \(lookUp("d", by: "p")) AND n.id = d.endpoint_id AND n.deleted_at IS NULL
                        RETURNING d.*)
                    INSERT INTO outbox.delivery (event_id, endpoint_id, event_at, due_at, trigger, last_at, last_status, last_error_class,
                                                 last_error, ordering_key, scan)
                    SELECT event_id, endpoint_id, event_at, CASE WHEN ordering_key IS NULL THEN clock_timestamp() ELSE 'infinity' END,
                           -- What its filter said nothing of is asked about again.
                           CASE reason WHEN 'filter_error' THEN 'first' ELSE 'replay' END,
                           dead_at, status, error_class, error, ordering_key, scan FROM gone
                    ON CONFLICT DO NOTHING RETURNING endpoint_id, ordering_key
                    """)
                // At its old place in the line, which is the first one.
                try connection.advance(replayed, afterLoss: mayBeInFlight)
                let moved = replayed.affected
                let object =
                    delivery.map { "delivery/\($0.event.id):\($0.endpoint)" } ?? endpoint.map { "endpoint/\($0)" }
                    ?? "dead"
                try connection.audit(
                    "dead.replay", object: object, reason: reason, detail: JSONText(#"{"count":\#(moved)}"#),
                    by: actor)
                return moved
            }
            total += moved
            if delivery != nil || moved == 0 { return total }
        }
    }

    /// Drops a dead letter for good: it stays visible as cancelled, and the deliveries behind it go
    /// on.
    package mutating func dropDeadLetter(
        _ delivery: DeliveryID, reason: String?, by actor: Actor = .session
    ) throws {
        try transaction { connection in
            try connection.lockLanes([delivery.endpoint])
            let dropped = try connection.query(
                """
                UPDATE outbox.dead_letter SET reason = 'cancelled', fingerprint = 'cancelled'
                 WHERE \(lookUp("dead_letter", delivery)) AND reason <> 'cancelled'
                RETURNING endpoint_id, ordering_key
                """)
            guard dropped.count == 1 else {
                _ = try connection.deadLetter(delivery)
                throw Problem(.stateConflict, "the dead letter changed at this moment", hint: "Try again")
            }
            try connection.advance(dropped, afterLoss: false)
            try connection.audit(
                "dead.drop", object: "delivery/\(delivery.event.id):\(delivery.endpoint)", reason: reason, by: actor)
        }
    }

    private mutating func notWaiting(_ delivery: DeliveryID) throws -> Problem {
        let state = try self.delivery(delivery).first("state") ?? "unknown"
        if state == "waiting" || state == "paused" {
            return Problem(
                .stateConflict, "the delivery waits behind others of its ordering key, or for its lane",
                next: .delivery("delivery.explain", delivery))
        }
        return Problem(
            .stateConflict, "the delivery is \(state), not waiting",
            next: state == "dead" ? .delivery("dead.replay", delivery) : nil)
    }
}
