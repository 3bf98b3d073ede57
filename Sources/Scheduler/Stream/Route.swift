import Outbox
import Postgres

/// What becomes of a delivery when its batch is dispatched. Pure.
enum Route: Equatable {
    /// It is sent at once, by this worker.
    case send
    /// It waits in its lane for so long.
    case wait(Duration)
    /// It is a dead letter, and why.
    case dead(DeadReason, String)

    /// - Parameters:
    ///   - deliverAt: the event is not to be sent before.
    ///   - mayEndTheWorker: the batch keeps losing its workers, so a lethal payload is found out
    ///     alone in its lane.
    ///   - verdict: what the endpoint's filter says; nil when it has none, or could not be asked in
    ///     time.
    static func of(
        deliverAt: Timestamp?, to endpoint: Endpoint, mayEndTheWorker: Bool, verdict: FilterVerdict?, at now: Timestamp
    ) -> Route {
        if case .error(let reason) = verdict { return .dead(.filterError, reason) }
        let rest = deliverAt.map { Duration.microseconds($0.microseconds - now.microseconds) } ?? .zero
        let isToBeAsked = endpoint.configuration.filter != nil && verdict == nil
        if mayEndTheWorker || rest > .zero || isToBeAsked || endpoint.isConstrained(at: now)
            || !endpoint.accepts(.batch, at: now)
        {
            return .wait(max(rest, .zero))
        }
        return .send
    }
}
