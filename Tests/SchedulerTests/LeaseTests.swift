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
}
