import Outbox
import Postgres
import Testing

@testable import Scheduler

@Suite(.timeLimit(.minutes(15))) struct LeaseTests {
    @Test func `a lease that was lost once ends nothing, however much of it is recorded`() {
        let batch = HeldBatch(
            id: BatchID(rawValue: 1), lease: .random(), server: ServerStart(time: Timestamp(microseconds: 0)))
        let lease = Lease(.batch(batch), claims: 1, unresolved: 2, trustedUntil: .now + .seconds(60))
        #expect(!lease.ends(with: 1))
        #expect(lease.ends(with: 2))
        lease.lose()
        #expect(!lease.ends(with: 2))
    }

    @Test func `a lease is trusted for what ends in it, again when it is renewed, and never when it is lost`() {
        let start = ContinuousClock.now
        var trust = LeaseTrust(until: start + .seconds(30))
        #expect(trust.holds(for: .seconds(30), at: start))
        #expect(!trust.holds(for: .seconds(30), at: start + .nanoseconds(1)))
        #expect(trust.holds(for: .zero, at: start + .seconds(30)))
        #expect(!trust.holds(for: .zero, at: start + .seconds(31)))
        trust.renew(until: start + .seconds(60))
        #expect(trust.holds(for: .seconds(20), at: start + .seconds(40)))
        trust.lose()
        trust.renew(until: start + .seconds(90))
        #expect(!trust.holds(for: .zero, at: start))
    }
}
