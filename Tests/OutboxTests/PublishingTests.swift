import Foundation
import Outbox
import OutboxPublishing
import Postgres
import TestSupport
import Testing

/// Publishing as a statement that any client can send.
@Suite(.timeLimit(.minutes(15))) struct PublishingTests {
    @Test func `the statement has one parameter for each placeholder, all of them text`() {
        var event = NewEvent(type: "order.created", after: #"{"id":42}"#)
        event.dedupKey = "k"
        let statement = event.statement()
        #expect(statement.sql.hasPrefix("SELECT outbox.publish(type => $1::text::text, after => $2::text::json,"))
        #expect(statement.sql.hasSuffix("occurred_at => to_timestamp($12::text::float8))"))
        #expect(statement.parameters.count == 12)
        #expect(statement.parameters.compactMap(\.self) == ["order.created", #"{"id":42}"#, "Create", "default", "k"])
        #expect(event.statement(isBound: true).sql.hasPrefix("SELECT outbox_api.publish("))
    }

    @Test func `what it is given is what is published`() async throws {
        let database = try await TestCluster.database()
        var event = NewEvent(type: "t", after: #"{"n": 1.00, "n": "\u00e4"}"#)
        (event.before, event.headers) = ("[]", #"{"k":"v"}"#)
        (event.changeType, event.customerID, event.identity) = ("Update", "acme", "tom")
        event.transactionID = UUID(uuidString: "9CC8C8D0-3D24-46F4-B63C-8C5D092B7205")
        (event.orderingKey, event.dedupKey) = ("o", "d")
        // Microseconds are kept, and the session's time zone and style of dates do not matter.
        event.deliverAt = Date(timeIntervalSince1970: 1_900_000_000.123_456)
        event.occurredAt = Date(timeIntervalSince1970: -1.5)
        try await database.pool.run { [event] in
            try $0.script("SET datestyle = 'SQL, DMY'; SET timezone = 'Asia/Tokyo'")
            try $0.publish(event)
            try $0.script("RESET ALL")
        }
        let row = try await database.column(
            """
            SELECT concat_ws(' ', after, before, headers, change_type, customer_id, identity, transaction_id, ordering_key,
                             extract(epoch FROM deliver_at), extract(epoch FROM occurred_at)) FROM outbox.event
            """)
        #expect(
            row == [
                #"{"n": 1.00, "n": "\u00e4"} [] {"k": "v"} Update acme tom 9cc8c8d0-3d24-46f4-b63c-8c5d092b7205 o 1900000000.123456 -1.500000"#
            ])
    }

    @Test func `an odd time is an error of the database, and no crash`() async throws {
        let database = try await TestCluster.database()
        for time in [Double.nan, 1e300, .infinity] {
            var event = NewEvent(type: "t")
            event.occurredAt = Date(timeIntervalSince1970: time)
            await #expect(throws: PostgresError.self, "\(time)") {
                try await database.pool.run { [event] in try $0.publish(event) }
            }
        }
    }

    @Test func `the example in the documentation publishes with the order`() async throws {
        let database = try await TestCluster.database()
        try await database.script("CREATE TABLE public.orders (id int)")
        let url = database.connectionString
        let pool = try ConnectionPool(try ConnectionTarget(url), size: 4)
        let number = try await pool.run { connection in
            try connection.transaction { connection in
                try connection.query("INSERT INTO public.orders (id) VALUES (\(42))")
                var event = NewEvent(type: "order.created", after: #"{"id":42}"#)
                event.orderingKey = "order-42"
                return try connection.publish(event)
            }
        }
        #expect(number == EventID(rawValue: 1))
        #expect(try await database.column("SELECT ordering_key FROM outbox.event") == ["order-42"])
        await pool.close()

        // The same text stands there.
        let here = try String(contentsOf: URL(filePath: #filePath), encoding: .utf8)
        let page = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../docs/swift.md")
            .standardized
        let docs = try String(contentsOf: page, encoding: .utf8)
        let example = docs.components(separatedBy: "<!-- Tests/OutboxTests/PublishingTests.swift -->\n```swift\n")[1]
            .components(separatedBy: "```")[0]
        let lines = example.split(separator: "\n").map { "        " + $0 }
        #expect(here.contains(lines.joined(separator: "\n")))
    }
}
