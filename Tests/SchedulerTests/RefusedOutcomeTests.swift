import Outbox
import Postgres
import Receiver
import Scheduler
import TestSupport
import Testing

/// What the database refuses to record of one delivery keeps no other from being recorded.
@Suite(.timeLimit(.minutes(15))) struct RefusedOutcomeTests {
    @Test func `an event that is to wait until the end of time holds up no other`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { _, _ in Receiver.Response() }
        try await database.endpoint("e", url: ledger.url)
        try await database.script("SELECT outbox.publish('t', '1', deliver_at => '9999-12-31')")
        try await database.publish(5)
        try await TestWorker.run(database) {
            let isDone = try await eventually {
                let delivered = try await database.deliveries("delivered")
                let waiting = try await database.deliveries("waiting")
                return delivered == 5 && waiting == 1
            }
            #expect(isDone)
        }
        #expect(ledger.all.count == 5)
        ledger.receiver.stop()
    }

    @Test(arguments: ["delivery", "dead_letter", "attempt"])
    func `of what a table refuses only that one is parked, or sent again`(table: String) async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { request, _ in
            String(decoding: request.body, as: UTF8.self).contains("bad")
                ? Receiver.Response(500, body: Array("no".utf8)) : Receiver.Response()
        }
        try await database.endpoint("e", url: ledger.url, retries: table == "dead_letter" ? [] : [.seconds(3600)])
        try await database.script(
            """
            ALTER TABLE outbox.\(table) ADD CHECK (event_id <> 3);
            SELECT outbox.publish('t', to_json(CASE WHEN n IN (3, 5) THEN 'bad' ELSE 'good' END)) FROM generate_series(1, 9) n
            """)
        try await TestWorker.run(database, configure: { $0.lease = .seconds(60) }) {
            let isDelivered = try await eventually { try await database.deliveries("delivered") == 7 }
            #expect(isDelivered)
            // What the receiver said of the other one is kept.
            let said = try await eventually {
                try await database.number(
                    "SELECT count(*) FROM outbox.attempt WHERE event_id = 5 AND response IS NOT NULL") == 1
            }
            #expect(said)
            if table == "delivery" {
                #expect(try await eventually { try await database.deliveries("dead") == 1 })
                let error = try await database.column("SELECT error FROM outbox.dead_letter").first ?? nil
                #expect(error?.contains("refused") == true)
            } else if table == "dead_letter" {
                // Five is parked, and three has no place to go; its batch stays, and is claimed
                // again.
                #expect(try await eventually { try await database.deliveries("dead") == 1 })
                #expect(try await database.number("SELECT count(*) FROM outbox.batch") == 1)
            } else {
                // It waits without a record of its attempt.
                #expect(try await eventually { try await database.deliveries("dead") == 1 })
                #expect(try await database.number("SELECT count(*) FROM outbox.attempt") == 8)
            }
        }
        ledger.receiver.stop()
    }
}
