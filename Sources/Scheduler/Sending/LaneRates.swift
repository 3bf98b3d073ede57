import Outbox
import Postgres

/// The rates of endpoints whose lanes are ours, and the endpoints that wait for them. Pure: times
/// are passed in.
struct LaneRates {
    /// And for which claim of the lane they count.
    private var limiters: [EndpointID: (holder: Holder, limiter: RateLimiter)] = [:]
    /// Endpoints that wait for their rates, and until when each does.
    private var resting: [EndpointID: ContinuousClock.Instant] = [:]

    /// From here on sends to the endpoint keep to these rates.
    mutating func limit(_ endpoint: EndpointID, for holder: Holder, with limiter: RateLimiter) {
        limiters[endpoint] = (holder, limiter)
    }

    /// The holder has let go of the lane; a later one of this process keeps its own rates.
    mutating func unlimit(_ endpoint: EndpointID, for holder: Holder) {
        if limiters[endpoint]?.holder == holder { limiters[endpoint] = nil }
    }

    /// How many requests the endpoint's rates let start within a time, at most a page of them.
    func startable(_ endpoint: EndpointID, within time: Duration, at now: ContinuousClock.Instant) -> Int {
        limiters[endpoint]?.limiter.startable(from: now, within: time, atMost: WaitingDelivery.page)
            ?? WaitingDelivery.page
    }

    /// When the first endpoint that waits for its rate may go on.
    var nextStart: ContinuousClock.Instant? { resting.values.min() }

    /// Takes out those whose time has come, or whose rates were changed: they may go on.
    mutating func rested(_ endpoints: [EndpointID: Endpoint], at now: Moment) -> [EndpointID] {
        if resting.isEmpty { return [] }
        let rested = resting.keys.filter { id in
            resting[id].map { $0 <= now.local } ?? true
                || endpoints[id]?.rates(at: now.database) != limiters[id]?.limiter.limits
        }
        for id in rested { resting[id] = nil }
        return rested
    }

    /// True when the endpoint's rates do not let a request start now; otherwise it counts as
    /// started.
    mutating func mustRest(_ endpoint: Endpoint, at now: Moment) -> Bool {
        let rates = endpoint.rates(at: now.database)
        guard let known = limiters[endpoint.id] else {
            // The holder of its lane is about to say what was sent; until then nothing is.
            if rates.isEmpty { return false }
            resting[endpoint.id] = now.local + .milliseconds(100)
            return true
        }
        var limiter = known.limiter.limits == rates ? known.limiter : known.limiter.changed(to: rates)
        let time = limiter.earliest() ?? now.local
        if time <= now.local { limiter.take(at: now.local) } else { resting[endpoint.id] = time }
        limiters[endpoint.id] = (known.holder, limiter)
        return time > now.local
    }
}
