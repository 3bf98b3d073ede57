import Bytewise
import Outbox
import Postgres
import Testing

@testable import Scheduler

/// Whoever holds what there is little of, others get theirs.
@Suite(.timeLimit(.minutes(15))) struct ShareTests {
    private var queues = SendQueues(maxInFlight: 100, maxBytes: 1000 * 1024)
    private var endpoints: [EndpointID: Endpoint] = [:]
    private var number: Int64 = 0

    private mutating func endpoint(_ customer: ExactText = "*") -> EndpointID {
        let id = EndpointID(rawValue: .random())
        var configuration = EndpointConfiguration(name: id.description, url: "https://example.com/")
        configuration.customerID = customer.text
        configuration.maxInFlight = 1000
        endpoints[id] = Endpoint(id, configuration)
        return id
    }

    private mutating func add(_ count: Int, to endpoint: EndpointID, bytes: Int = 0, isFromLane: Bool = false) {
        for _ in 0..<count {
            number += 1
            let event = Event(
                id: EventID(rawValue: number), createdAt: .distantPast, customerID: "c", type: "t",
                changeType: "Create",
                transactionID: .random(), identity: nil, before: nil, after: [UInt8](repeating: 0x20, count: bytes),
                occurredAt: .distantPast)
            let batch = HeldBatch(
                id: BatchID(rawValue: 1), lease: .random(), server: ServerStart(time: .distantPast))
            let holder: Holder = isFromLane ? .lane(endpoint, .random()) : .batch(batch)
            let lease = Lease(holder, claims: 1, unresolved: 1, trustedUntil: .now + .seconds(60))
            let customer = endpoints[endpoint]?.customerID ?? ""
            queues.add(
                Send(
                    event: event, endpoint: endpoint, of: customer, number: 1, trigger: .first, lease: lease,
                    startBy: nil))
        }
    }

    /// Starts what may be started.
    private mutating func start(
        hasSeveralCustomers: Bool = false, at database: Timestamp = .distantPast, local: ContinuousClock.Instant = .now
    ) -> [Send] {
        var started: [Send] = []
        let now = Moment(database: database, local: local)
        while let next = queues.next(endpoints, hasSeveralCustomers: hasSeveralCustomers, at: now) {
            started.append(next.send)
        }
        return started
    }

    private func count(_ sends: [Send], _ endpoint: EndpointID) -> Int { sends.count { $0.endpoint == endpoint } }

    @Test mutating func `however many hold what they can, the next one gets as much as each of them`() {
        let greedy = (0..<9).map { _ in endpoint() }
        for id in greedy { add(100, to: id) }
        let started = start()
        #expect(greedy.allSatisfy { (8...9).contains(count(started, $0)) })
        let late = endpoint()
        add(100, to: late)
        #expect(count(start(), late) == 4)
        // As the others' requests end, it comes to the same as they have.
        for send in started { queues.finish(send) }
        let again = start()
        #expect(count(again, late) >= 4)
        #expect(again.count < 100)
    }

    @Test mutating func `a lane's rates hold, and its requests start when they allow it`() throws {
        let id = EndpointID(rawValue: .random())
        var configuration = EndpointConfiguration(name: "rated", url: "https://example.com/")
        configuration.rates = [try RateLimit("2/1s")]
        endpoints[id] = Endpoint(id, configuration)
        let start = ContinuousClock.now
        add(5, to: id, isFromLane: true)
        // Until the owner of the lane says what was sent before, nothing is.
        #expect(self.start(local: start).isEmpty)
        #expect(queues.rates.nextStart == start + .milliseconds(100))
        let holder = Holder.lane(id, .random())
        queues.rates.limit(id, for: holder, with: RateLimiter(configuration.rates))
        #expect(queues.rates.startable(id, within: .seconds(2), at: start) == 6)
        #expect(self.start(local: start + .milliseconds(100)).count == 2)
        #expect(queues.rates.nextStart == start + .milliseconds(1100))
        #expect(self.start(local: start + .milliseconds(1099)).isEmpty)
        #expect(self.start(local: start + .milliseconds(1100)).count == 2)
        // Another holder's word is not this one's.
        queues.rates.unlimit(id, for: .lane(id, .random()))
        #expect(queues.rates.startable(id, within: .zero, at: start + .milliseconds(1100)) == 0)
        queues.rates.unlimit(id, for: holder)
        #expect(queues.rates.startable(id, within: .zero, at: start + .milliseconds(1100)) == 200)
    }

    @Test mutating func `what is taken out frees its place, and what is in flight stays`() {
        let (one, two) = (endpoint(), endpoint())
        add(3, to: one)
        let started = start()
        add(1100, to: two)
        #expect(started.count == 3 && !queues.hasRoom && queues.hasRoomForSmall)
        let removed = queues.remove(endpoints) { send, _ in send.endpoint == two }
        #expect(removed.count == 1100 && queues.hasRoom && queues.isAnythingInFlight)
        #expect(queues.waiting(for: two).isEmpty)
        for send in started { queues.finish(send) }
        #expect(!queues.isAnythingInFlight)
    }

    @Test mutating func `bytes are shared as requests are`() {
        let silent = (0..<8).map { _ in endpoint() }
        for id in silent { add(10, to: id, bytes: 100 * 1024) }
        let held = start()
        #expect(silent.allSatisfy { count(held, $0) >= 1 })
        let healthy = endpoint()
        add(3, to: healthy)
        #expect(count(start(), healthy) == 3)
    }

    @Test mutating func `a first request goes before anybody's second`() {
        let many = (0..<60).map { _ in endpoint() }
        for id in many { add(5, to: id) }
        let started = start()
        #expect(many.allSatisfy { count(started, $0) >= 1 })
        let others = (0..<12).map { _ in endpoint() }
        for id in others { add(2, to: id) }
        let late = start()
        #expect(others.allSatisfy { count(late, $0) >= 1 })
        #expect(many.allSatisfy { count(late, $0) == 0 })
    }

    @Test mutating func `no customer holds more than half, where there are others`() {
        let one = (0..<80).map { _ in endpoint("one") }
        for id in one { add(2, to: id) }
        #expect(start(hasSeveralCustomers: true).count == 50)
        let other = endpoint("two")
        add(40, to: other)
        #expect(count(start(hasSeveralCustomers: true), other) == 19)
    }

    @Test mutating func `customers take turns, whatever the number of their endpoints`() {
        let many = (0..<1000).map { _ in endpoint("many") }
        for id in many { add(1, to: id) }
        let few = endpoint("few")
        add(5, to: few)
        let first = Array(start(hasSeveralCustomers: true).prefix(10))
        #expect(count(first, few) == 5)
    }

    @Test mutating func `a request with a large event costs its customer more turns`() {
        let (large, small) = (endpoint("large"), endpoint("small"))
        add(4, to: large, bytes: 32 * 1024)
        add(20, to: small)
        let started = start(hasSeveralCustomers: true)
        let places = started.indices.filter { started[$0].endpoint == large }
        // One of 32 KiB counts as three.
        #expect(places.count == 4)
        #expect(zip(places, places.dropFirst()).allSatisfy { $1 - $0 == 4 }, "\(places)")
    }

    @Test mutating func `a request that a template made larger counts as that until it ends`() {
        let (grown, other) = (endpoint(), endpoint())
        add(2, to: grown)
        let first = start()
        #expect(first.count == 2)
        queues.grow(first[0], by: 900 * 1024)
        #expect(queues.taken.bytes.used > 900 * 1024 && queues.taken.bytes.isFull)
        // An eighth is one endpoint's most.
        add(1, to: grown)
        #expect(start().isEmpty)
        add(1, to: other)
        #expect(start().count == 1)
        queues.finish(first[0])
        #expect(queues.taken.bytes.used < 2048)
        #expect(start().count == 1)
        // An event that waited for a share does not count twice.
        for send in first.dropFirst() { queues.finish(send) }
    }

    @Test mutating func `a customer has no more waiting than is left, and whoever has nothing gets room`() {
        let (one, two) = (endpoint("one"), endpoint("two"))
        #expect(queues.room(for: ["one"], hasSeveralCustomers: false) == ["one": 1500])
        #expect(queues.room(for: ["one"], hasSeveralCustomers: true) == ["one": 500])
        add(500, to: one)
        #expect(queues.room(for: ["one", "two"], hasSeveralCustomers: true) == ["one": 0, "two": 250])
        add(700, to: two)
        #expect(queues.room(for: ["one", "three"], hasSeveralCustomers: true) == ["one": 0, "three": 16])
        #expect(queues.hasRoomForSmall)
    }

    @Test mutating func `who waits for a share is asked again, however many wait before it for longer`() {
        // Endpoints that hold what they can for minutes, and wait for more.
        let silent = (0..<40).map { _ in endpoint() }
        for id in silent { add(5, to: id) }
        _ = start()
        let healthy = endpoint()
        add(20, to: healthy)
        var inFlight = start().filter { $0.endpoint == healthy }
        var ended = 0
        for _ in 0..<100 {
            // What the sender does every tenth of a second.
            queues.askWhoWaitsForShare()
            while let send = inFlight.popLast() {
                queues.finish(send)
                ended += 1
                inFlight += start().filter { $0.endpoint == healthy }
            }
            inFlight += start().filter { $0.endpoint == healthy }
        }
        #expect(ended == 20)
    }

    @Test mutating func `who waits for a share goes on when something ends`() {
        let (first, second) = (endpoint(), endpoint())
        add(200, to: first)
        add(200, to: second)
        var inFlight = start()
        var ended = 0
        while let send = inFlight.first {
            inFlight.removeFirst()
            queues.finish(send)
            ended += 1
            inFlight += start()
        }
        #expect(ended == 400)
        #expect(!queues.isAnythingInFlight)
    }

    @Test(arguments: [1, 4, 7, 8, 100]) func `full is who has in flight what it may, however little that is`(most: Int)
    {
        var test = self
        test.queues = SendQueues(maxInFlight: most, maxBytes: 1000 * 1024)
        #expect(!test.queues.taken.requests.isFull)
        for _ in 0..<most { test.add(1, to: test.endpoint()) }
        #expect(test.start().count == most)
        #expect(test.queues.taken.requests.isFull)
    }

    @Test mutating func `however many have large events, a small one goes`() {
        for _ in 0..<200 { add(3, to: endpoint(), bytes: 100 * 1024) }
        _ = start()
        let small = endpoint()
        add(1, to: small, bytes: 100)
        #expect(count(start(), small) == 1)
    }

    @Test mutating func `an event that is larger than half of all goes when much is free, and not only when all is`() {
        let (large, other) = (endpoint(), endpoint())
        add(1, to: other, bytes: 10 * 1024)
        #expect(start().count == 1)
        add(1, to: large, bytes: 700 * 1024)
        #expect(count(start(), large) == 1)
    }

    @Test mutating func `lanes leave a quarter to batches, and first requests of lanes are no less than others`() {
        let greedy = (0..<8).map { _ in endpoint() }
        for id in greedy { add(100, to: id, isFromLane: true) }
        let started = start()
        #expect(started.count <= 75)
        #expect(greedy.allSatisfy { count(started, $0) >= 5 })
        let (late, batch) = (endpoint(), endpoint())
        add(1, to: late, isFromLane: true)
        add(10, to: batch)
        let next = start()
        #expect(count(next, late) == 1)
        #expect(count(next, batch) == 10)
    }
}
