package import Postgres

/// Whether requests may go to an endpoint, according to its operator, its receiver and its own
/// failures.
///
/// Four things, each independent of the others:
///
///                 ┌── disable, 410, five days of failures ──► disabled ── enable ──► enabled
///                 ├── pause(from, until) ──► announced ──► paused ──► over, or resume
///                 ├── 429, Retry-After ──► resting ──► over, or resume
///     breaker:    closed ──trip──► open ──(rest over)──► probing ──answer──► recovering ──ramped up──► catching up ──► closed
///                                    ▲───────────────────────┴──trip────────────┴───────────────────────────┘
///
/// Decisions are made here: `after` takes an event and the database's time, and returns the new
/// state. `Connection.change` reads and writes it under the lane's lock; statements that select by
/// the state use the functions of `v0007_endpoint_state.sql`.
package struct EndpointState: Sendable, Equatable {
    /// Why it is disabled; nil while it is enabled. New events are not routed to it, and its
    /// waiting deliveries stay.
    package var disabledReason: String?
    package var pause = Pause()
    /// Nothing is sent before this time: the receiver asked for a rest, or the breaker is open.
    package var restingUntil = Timestamp.distantPast
    package var breaker = Breaker.closed

    package init() {}

    package var isDisabled: Bool { disabledReason != nil }

    /// A time in which an operator allows no requests: announced before `from`, over from `until`
    /// on.
    package struct Pause: Sendable, Equatable {
        package var from = Timestamp.distantPast
        package var until = Timestamp.distantPast
        /// How fast the deliveries that waited go out afterwards; nil for as fast as the endpoint's
        /// limits allow.
        package var drainRate: RateLimit?

        package func holds(at now: Timestamp) -> Bool { from <= now && until > now }
    }

    /// The state in one word, the strongest first.
    package enum Status: Sendable, Equatable {
        case disabled
        case paused(until: Timestamp)
        /// The next probe goes out then.
        case open(until: Timestamp)
        case probing
        case recovering
        case resting(until: Timestamp)
        case active
    }

    package func status(at now: Timestamp) -> Status {
        if isDisabled { return .disabled }
        if pause.holds(at: now) { return .paused(until: pause.until) }
        let isResting = restingUntil > now
        return switch breaker {
        case .open: isResting ? .open(until: restingUntil) : .probing
        case .recovering: isResting ? .open(until: restingUntil) : .recovering
        case .closed, .catchingUp: isResting ? .resting(until: restingUntil) : .active
        }
    }

    /// Which worker wants to send.
    package enum Sender: Sendable {
        /// Any worker, on behalf of a batch.
        case batch
        /// The worker that owns the endpoint's lane. It also sends to a failing endpoint, to see
        /// whether it still fails.
        case laneOwner
    }

    package func accepts(_ sender: Sender, at now: Timestamp) -> Bool {
        switch status(at: now) {
        case .active: true
        case .probing, .recovering: sender == .laneOwner
        case .disabled, .paused, .open, .resting: false
        }
    }

    /// How fast the deliveries that waited through a pause go out once it is over.
    package func drainRate(at now: Timestamp) -> RateLimit? { pause.until <= now ? pause.drainRate : nil }

    /// True within ten seconds of a rest that the receiver asked for: it may want another one.
    package func hasJustRested(at now: Timestamp) -> Bool {
        breaker.failing == nil && restingUntil + .seconds(10) > now
    }
}

// MARK: Changes

extension EndpointState {
    /// An event of an endpoint.
    package enum Event: Sendable, Equatable {
        /// A response asked for a rest (`Retry-After`).
        case rest(Duration)
        /// One failure too many, or a failed probe: nothing but a probe before the rest that it
        /// asked for is over.
        case trip(atLeast: Duration)
        /// A response says that the receiver is gone. A reason that an operator gave stays.
        case gone(reason: String)
        /// By an operator; without a new reason the existing one stays.
        case disable(reason: String?)
        case enable
        case pause(from: Timestamp, until: Timestamp, drainRate: RateLimit?)
        case resume(drainRate: RateLimit?)
        /// A probe was answered.
        case probeAnswered
        /// As many requests as the endpoint may have in flight have been answered.
        case rampedUp
        /// All deliveries tried before it answered again are through.
        case caughtUp
        /// All deliveries that had waited through the pause are through.
        case drained
    }

    /// How long a failing endpoint is left alone before the next probe: 5 s, doubled with each
    /// trip, at most 5 min.
    package static func probeInterval(trips: Int) -> Duration {
        min(.seconds(5) * (1 << min(trips, 10)), .seconds(300))
    }

    /// An endpoint that has failed for longer than this time, and through more than this number of
    /// trips, is disabled.
    package static let lostAfter = (trips: 20, time: Duration.seconds(5 * 86_400))

    /// The state after the event; nil when the event changes nothing.
    package func after(_ event: Event, at now: Timestamp) -> EndpointState? {
        var state = self
        state.apply(event, at: now)
        return state == self ? nil : state
    }

    private mutating func apply(_ event: Event, at now: Timestamp) {
        switch event {
        case .rest(let duration):
            // Only a clearly longer rest counts, so that a burst of 429s is one change and not
            // many.
            if restingUntil + .milliseconds(500) < now + duration { restingUntil = now + duration }
        case .trip(let rest): trip(atLeast: rest, at: now)
        case .gone(let reason): disabledReason = disabledReason ?? reason
        case .disable(let reason): disabledReason = reason ?? disabledReason ?? "disabled by an operator"
        case .enable:
            guard isDisabled else { return }
            disabledReason = nil
            // The failures until now no longer count: the five days begin again.
            switch breaker {
            case .open: breaker = .open(Breaker.Failing(trips: 1, since: nil))
            case .recovering(_, let since): breaker = .recovering(Breaker.Failing(trips: 1, since: nil), since: since)
            case .closed, .catchingUp: break
            }
        case .pause(let from, let until, let rate): pause = Pause(from: from, until: until, drainRate: rate)
        case .resume(let rate):
            // The days that it may fail count from the end of the pause: its condition during the
            // pause is unknown.
            pause = Pause(from: .distantPast, until: now, drainRate: rate)
            restingUntil = .distantPast
        case .probeAnswered:
            guard restingUntil <= now, let failing = breaker.failing else { return }
            breaker = .recovering(failing, since: now)
        case .rampedUp:
            guard restingUntil <= now, case .recovering(_, let since) = breaker else { return }
            breaker = .catchingUp(since: since)
        case .caughtUp:
            if case .catchingUp = breaker { breaker = .closed }
        case .drained:
            if pause.until <= now { pause.drainRate = nil }
        }
    }

    /// Once, however many failures arrive together: those in flight when the breaker tripped say
    /// nothing new.
    private mutating func trip(atLeast rest: Duration, at now: Timestamp) {
        let failing = breaker.failing
        if failing != nil, restingUntil > now { return }
        let trips = failing?.trips ?? 0
        let since = failing?.since ?? now
        restingUntil = max(restingUntil, now + max(rest, Self.probeInterval(trips: trips)))
        breaker = .open(Breaker.Failing(trips: min(trips, 1_000_000) + 1, since: since))
        if trips >= Self.lostAfter.trips, max(since, pause.until) + Self.lostAfter.time < now {
            disabledReason = disabledReason ?? "failing for five days"
        }
    }
}

extension EndpointState.Event {
    /// Two events that responses reported, merged: an end outweighs a rest, and the longer rest
    /// outweighs the shorter.
    package func merged(with other: EndpointState.Event) -> EndpointState.Event {
        switch (self, other) {
        case (.trip(let one), .trip(let two)), (.trip(let one), .rest(let two)), (.rest(let one), .trip(let two)):
            .trip(atLeast: max(one, two))
        case (.rest(let one), .rest(let two)): .rest(max(one, two))
        case (.rest, _), (.trip, _): other
        default: self
        }
    }
}
