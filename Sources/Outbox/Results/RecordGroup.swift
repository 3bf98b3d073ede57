/// The input of one group commit.
package struct RecordGroup: Sendable {
    package var outcomes: [Outcome] = []
    /// Batches whose last delivery is resolved by these outcomes.
    package var finishedBatches: Set<HeldBatch> = []
    package var effects: [EndpointID: EndpointState.Event] = [:]
    /// The events of every batch that has outcomes here, to repair rows written under a lost lease.
    package var events: [LeaseID: [EventKey]] = [:]
    /// Endpoints whose lanes another session has locked: outcomes that would change those are left
    /// for later, since no lane's lock is waited for.
    package internal(set) var locked: Set<EndpointID> = []

    package init() {}

    /// True for an outcome that was not written, because its endpoint's lane was locked.
    package func leaves(_ outcome: Outcome) -> Bool {
        !locked.isEmpty && locked.contains(outcome.delivery.endpoint) && outcome.changesLane
    }

    /// The part that can be written now.
    var now: RecordGroup {
        if locked.isEmpty { return self }
        var group = self
        group.outcomes.removeAll(where: leaves)
        group.effects = effects.filter { !locked.contains($0.key) }
        group.finishedBatches.subtract(outcomes.filter(leaves).compactMap(\.holder.batch))
        return group
    }
}

extension Outcome {
    /// True when it adds to its endpoint's lane, or takes something out of it.
    var changesLane: Bool {
        if case .delivered = resolution { mayBeShared || isOrdered } else { true }
    }
}

/// The result of a group commit: holders whose lease was gone, so that none of their state was
/// written.
package struct RecordReceipt: Sendable {
    package var lost: Set<Holder> = []
    /// The number of events that were sent and are not in this database, found here for the first
    /// time.
    package var ghosts = 0
    /// Events of endpoints that could not be written, because another session was changing
    /// endpoints: to be written later.
    package var effects: [EndpointID: EndpointState.Event] = [:]

    package init() {}
}
