import Outbox

extension Recorder {
    /// One delivery's news, and under which lease it was worked on.
    struct Report: Sendable {
        var outcome: Outcome
        var lease: Lease
        /// What the response says of its endpoint.
        var said: Said?

        /// - Parameters:
        ///   - attempts: how many the delivery has had, this one included.
        ///   - note: the error when there is no attempt to hold it.
        init(
            _ delivery: DeliveryID, under lease: Lease, attempt: Attempt? = nil, attempts: Int, resolution: Resolution,
            note: (errorClass: String, error: String)? = nil, isOrdered: Bool = false
        ) {
            outcome = Outcome(
                delivery: delivery, holder: lease.holder, mayBeShared: lease.mayBeShared, attempt: attempt,
                attempts: attempts, resolution: resolution, note: note)
            outcome.isOrdered = isOrdered
            self.lease = lease
        }

        init(
            _ send: Send, attempt: Attempt?, attempts: Int, resolution: Resolution,
            note: (errorClass: String, error: String)?
        ) {
            self.init(
                DeliveryID(event: send.event.key, endpoint: send.endpoint), under: send.lease, attempt: attempt,
                attempts: attempts, resolution: resolution, note: note, isOrdered: send.isOrdered)
        }
    }
}
