import FoundationEssentials
package import Postgres

extension Connection {
    /// An event.
    package mutating func readEvent(_ key: EventKey) throws -> Event {
        let found = try query(
            "SELECT \(raw: Event.columns) FROM outbox.events_at(\([key.id]), \([key.createdAt])) e"
        )
        .first { row throws(PostgresError) in try Event(row: row, from: 0, in: nil) }
        guard let found else {
            throw Problem(.notFound, "event \(key.id) not found", next: UseCase("event.list"))
        }
        return found
    }

    /// The database's time, and the installation's part of a webhook-id.
    package mutating func endpointTestContext() throws -> (now: Timestamp, instance: String) {
        try query("SELECT clock_timestamp(), instance FROM outbox.setting").one(Timestamp.self, String.self)
    }
}

extension Event {
    package static let sampleData = Array(#"{"text":"Test message from Outbox."}"#.utf8)

    /// A sample event that was never published, for an endpoint test.
    ///
    /// - Parameter context: a JSON object, as in `headers` of a published event.
    package static func sample(
        type: String = "outbox.test", after: [UInt8] = sampleData, context: [UInt8]? = nil, at now: Timestamp
    ) -> Event {
        Event(
            id: EventID(rawValue: 0), createdAt: now, customerID: "default", type: type, changeType: "Create",
            transactionID: .random(), identity: "outboxctl", before: nil, after: after, occurredAt: now,
            context: context)
    }
}
