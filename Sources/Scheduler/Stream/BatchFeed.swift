import Bytewise
import DequeModule
import Outbox
import Postgres

/// What is left of one batch: the deliveries that wait here for room, by customer, and the events
/// that no deliveries were made of yet.
///
///     events, those for few endpoints first ─► a part of the deliveries ─► by customer, as there is room
///
/// An event may be for ten thousand endpoints of its customer. Its deliveries are handed on as that
/// customer's earlier ones go out, and nobody else's wait for that: neither others in the batch,
/// nor the next batches.
struct BatchFeed {
    let batch: ClaimedBatch
    let lease: Lease
    /// The endpoints as they were known when the batch was claimed.
    let endpoints: EndpointDirectory.Snapshot
    /// What a former holder of the batch resolved or moved into a lane is not sent again.
    let resolved: Set<DeliveryID>
    /// From here on what is left goes to the lanes, so that no batch stays open for long.
    let until: ContinuousClock.Instant

    /// A delivery that waits for room.
    struct Waiting {
        let event: Event
        let endpoint: Endpoint
    }

    /// How many deliveries are made of events at a time, as far as one event has no more.
    static let maxAtOnce = 20_000

    private var events: ArraySlice<(event: Event, endpoints: Int)>
    private var waiting: [ExactText: Deque<Waiting>] = [:]

    init(
        _ batch: ClaimedBatch, under lease: Lease, to endpoints: EndpointDirectory.Snapshot,
        resolved: Set<DeliveryID>, until: ContinuousClock.Instant
    ) {
        self.batch = batch
        self.lease = lease
        self.endpoints = endpoints
        self.resolved = resolved
        self.until = until
        let count = endpoints.byID.count
        // By number among equals: the sort is stable. Few are made at once.
        events =
            count * batch.events.count <= Self.maxAtOnce
            ? batch.events.map { ($0, count) }[...]
            : batch.events.map { ($0, endpoints.mostWanting($0)) }.sorted { $0.1 < $1.1 }[...]
    }

    /// True when deliveries were made of all events.
    var isPlanned: Bool { events.isEmpty }
    /// True when nothing waits here for room.
    var isHandedOn: Bool { waiting.isEmpty }
    /// The customers for whom something waits here.
    var customers: [ExactText] { Array(waiting.keys) }

    /// The next events to make deliveries of.
    mutating func nextEvents() -> [Event] {
        var count = 0
        let part = events.prefix { event in
            defer { count += event.endpoints }
            return count == 0 || count + event.endpoints <= Self.maxAtOnce
        }
        events = events.dropFirst(part.count)
        return part.map(\.event)
    }

    mutating func add(_ delivery: Waiting) {
        waiting[delivery.endpoint.customerID, default: []].append(delivery)
    }

    /// Takes out what there is room for.
    mutating func take(_ rooms: [ExactText: Int]) -> [Waiting] {
        var taken: [Waiting] = []
        for (customer, room) in rooms where room > 0 {
            guard var own = waiting.removeValue(forKey: customer) else { continue }
            taken += own.prefix(room)
            own.removeFirst(min(room, own.count))
            if !own.isEmpty { waiting[customer] = own }
        }
        return taken
    }

    /// How much waits here.
    var count: Int { waiting.values.reduce(0) { $0 + $1.count } }

    /// Takes out what waits here.
    mutating func takeAll() -> [Waiting] {
        defer { waiting = [:] }
        return waiting.values.flatMap(\.self)
    }
}
