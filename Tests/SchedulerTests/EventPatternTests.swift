import Bytewise
import Outbox
import Postgres
import StandardWebhooks
import TestSupport
import Testing

@testable import Scheduler

/// Which events an endpoint wants: one rule in two languages.
@Suite(.timeLimit(.minutes(15))) struct EventPatternTests {
    @Test(arguments: [
        ("*", EventPattern.any), ("order.*", .prefix("order.")), ("order.created", .exact("order.created")),
        ("=order.*", .exact("order.*")), ("=*", .exact("*")), ("==x", .exact("=x")), (".*", .prefix(".")),
        ("a.b.*", .prefix("a.b.")),
    ])
    func `is read as it is written, and written as it is read`(text: String, pattern: EventPattern) throws {
        #expect(try EventPattern(text) == pattern)
        #expect(pattern.description == text)
    }

    @Test(arguments: ["", "=", "Admin*", "a**", String(repeating: "x", count: 257)])
    func `what is neither a type nor a prefix is refused`(text: String) {
        #expect(throws: Problem.self) { try EventPattern(text) }
    }

    private static let words = ["a", "b", "", "é", "e\u{301}", "outbox", "*", "=", "order"]

    /// Also what is no type: patterns are matched with any text.
    private func text() -> String {
        (0..<Int.random(in: 1...3)).map { _ in Self.words.randomElement() ?? "" }.joined(separator: ".")
    }

    private func pattern() -> EventPattern {
        switch Int.random(in: 0..<5) {
        case 0: .any
        case 1, 2: .prefix(ExactText(text() + "."))
        default: .exact(ExactText("x" + text()))
        }
    }

    private func event(_ customer: String, _ type: String, _ change: String) -> Event {
        Event(
            id: EventID(rawValue: 1), createdAt: Timestamp(microseconds: 0), customerID: customer, type: type,
            changeType: change, transactionID: .random(), identity: nil, before: nil, after: nil,
            occurredAt: Timestamp(microseconds: 0))
    }

    @Test func `the database and workers want the same events, and so does the index of those that keep order`()
        async throws
    {
        let database = try await TestCluster.database()
        var wanted = 0
        for round in 0..<300 {
            var configuration = EndpointConfiguration(name: "e\(round)", url: "https://example.com/")
            configuration.customerID = ["*", "c", "d"].randomElement() ?? "*"
            configuration.eventTypes = (0..<Int.random(in: 1...4)).map { _ in pattern() }
            configuration.changeTypes = (0..<Int.random(in: 1...2)).map { _ in pattern() }
            configuration.isOrdered = true
            let id = try await database.pool.run { [configuration] in
                try $0.createEndpoint(configuration, secret: .generate(), keyring: TestWorker.keyring)
            }
            let snapshot = EndpointDirectory.Snapshot(seen: .nothing, endpoints: [id: Endpoint(id, configuration)])
            for _ in 0..<4 {
                // Often one that is named.
                let type: String =
                    switch configuration.eventTypes.randomElement() {
                    case .exact(let text) where Bool.random(): text.text
                    case .prefix(let text) where Bool.random(): text.text + "x"
                    default: text()
                    }
                let event = event(["*", "c", "d"].randomElement() ?? "*", type, Bool.random() ? "Create" : text())
                let (customer, change) = (event.customerID.text, event.changeType.text)
                let found = try await database.column(
                    """
                    SELECT concat_ws(' ', outbox.wants(n, \(customer), \(type), \(change)),
                                     EXISTS (SELECT FROM outbox.keepers_of(\(customer), \(type), \(change)) k WHERE k.id = n.id))
                      FROM outbox.endpoint n WHERE n.id = \(id)
                    """)
                // By the index of workers, once however many of its patterns take the event.
                var times = 0
                snapshot.forEach(wanting: event) { _ in times += 1 }
                wanted += times
                #expect(
                    times <= 1 && found == [times == 1 ? "t t" : "f f"],
                    "\(configuration.eventTypes) \(configuration.changeTypes) \(type)")
            }
            try await database.pool.run { try $0.deleteEndpoint(id, reason: nil) }
        }
        // Both answers are there: of 1,200 some hundred are yes.
        #expect((30...1100).contains(wanted))
        #expect(try await database.number("SELECT count(*) FROM outbox.ordered_type") == 0)
    }
}
