package import Postgres

extension EndpointState {
    /// How a failing endpoint is left alone: the circuit breaker.
    ///
    /// `FailureCounter` says when it trips, `EndpointState` what follows from that and from
    /// everything else that happens to the endpoint, `EndpointStateChange` writes it, and
    /// `LaneRamp` is the probe and the ramp of the lane's owner.
    package enum Breaker: Sendable, Equatable {
        /// Every worker sends. Can become: open.
        case closed
        /// Too many requests failed. Nothing is sent until the rest is over, and then one probe by
        /// the owner of its lane. Can become: open again (a failed probe), recovering, closed to
        /// one trip (enabled).
        case open(Failing)
        /// A probe was answered at this time: the lane's owner sends more and more. Can become:
        /// open, catching up.
        case recovering(Failing, since: Timestamp)
        /// Every worker sends; deliveries tried before this time are due at once. Can become: open,
        /// closed.
        case catchingUp(since: Timestamp)

        /// Since when it fails, and how often in a row its breaker has tripped.
        package struct Failing: Sendable, Equatable {
            package var trips: Int
            /// Nil once an operator has enabled the endpoint again: the days that it may fail begin
            /// with its next failure.
            package var since: Timestamp?

            package init(trips: Int, since: Timestamp?) {
                (self.trips, self.since) = (trips, since)
            }
        }

        /// Its run of failures; nil while every worker sends.
        package var failing: Failing? {
            switch self {
            case .open(let failing), .recovering(let failing, _): failing
            case .closed, .catchingUp: nil
            }
        }

        /// Since when it answers again: deliveries tried before this time are due.
        package var recoveredAt: Timestamp? {
            switch self {
            case .recovering(_, let since), .catchingUp(let since): since
            case .closed, .open: nil
            }
        }
    }
}
