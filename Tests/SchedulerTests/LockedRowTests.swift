import Outbox
import Postgres
import Receiver
import Scheduler
import TestSupport
import Testing

/// Who holds a lock on rows of one endpoint, for as long as they like, holds up nobody else.
@Suite(.timeLimit(.minutes(15))) struct LockedRowTests {
    @Test(arguments: [
        "SELECT FROM outbox.lane l JOIN outbox.endpoint n ON n.id = l.endpoint_id WHERE n.name LIKE 'held%' FOR UPDATE OF l",
        "SELECT FROM outbox.delivery FOR UPDATE",
        "SELECT FROM outbox.dead_letter FOR UPDATE",
        "SELECT FROM outbox.batch FOR UPDATE",
        // As any change to an endpoint does until it is committed.
        "UPDATE outbox.endpoint SET description = 'x' WHERE name = 'bystander'",
    ])
    func `no session of a worker waits for it, and others are delivered to and recorded`(lock: String) async throws {
        let database = try await TestCluster.database()
        let isWell = Flag(false)
        let failing = try Ledger { request, _ in
            isWell.isSet ? Receiver.Response() : Receiver.Response(request.body.count.isMultiple(of: 2) ? 500 : 400)
        }
        let well = try Ledger { _, _ in Receiver.Response() }
        try await database.endpoint("bystander", url: well.url) { $0.eventTypes = ["nothing"] }
        try await database.endpoint("well", url: well.url) { $0.eventTypes = ["well"] }
        for number in 1...8 {
            try await database.endpoint(
                "held\(number)", url: failing.url, retries: Array(repeating: .milliseconds(300), count: 50)
            ) {
                $0.eventTypes = ["held"]
                $0.isOrdered = number.isMultiple(of: 2)
                $0.maxConcurrency = 2
            }
        }
        let holder = try database.newPool()
        try await TestWorker.run(database, configure: { $0.lease = .seconds(3) }) {
            try await database.script(
                "SELECT outbox.publish('held', to_json(repeat('x', n)), ordering_key => (n % 3)::text) FROM generate_series(1, 20) n"
            )
            #expect(await eventually { failing.all.count > 20 })
            try await holder.run {
                try $0.script("SET idle_in_transaction_session_timeout = 0; BEGIN; \(lock)")
            }
            isWell.isSet = true
            var longest = 0
            for round in 1...30 {
                try await database.publish(2, type: "well")
                try await Task.sleep(for: .milliseconds(100))
                let waits = try await database.number(
                    """
                    SELECT coalesce(max(extract(epoch FROM clock_timestamp() - l.waitstart) * 1000), 0)::int
                      FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
                     WHERE NOT l.granted AND a.application_name LIKE 'outbox/%' AND a.datname = current_database()
                    """)
                if round > 1 { longest = max(longest, waits) }
            }
            // Milliseconds; a session would wait for two seconds, or for its deadline.
            #expect(longest < 1000)
            let isRecorded = try await eventually {
                try await database.number(
                    "SELECT count(DISTINCT event_id) FROM outbox.attempts WHERE endpoint = 'well' AND outcome = 'success'"
                ) == 60
            }
            #expect(isRecorded)
            try await holder.run { try $0.script("ROLLBACK") }
            let isThrough = try await eventually {
                try await database.number("SELECT count(*) FROM outbox.delivery") == 0
            }
            #expect(isThrough)
        }
        await holder.close()
        failing.receiver.stop()
        well.receiver.stop()
    }
}
