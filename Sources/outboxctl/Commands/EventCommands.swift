import ArgumentParser
import Foundation
import Operator
import Outbox
import OutboxPublishing
import Postgres

struct EventCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "event", abstract: "Publish events and look at them.",
        subcommands: [Publish.self, List.self, Get.self, Trace.self])

    struct Publish: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Publish one event and print its number.")
        @OptionGroup var options: GlobalOptions
        @Option(name: .long, help: "What happened, as in order.created.") var type: String
        @Option(name: .long, help: "Create, Update, Delete, Login, or a word of your own.") var changeType = "Create"
        @Option(name: .long, help: "Whose event it is.") var customer = "default"
        @Option(
            name: .long,
            help: ArgumentHelp("The object after the change: JSON, @file, or - for stdin.", valueName: "json"))
        var after: String?
        @Option(
            name: .long,
            help: ArgumentHelp("The object before the change: JSON, @file, or - for stdin.", valueName: "json"))
        var before: String?
        @Option(name: .long, help: "The operation that it belongs to.") var transactionId: UniqueIDArgument?
        @Option(name: .long, help: "Who caused it.") var identity: String?
        @Option(name: .long, help: "Publish only once per key.") var dedupKey: String?
        @Option(name: .long, help: "Endpoints that keep order deliver events of the same key one after the other.")
        var orderingKey: String?
        @Option(name: .long, parsing: .unconditional, help: "Not to be delivered earlier (\(TimeArgument.forms)).")
        var deliverAt: TimeArgument?

        func run() async throws {
            var event = NewEvent(type: type, after: try after.map(jsonArgument))
            event.changeType = changeType
            event.customerID = customer
            event.before = try before.map(jsonArgument)
            event.transactionID = transactionId.flatMap { UUID(uuidString: "\($0.id)") }
            event.identity = identity
            event.dedupKey = dedupKey
            event.orderingKey = orderingKey
            event.deliverAt = deliverAt.map {
                Date(timeIntervalSince1970: Double($0.timestamp.microseconds) / 1_000_000)
            }
            let (id, listing) = try await Session.operate(options) { try await $0.events.publish(event) }
            if options.format == .table { print(id) } else { options.format.item(listing) }
        }
    }

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List events, newest first.")
        @OptionGroup var options: GlobalOptions
        @OptionGroup var filter: FilterOptions

        func run() async throws {
            guard filter.endpoint == nil else {
                throw Problem(
                    .invalidValue, "an event is for every endpoint that takes it",
                    hint: "See: outboxctl delivery list --endpoint")
            }
            let listing = try await Session.operate(options) { [filter] in
                try await $0.events.list { try filter.resolve(&$0, states: []) }
            }
            options.format.list(
                filter.shown(listing),
                columns: ["id", "created_at", "customer_id", "type", "change_type", "transaction_id", "identity"])
        }
    }

    struct Get: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Show one event with its bodies.")
        @OptionGroup var options: GlobalOptions
        @Argument(help: "Event number or webhook-id.") var event: String

        func run() async throws {
            let listing = try await Session.operate(options) { try await $0.events.get(event) }
            options.format.item(listing)
        }
    }

    struct Trace: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Show everything that one operation caused.")
        @OptionGroup var options: GlobalOptions
        @Argument(help: "TransactionId.") var transaction: UniqueIDArgument

        func run() async throws {
            let trace = try await Session.operate(options) { try await $0.events.trace(transaction.id) }
            if !trace.cut.isEmpty {
                StandardError.say(
                    "outboxctl: only the newest \(Outbox.Trace.most) \(trace.cut.joined(separator: " and ")) are shown")
            }
            guard options.format == .table else { return printJSON(trace.json) }
            print("transaction \(transaction.id)")
            let deliveries = Dictionary(grouping: records(trace.deliveries)) { $0("event_id") }
            let attempts = Dictionary(grouping: records(trace.attempts)) { $0("event_id") + ":" + $0("endpoint_id") }
            for event in records(trace.events).reversed() {
                print(
                    "└─ event \(event("id"))  \(event("type")) \(event("change_type"))  customer \(event("customer_id"))  \(event("created_at"))"
                )
                let deliveries = deliveries[event("id")] ?? []
                if deliveries.isEmpty { print("   └─ not dispatched yet, or no endpoint wants it") }
                for delivery in deliveries {
                    print("   └─ \(delivery("endpoint"))  \(delivery("state"))")
                    for attempt in (attempts[event("id") + ":" + delivery("endpoint_id")] ?? []).reversed() {
                        let verdict = attempt("outcome") == "success" ? "ok" : "failed (\(attempt("error_class")))"
                        print(
                            "      └─ attempt \(attempt("number"))  \(attempt("started_at"))  \(attempt("status"))  \(verdict)  \(attempt("total_us")) us"
                        )
                    }
                }
            }
        }

        /// Rows as functions from column to printable value.
        private func records(_ listing: Listing) -> [(String) -> String] {
            listing.rows.map { row in
                { column in
                    guard let place = listing.columns.firstIndex(of: column), let value = row[place] else { return "-" }
                    return printable(value)
                }
            }
        }
    }
}
