package import Outbox
import Postgres
package import Receiver
import StandardWebhooks

/// What one endpoint got, and what was written down about it.
package struct Delivered: Sendable {
    /// As they were on the wire.
    package let requests: [Receiver.Request]
    /// `outcome status error_class` of each attempt, in order.
    package let attempts: [String]
    /// The error text of the last attempt.
    package let error: String?
    /// `reason error_class error` of the dead letters.
    package let dead: [String]

    /// The only body.
    package var body: String { requests.first.map { String(decoding: $0.body, as: UTF8.self) } ?? "" }
}

/// Dozens of these tests run at a time; a worker each would only wait for one another, and for
/// connections.
private let workers = Gate(8)

extension TestDatabase {
    /// Publishes with a script, delivers everything to one endpoint on a real receiver, and stops
    /// when nothing is left.
    package func deliver(
        _ script: String = "SELECT outbox.publish('test', '{\"n\":1}')", path: String = "/hook",
        retries: [Duration] = [],
        answer: @escaping @Sendable (Receiver.Request, Int) -> Receiver.Response = { _, _ in Receiver.Response() },
        _ change: (inout EndpointConfiguration) throws -> Void
    ) async throws -> Delivered {
        let ledger = try Ledger(answer: answer)
        defer { ledger.receiver.stop() }
        var wish = EndpointConfiguration(name: "endpoint", url: ledger.url + path)
        wish.retrySchedule = retries
        wish.timeout = .seconds(5)
        try change(&wish)
        _ = try await pool.run { [wish] in
            try $0.createEndpoint(wish, secret: .generate(), keyring: TestWorker.keyring)
        }
        try await self.script(script)
        try await workers.pass {
            try await TestWorker.run(self) { _ = try await eventually { try await isSettled() } }
        }
        return Delivered(
            requests: ledger.all,
            attempts: try await column(
                "SELECT concat_ws(' ', outcome, status, error_class) FROM outbox.attempt ORDER BY started_at, number"
            ).compactMap(\.self),
            error: try await column("SELECT error FROM outbox.attempt ORDER BY started_at DESC, number DESC LIMIT 1")
                .first ?? nil,
            dead: try await column(
                "SELECT concat_ws(' ', reason, error_class, error) FROM outbox.dead_letter ORDER BY event_id"
            ).compactMap(\.self))
    }

    /// The same to an endpoint with nothing of its own.
    package func deliver(_ script: String = "SELECT outbox.publish('test', '{\"n\":1}')") async throws -> Delivered {
        try await deliver(script) { _ in }
    }

    /// True when everything that was published is delivered or dead, and nothing waits that could
    /// still go out.
    private func isSettled() async throws -> Bool {
        try await number(
            """
            SELECT (EXISTS (SELECT FROM outbox.batch)
                OR EXISTS (SELECT FROM outbox.backlog WHERE stage = 'stream' AND waiting > 0)
                OR EXISTS (SELECT FROM outbox.deliveries WHERE state = 'waiting'))::int
            """) == 0
    }
}
