import Outbox
import Postgres
import Receiver
import Scheduler
import TestSupport
import Testing

/// Somebody has the lane of one endpoint locked while a worker has outcomes for it: what is for
/// others is recorded, renewed and sent.
@Suite(.timeLimit(.minutes(15))) struct RecordsBesideLockedLaneTests {
    @Test(arguments: [
        "SELECT FROM outbox.lane WHERE endpoint_id = (SELECT id FROM outbox.endpoint WHERE name = 'held') FOR UPDATE",
        // A change to any endpoint, as by an operator who has not committed it: a breaker cannot
        // open meanwhile.
        "UPDATE outbox.endpoint SET description = 'x' WHERE name = 'other'",
    ]) func `outcomes of a locked lane wait, and nobody else's`(lock: String) async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { request, _ in Receiver.Response(request.target == "/held" ? 500 : 200) }
        for name in ["held", "free", "other"] {
            try await database.endpoint(name, url: "\(ledger.url)/\(name)", retries: [.milliseconds(20)])
        }
        let locker = try database.newPool()
        try await TestWorker.run(database, configure: { $0.lease = .seconds(3) }) {
            try await locker.run {
                try $0.script("BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0; \(lock)")
            }
            // For longer than a lease, so that it lives on renewals.
            for _ in 0..<30 {
                try await database.publish(10)
                try await Task.sleep(for: .milliseconds(150))
            }
            let isThrough = try await eventually {
                try await database.number(
                    "SELECT count(*) FROM outbox.attempt a JOIN outbox.endpoint n ON n.id = a.endpoint_id WHERE n.name = 'free'"
                ) == 300
            }
            #expect(isThrough)
            let before = try await database.number("SELECT count(*) FROM outbox.dead_letter")
            try await locker.run { try $0.script("ROLLBACK") }
            if lock.contains("FOR UPDATE") {
                #expect(before == 0)
                let isRecorded = try await eventually {
                    try await database.number(
                        """
                        SELECT count(DISTINCT event_id) FROM outbox.attempt a JOIN outbox.endpoint n ON n.id = a.endpoint_id WHERE n.name = 'held'
                        """) > 0
                }
                #expect(isRecorded)
            }
            let isOpen = try await eventually {
                try await database.number("SELECT count(*) FROM outbox.lane WHERE trips > 0") == 1
            }
            #expect(isOpen)
        }
        // Each request is one attempt, and none of the others went out twice.
        #expect(
            try await database.number(
                "SELECT count(*) FROM outbox.attempt a JOIN outbox.endpoint n ON n.id = a.endpoint_id WHERE n.name <> 'held'"
            ) == 600)
        #expect(try await database.number("SELECT count(*) FROM outbox.attempt") == ledger.all.count)
        await locker.close()
        ledger.receiver.stop()
    }
}
