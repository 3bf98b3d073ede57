import Bytewise
import Outbox

/// One delivery that is to be sent, under a lease.
final class Send: Sendable {
    let event: Event
    let endpoint: EndpointID
    /// The endpoint's, with whom others share what there is.
    let customer: ExactText
    /// Which attempt it is, from 1. Of a batch the number of its claims: a claim that was lost may
    /// have sent the request and not lived to record it, so it counts as an attempt, and numbers
    /// stay unique.
    let number: Int
    let trigger: Trigger
    let lease: Lease
    /// A send from a batch that has not started by then, because its endpoint is at its cap, moves
    /// into the endpoint's lane: one slow endpoint never keeps a batch open.
    let startBy: ContinuousClock.Instant?
    /// Set when its row says already that the worker died in this send: whatever happens instead
    /// must be written down. So many crashes the row had before.
    let crashesBefore: Int?
    /// Others of its ordering key wait for it.
    let isOrdered: Bool
    let isFromBatch: Bool
    /// How much memory it takes while it is in flight, beside the few KiB that each does.
    let bytes: Int

    init(
        event: Event, endpoint: EndpointID, of customer: ExactText, also bytes: Int = 0, number: Int,
        trigger: Trigger, lease: Lease,
        startBy: ContinuousClock.Instant?, crashesBefore: Int? = nil, isOrdered: Bool = false
    ) {
        self.event = event
        self.endpoint = endpoint
        self.customer = customer
        self.number = number
        self.trigger = trigger
        self.lease = lease
        self.startBy = startBy
        self.crashesBefore = crashesBefore
        self.isOrdered = isOrdered
        isFromBatch = lease.holder.batch != nil
        self.bytes = event.size + bytes
    }
}
