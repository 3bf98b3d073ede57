import Outbox
import Postgres
import Receiver
import Scheduler
import TestSupport
import Testing

/// What an operator takes back does not go out from a worker's memory, however much of it waits there.
@Suite struct WithdrawalTests {
    /// A receiver that takes its time, and 40 events that wait for it in the worker: those of batches are in the lane by then.
    private func withSlowLane(_ change: (TestDatabase, EndpointID, Ledger) async throws -> Void) async throws -> (
        before: Int, after: Int
    ) {
        let database = try await TestCluster.database()
        let ledger = try Ledger { _, _ in Receiver.Answer(delay: .milliseconds(300)) }
        let endpoint = try await database.endpoint("e", url: ledger.url) {
            $0.maxConcurrency = 1
            $0.timeout = .seconds(60)
        }.id
        var (before, after) = (0, 0)
        try await TestWorker.run(database, configure: { $0.lease = .seconds(120) }) {
            try await database.publish(40)
            #expect(await eventually { ledger.all.count >= 2 })
            before = ledger.all.count
            try await change(database, endpoint, ledger)
            // Two seconds, and what had been on its way then.
            try await Task.sleep(for: .seconds(2))
            after = ledger.all.count
            try await Task.sleep(for: .seconds(2))
            #expect(ledger.all.count <= after + 1)
        }
        ledger.receiver.stop()
        return (before, after)
    }

    @Test func `cancelled`() async throws {
        let (_, after) = try await withSlowLane { database, endpoint, _ in
            // As many as an operator cancels one by one.
            let events = try await database.pool.query(
                "SELECT event_id FROM outbox.delivery ORDER BY event_id DESC LIMIT 37"
            ) {
                row throws(PostgresError) in try row[0] as Int64
            }
            for event in events {
                let pair = try await database.pair(event, endpoint)
                try await database.pool.run { connection in
                    do { try connection.cancelDelivery(pair, reason: nil) } catch is OperationRefusal {
                        // Delivered meanwhile.
                    }
                }
            }
        }
        #expect(after < 20)
    }

    @Test func `disabled`() async throws {
        let (_, after) = try await withSlowLane { database, endpoint, _ in
            try await database.pool.run { try $0.disableEndpoint(endpoint, reason: nil) }
        }
        #expect(after < 15)
    }

    @Test func `deleted, while the worker has no room to claim anything`() async throws {
        let database = try await TestCluster.database()
        let mayAnswer = Flag(false)
        let ledger = try Ledger { request, _ in
            Receiver.Answer(delay: request.target == "/slow" && !mayAnswer.isSet ? .milliseconds(400) : .zero)
        }
        let slow = try await database.endpoint("slow", url: ledger.url + "/slow") {
            $0.maxInFlight = 4
            $0.timeout = .seconds(60)
        }.id
        try await TestWorker.run(
            database,
            configure: {
                $0.lease = .seconds(120)
                $0.softDeadline = .seconds(60)
            }
        ) {
            // More than may wait in memory: nothing is claimed, and nobody tells of changes in passing.
            try await database.publish(3000)
            #expect(await eventually { ledger.all.count >= 8 })
            try await database.pool.run { try $0.deleteEndpoint(slow, reason: nil) }
            try await Task.sleep(for: .seconds(2))
            let seen = ledger.all.count
            try await Task.sleep(for: .seconds(2))
            #expect(ledger.all.count <= seen + 4)
            mayAnswer.isSet = true
        }
        ledger.receiver.stop()
    }
}
