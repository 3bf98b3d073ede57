import ArgumentParser
import Operator
import Outbox
import Postgres

/// The filter flags that every list has.
struct FilterOptions: ParsableArguments {
    @Option(name: .long, help: "Endpoint name or id.") var endpoint: String?
    @Option(name: .long, help: "Exact event type.") var eventType: String?
    @Option(name: .long, help: "Exact change type.") var changeType: String?
    @Option(name: .long, help: "Customer.") var customer: String?
    @Option(name: .long, help: "TransactionId.") var transactionId: UniqueIDArgument?
    @Option(name: .long, help: "Event number or webhook-id.") var eventId: String?
    @Option(name: .long, help: "State or outcome.") var state: String?
    @Option(name: .long, parsing: .unconditional, help: "From then on (\(TimeArgument.forms)).") var since:
        TimeArgument?
    @Option(name: .long, parsing: .unconditional, help: "Before then (\(TimeArgument.forms)).") var until: TimeArgument?
    @Option(name: .long, help: "The largest number of rows, 1 to 10000.") var limit = 100
    @Option(name: .long, help: "The page behind another one, which says where it ends.") var after: String?

    func validate() throws {
        guard (1...10_000).contains(limit) else { throw ValidationError("--limit must be 1 to 10000") }
        if let since, let until, since.timestamp >= until.timestamp {
            throw ValidationError("--since must be before --until")
        }
    }

    /// The list as it is shown, and a word where it ends before its end.
    func shown(_ listing: Listing) -> Listing {
        if let note = listing.note { StandardError.say("outboxctl: \(note)") }
        if let next = listing.next {
            StandardError.say(
                "outboxctl: only the first \(listing.rows.count) are shown; for the next: --after \(next)")
        }
        return listing
    }

    /// The filter, with names looked up.
    func resolve(_ connection: inout Connection, states: [String]) throws -> ListFilter {
        var filter = ListFilter()
        filter.endpoint = try endpoint.map { try connection.endpointID($0) }
        filter.eventType = eventType
        filter.changeType = changeType
        filter.customerID = customer
        filter.transactionID = transactionId?.id
        filter.event = try eventId.map { try connection.eventReference($0) }
        if let state {
            guard states.contains(state) else {
                throw Problem(
                    .invalidValue, "\"\(state)\" is not a state",
                    hint: states.isEmpty
                        ? "There are no states to filter by here" : "Expected one of: \(states.joined(separator: ", "))"
                )
            }
            filter.state = state
        }
        filter.since = since?.timestamp
        filter.until = until?.timestamp
        filter.limit = limit
        if let after {
            guard let cursor = ListCursor(after) else {
                throw Problem(
                    .invalidValue, "\"\(after.prefix(64))\" is no place in a list", hint: "Take it from the page before"
                )
            }
            filter.after = cursor
        }
        return filter
    }
}

extension Listing {
    /// So many rows, and a word when there are more.
    func first(_ limit: Int, orMore flags: String) -> Listing {
        if rows.count <= limit { return self }
        StandardError.say("outboxctl: only the first \(limit) are shown; for more: \(flags)")
        return prefix(limit)
    }
}

/// A delivery on the command line: `EVENT ENDPOINT`, or the id that lists show, `EVENT:ENDPOINT`.
struct DeliveryArguments: ParsableArguments {
    @Argument(help: "Event number or webhook-id; or the delivery's id, EVENT:ENDPOINT.") var event: String
    @Argument(help: "Endpoint name or id.") var endpoint: String?

    var reference: DeliveryReference {
        get throws {
            let parts = event.split(separator: ":", maxSplits: 1).map(String.init)
            guard let name = endpoint ?? (parts.count == 2 ? parts[1] : nil), let first = parts.first else {
                throw Problem(
                    .invalidValue, "a delivery is an event and an endpoint",
                    hint: "Write it as: 42 billing, or 42:billing")
            }
            return DeliveryReference(event: first, endpoint: name)
        }
    }
}
