import Outbox
import Postgres
import TestSupport
import Testing

/// The endpoint's state machine, on a clock of its own.
@Suite(.timeLimit(.minutes(15))) struct EndpointStateTests {
    private let start = Timestamp(microseconds: 1_800_000_000_000_000)
    private func time(_ seconds: Int) -> Timestamp { start + .seconds(seconds) }

    /// The state after events at these seconds.
    private func state(_ events: [(Int, EndpointState.Event)], from first: EndpointState = EndpointState())
        -> EndpointState
    {
        events.reduce(first) { $0.after($1.1, at: time($1.0)) ?? $0 }
    }

    @Test func `probes come at growing intervals, at most five minutes apart`() {
        #expect(
            (0...8).map { EndpointState.probeInterval(trips: $0) }
                == [5, 10, 20, 40, 80, 160, 300, 300, 300].map { .seconds($0) })
        #expect(EndpointState.probeInterval(trips: 1_000_000) == .seconds(300))
    }

    @Test func `an outage: open, probed, open again, recovering, catching up, closed`() {
        var state = state([(0, .trip(atLeast: .zero))])
        #expect(state.status(at: time(4)) == .open(until: time(5)))
        #expect(state.status(at: time(5)) == .probing)
        #expect(!state.accepts(.batch, at: time(5)) && state.accepts(.laneOwner, at: time(5)))
        #expect(!state.accepts(.laneOwner, at: time(4)))
        // Failures of what was in flight when it tripped say nothing new.
        #expect(state.after(.trip(atLeast: .zero), at: time(3)) == nil)
        state = state.after(.trip(atLeast: .zero), at: time(6)) ?? state
        #expect(state.status(at: time(15)) == .open(until: time(16)))
        #expect(state.breaker.failing == .init(trips: 2, since: start))
        // The probe is answered; a little later than the rest ends.
        #expect(state.after(.probeAnswered, at: time(15)) == nil)
        state = state.after(.probeAnswered, at: time(17)) ?? state
        #expect(state.status(at: time(17)) == .recovering)
        #expect(state.breaker.recoveredAt == time(17) && !state.accepts(.batch, at: time(17)))
        #expect(state.after(.caughtUp, at: time(18)) == nil)
        state = state.after(.rampedUp, at: time(19)) ?? state
        #expect(state.status(at: time(19)) == .active && state.breaker == .catchingUp(since: time(17)))
        #expect(state.accepts(.batch, at: time(19)))
        state = state.after(.caughtUp, at: time(20)) ?? state
        #expect(state.breaker == .closed)
    }

    @Test func `a failure while it recovers trips it again, and its failing goes on`() {
        let state = state([
            (0, .trip(atLeast: .zero)), (6, .probeAnswered), (7, .trip(atLeast: .seconds(60))),
        ])
        #expect(state.breaker == .open(.init(trips: 2, since: start)))
        #expect(state.status(at: time(66)) == .open(until: time(67)))
        // While it catches up it has not been failing any more.
        let again = self.state([
            (0, .trip(atLeast: .zero)), (6, .probeAnswered), (7, .rampedUp), (8, .trip(atLeast: .zero)),
        ])
        #expect(again.breaker == .open(.init(trips: 1, since: time(8))))
    }

    @Test func `after five days and twenty trips it is disabled, and time in a pause does not count`() {
        var events: [(Int, EndpointState.Event)] = (0..<21).map { ($0 * 400, .trip(atLeast: .zero)) }
        #expect(!state(events).isDisabled)
        events.append((5 * 86_400 + 1, .trip(atLeast: .zero)))
        #expect(state(events).disabledReason == "failing for five days")
        events.insert((9000, .pause(from: start, until: time(86_400), drainRate: nil)), at: 21)
        #expect(!state(events).isDisabled)
    }

    @Test func `a rest is one change for many answers, and a longer one prolongs it`() {
        let state = state([(0, .rest(.seconds(60)))])
        #expect(state.status(at: time(59)) == .resting(until: time(60)))
        #expect(state.after(.rest(.milliseconds(60_400)), at: start) == nil)
        #expect(state.after(.rest(.seconds(90)), at: start)?.restingUntil == time(90))
        #expect(state.after(.rest(.seconds(10)), at: start) == nil)
        #expect(state.hasJustRested(at: time(69)) && !state.hasJustRested(at: time(71)))
        #expect(!state.accepts(.laneOwner, at: time(59)) && state.accepts(.batch, at: time(60)))
    }

    @Test func `a pause is announced, holds, and is over; a resume ends it, and a rest with it`() {
        let state = state([
            (0, .rest(.seconds(1000))),
            (0, .pause(from: time(10), until: time(20), drainRate: nil)), (0, .trip(atLeast: .zero)),
        ])
        #expect(state.status(at: time(9)) == .open(until: time(1000)))
        #expect(state.status(at: time(10)) == .paused(until: time(20)))
        #expect(state.status(at: time(20)) == .open(until: time(1000)))
        let resumed = state.after(.resume(drainRate: nil), at: time(12)) ?? state
        // The breaker is not an operator's to close: a probe goes out at once.
        #expect(resumed.status(at: time(12)) == .probing)
        #expect(resumed.breaker == state.breaker && resumed.pause.until == time(12))
    }

    @Test func `what drains after a pause does so until all of it is through`() throws {
        let rate = try RateLimit("1/s")
        let paused = state([(0, .pause(from: start, until: time(10), drainRate: rate))])
        #expect(paused.after(.drained, at: time(5)) == nil)
        #expect(paused.after(.drained, at: time(10))?.pause.drainRate == nil)
    }

    @Test func `disabled outweighs all else, keeps an operator's reason, and enabling begins the days anew`() {
        let state = state([(0, .trip(atLeast: .zero)), (1, .disable(reason: "moved"))])
        #expect(state.status(at: time(9)) == .disabled)
        #expect(!state.accepts(.laneOwner, at: time(9)))
        #expect(state.after(.gone(reason: "410"), at: time(2)) == nil)
        #expect(state.after(.disable(reason: nil), at: time(2)) == nil)
        #expect(state.after(.disable(reason: "other"), at: time(2))?.disabledReason == "other")
        #expect(state.after(.enable, at: time(3))?.breaker == .open(.init(trips: 1, since: nil)))
        #expect(EndpointState().after(.enable, at: start) == nil)
    }

    @Test func `of two things that a response says the stronger counts`() {
        typealias Event = EndpointState.Event
        #expect(Event.rest(.seconds(1)).merged(with: .rest(.seconds(2))) == .rest(.seconds(2)))
        #expect(Event.rest(.seconds(9)).merged(with: .trip(atLeast: .zero)) == .trip(atLeast: .seconds(9)))
        #expect(Event.trip(atLeast: .zero).merged(with: .gone(reason: "x")) == .gone(reason: "x"))
        #expect(Event.gone(reason: "x").merged(with: .trip(atLeast: .zero)) == .gone(reason: "x"))
    }

    @Test func `the database says the same of every state, and keeps each as it is`() async throws {
        let database = try await TestCluster.database()
        let id = try await database.endpoint("e", url: "https://example.com/").id
        let rate = try RateLimit("1/s burst 2")
        let times: [Timestamp?] = [nil, .distantPast, start, .distantFuture]
        var count = 0
        for disabled in [nil, "gone"] as [String?] {
            for from in times {
                for until in times {
                    for resting in times {
                        for (trips, recovered) in [(0, nil), (3, nil), (0, start), (3, start)] as [(Int, Timestamp?)] {
                            count += 1
                            let drains = count.isMultiple(of: 3)
                            let now =
                                count.isMultiple(of: 2)
                                ? "clock_timestamp() - interval '1 min'" : "clock_timestamp() + interval '1 hour'"
                            @Sendable func sql(_ time: Timestamp?) -> SQL { time.map { "\($0)" } ?? "\(raw: now)" }
                            try await database.pool.run { connection in
                                try connection.query(
                                    """
                                    UPDATE outbox.lane SET paused_from = \(sql(from)), paused_until = \(sql(until)), resting_until = \(sql(resting)), trips = \(trips),
                                           failing_since = \(trips > 0 ? start : nil), recovered_at = \(recovered), drain_rate = \(drains ? rate.description : nil)
                                    """)
                                try connection.query(
                                    "UPDATE outbox.endpoint SET disabled_at = \(disabled.map { _ in start }), disabled_reason = \(disabled)"
                                )
                            }
                            let endpoint = try await database.pool.run {
                                try $0.endpoint(id, keyring: TestWorker.keyring)
                            }
                            let found = try await database.pool.run { connection in
                                try connection.query(
                                    """
                                    SELECT outbox.accepts_requests(l, n), outbox.is_paused(l), s.state, clock_timestamp() FROM outbox.lane l
                                      JOIN outbox.endpoint n ON n.id = l.endpoint_id JOIN outbox.endpoint_state s ON s.endpoint_id = n.id
                                    """
                                ).first { row throws(PostgresError) in
                                    (
                                        accepts: try row[0] as Bool, paused: try row[1] as Bool,
                                        state: try row[2] as String, now: try row[3] as Timestamp
                                    )
                                }
                            }
                            let sql = try #require(found)
                            let state = endpoint.state
                            #expect(state.accepts(.laneOwner, at: sql.now) == sql.accepts, "\(state)")
                            #expect(state.pause.holds(at: sql.now) == sql.paused, "\(state)")
                            let word =
                                switch state.status(at: sql.now) {
                                case .disabled: "disabled"
                                case .paused: "paused"
                                default: "active"
                                }
                            #expect(word == sql.state, "\(state)")
                            #expect(
                                (state.breaker.failing?.trips ?? 0, state.breaker.recoveredAt) == (trips, recovered))
                        }
                    }
                }
            }
        }
        #expect(count == 512)
    }
}
