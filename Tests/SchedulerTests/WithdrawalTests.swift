import Glibc
import Outbox
import Postgres
import Receiver
import Scheduler
import TestSupport
import Testing

/// What an operator takes back does not go out from a worker's memory, however much of it waits
/// there.
@Suite(.timeLimit(.minutes(15))) struct WithdrawalTests {
    /// Events for a receiver that responses none before the change was made, and twice as long ago
    /// as the promise allows. Returns the events that were sent.
    private func sent(
        configure: (inout EndpointConfiguration) -> Void, publishing count: Int = 40, holding: Int,
        _ change: (TestDatabase, EndpointID) async throws -> Void
    ) async throws -> [Int64] {
        let database = try await TestCluster.database()
        let mayAnswer = Flag(false)
        let ledger = try Ledger { _, _ in
            while !mayAnswer.isSet { usleep(10_000) }
            return Receiver.Response()
        }
        let endpoint = try await database.endpoint("e", url: ledger.url) {
            $0.timeout = .seconds(120)
            configure(&$0)
        }.id
        try await TestWorker.run(
            database,
            configure: {
                // No lease ends, and nothing moves into the lane for having waited, however busy
                // the machine is.
                $0.lease = .seconds(300)
                $0.softDeadline = .seconds(300)
            }
        ) {
            try await database.publish(count)
            #expect(await eventually { ledger.all.count == holding })
            try await change(database, endpoint)
            try await Task.sleep(for: .seconds(4))
            mayAnswer.isSet = true
            let isQuiet = try await eventually {
                try await database.number("SELECT count(*) FROM outbox.attempt") == ledger.all.count
            }
            #expect(isQuiet)
            try await Task.sleep(for: .seconds(1))
        }
        ledger.receiver.stop()
        return ledger.eventIDs.sorted()
    }

    /// Waits until the worker looks what of the lane's deliveries in its memory still waits.
    private func waitForLook(in database: TestDatabase) async throws {
        let now = try await database.column("SELECT clock_timestamp()::text")[0] ?? ""
        let hasLooked = try await eventually {
            try await database.number(
                """
                SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                   AND query LIKE 'SELECT d.event_id, d.event_at FROM unnest(%' AND query_start > \(now)::text::timestamptz
                """) > 0
        }
        #expect(hasLooked)
    }

    @Test func `what was cancelled in a lane is not sent, and the rest is`() async throws {
        let events = try await sent(configure: { $0.maxConcurrency = 1 }, holding: 1) { database, endpoint in
            let isInLane = try await eventually {
                try await database.number("SELECT count(*) FROM outbox.delivery") == 40
            }
            #expect(isInLane)
            for event in Int64(4)...40 {
                let delivery = try await database.deliveryID(event, endpoint)
                try await database.pool.run { try $0.cancelDelivery(delivery, reason: nil) }
            }
            // It looks once at a time: with the second look the first has been acted upon.
            try await waitForLook(in: database)
            try await waitForLook(in: database)
        }
        #expect(events.count <= 3 && events.allSatisfy { $0 < 4 }, "\(events)")
    }

    @Test func `nothing of a lane is sent to an endpoint that was disabled`() async throws {
        let events = try await sent(configure: { $0.maxConcurrency = 1 }, holding: 1) { database, endpoint in
            try await database.pool.run { try $0.disableEndpoint(endpoint, reason: nil) }
        }
        #expect(events.count == 1, "\(events)")
    }

    @Test func `nothing of a batch is sent to an endpoint that was deleted`() async throws {
        let events = try await sent(configure: { $0.maxInFlight = 4 }, holding: 4) { database, endpoint in
            try await database.pool.run { try $0.deleteEndpoint(endpoint, reason: nil) }
        }
        #expect(events.count == 4, "\(events)")
    }

    @Test func `nothing is sent to an endpoint that was paused while the worker has no room to claim anything`()
        async throws
    {
        // More than may wait in memory: nothing is claimed, and nobody tells of changes in passing.
        let events = try await sent(configure: { $0.maxInFlight = 4 }, publishing: 3000, holding: 4) {
            database, endpoint in
            try await database.pool.run { try $0.pauseEndpoint(endpoint, until: nil, reason: "test") }
        }
        #expect(events.count == 4, "\(events)")
    }

    @Test
    func `an endpoint that is disabled or enabled twice is so since the first time, and no worker reads it again`()
        async throws
    {
        let database = try await TestCluster.database()
        let id = try await database.endpoint("e", url: "http://127.0.0.1:1/").id
        func state() async throws -> [String?] {
            try await database.column(
                """
                SELECT concat_ws(' ', n.disabled_at, n.disabled_reason, n.revision, (SELECT count(*) FROM outbox.audit), n.changed_tx) FROM outbox.endpoint n
                """)
        }
        try await database.pool.run { try $0.disableEndpoint(id, reason: "broken") }
        let disabled = try await state()
        try await database.pool.run { try $0.disableEndpoint(id, reason: nil) }
        try await database.pool.run { try $0.disableEndpoint(id, reason: "broken") }
        #expect(try await state() == disabled)
        // Another reason is news, the time is not.
        try await database.pool.run { try $0.disableEndpoint(id, reason: "gone") }
        #expect(
            try await database.number(
                """
                SELECT count(*) FROM outbox.endpoint WHERE disabled_reason = 'gone' AND revision = 3
                   AND disabled_at = '\(raw: disabled[0]?.prefix(while: { $0 != "+" }).description ?? "")+00'
                """) == 1)
        try await database.pool.run { try $0.enableEndpoint(id) }
        let enabled = try await state()
        try await database.pool.run { try $0.enableEndpoint(id) }
        #expect(try await state() == enabled)
    }
}
