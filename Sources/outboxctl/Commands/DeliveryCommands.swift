import ArgumentParser
import Operator
import Outbox
import Postgres
import Transport

struct DeliveryCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "delivery", abstract: "Events on their way to endpoints.",
        subcommands: [List.self, Get.self, Explain.self, Retry.self, Cancel.self])

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List deliveries, newest event first.")
        @OptionGroup var options: GlobalOptions
        @OptionGroup var filter: FilterOptions

        func run() async throws {
            let listing = try await Session.operate(options) { [filter] in
                try await $0.deliveries.list {
                    try filter.resolve(&$0, states: ["delivered", "waiting", "paused", "dead", "cancelled"])
                }
            }
            options.format.list(
                filter.shown(listing),
                columns: [
                    "event_id", "endpoint", "event_type", "state", "attempts", "due_at", "last_status",
                    "last_error_class",
                ])
        }
    }

    struct Get: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Show one delivery.")
        @OptionGroup var options: GlobalOptions
        @OptionGroup var delivery: DeliveryArguments

        func run() async throws {
            let listing = try await Session.operate(options) { try await $0.deliveries.get(try delivery.reference) }
            options.format.item(listing)
        }
    }

    struct Explain: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Say why a delivery has not gone out, and what would change that.")
        @OptionGroup var options: GlobalOptions
        @OptionGroup var delivery: DeliveryArguments

        func run() async throws {
            let found = try await Session.operate(options) { try await $0.deliveries.explain(try delivery.reference) }
            let fixes = found.map { $0.fixes.isEmpty ? nil : $0.fixes.map(\.command).joined(separator: ", or: ") }
            if options.format != .table {
                return options.format.list(
                    Listing(
                        columns: ["reason", "detail", "fix"],
                        rows: zip(found, fixes).map { [$0.reason.rawValue, $0.detail, $1] },
                        json: zip(found, fixes).map {
                            "{\"reason\":\(jsonString($0.reason.rawValue)),\"detail\":\(jsonString($0.detail)),"
                                + "\"fix\":\($1.map(jsonString) ?? "null")}"
                        }))
            }
            for (explanation, fix) in zip(found, fixes) {
                print("\(explanation.reason.rawValue): \(printable(explanation.detail))")
                if let fix { print("    \(printable(fix))") }
            }
        }
    }

    struct Retry: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Make a waiting delivery due now.")
        @OptionGroup var options: GlobalOptions
        @OptionGroup var delivery: DeliveryArguments
        @Option(name: .long, help: "For the audit log.") var reason: String?

        func run() async throws {
            options.format.item(
                try await Session.operate(options) {
                    try await $0.deliveries.retry(try delivery.reference, reason: reason)
                })
        }
    }

    struct Cancel: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Take a waiting delivery out of its lane.")
        @OptionGroup var options: GlobalOptions
        @OptionGroup var delivery: DeliveryArguments
        @Option(name: .long, help: "For the audit log.") var reason: String?

        func run() async throws {
            options.format.item(
                try await Session.operate(options) {
                    try await $0.deliveries.cancel(try delivery.reference, reason: reason)
                }
            )
        }
    }
}

struct AttemptCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "attempt", abstract: "Every HTTP request that was made.", subcommands: [List.self, Curl.self])

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List attempts, newest first.")
        @OptionGroup var options: GlobalOptions
        @OptionGroup var filter: FilterOptions

        func run() async throws {
            let listing = try await Session.operate(options) { [filter] in
                try await $0.attempts.list { try filter.resolve(&$0, states: ["success", "failure"]) }
            }
            options.format.list(
                filter.shown(listing),
                columns: [
                    "event_id", "endpoint", "number", "trigger", "started_at", "outcome", "status", "error_class",
                    "total_us",
                ])
        }
    }
}

extension AttemptCommand {
    struct Curl: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Print the request of a delivery as a curl command, as it would be sent now.")
        @OptionGroup var options: GlobalOptions
        @OptionGroup var delivery: DeliveryArguments
        @Flag(name: .long, help: "With its secrets; the audit log says that you asked.") var reveal = false
        @Option(name: .long, help: "For the audit log.") var reason: String?

        func run() async throws {
            let (endpoint, request) = try await Session.operate(options) {
                try await $0.attempts.request(try delivery.reference, reveals: reveal, reason: reason)
            }
            if endpoint.oauth != nil { note("an access token is fetched for each request; it is not in here") }
            print(request.curl(for: endpoint, revealing: reveal))
        }
    }
}

struct DeadCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "dead", abstract: "Dead letters: what could not be delivered.",
        subcommands: [List.self, Get.self, Replay.self, Drop.self])

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List dead letters, newest first.")
        @OptionGroup var options: GlobalOptions
        @OptionGroup var filter: FilterOptions

        func run() async throws {
            let listing = try await Session.operate(options) { [filter] in
                try await $0.dead.list { try filter.resolve(&$0, states: []) }
            }
            options.format.list(
                filter.shown(listing),
                columns: [
                    "event_id", "endpoint", "event_type", "reason", "attempts", "status", "error_class", "fingerprint",
                    "dead_at",
                ])
        }
    }

    struct Get: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Show one dead letter.")
        @OptionGroup var options: GlobalOptions
        @OptionGroup var delivery: DeliveryArguments

        func run() async throws {
            let listing = try await Session.operate(options) { try await $0.dead.get(try delivery.reference) }
            options.format.item(listing)
        }
    }

    struct Drop: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Give a dead letter up for good; what its ordering key holds back goes on.",
            discussion: "It stays visible as cancelled.")
        @OptionGroup var options: GlobalOptions
        @OptionGroup var delivery: DeliveryArguments
        @Option(name: .long, help: "For the audit log.") var reason: String?

        func run() async throws {
            options.format.item(
                try await Session.operate(options) { try await $0.dead.drop(try delivery.reference, reason: reason) })
        }
    }

    struct Replay: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Put dead letters back into their lanes.",
            discussion: "One by EVENT ENDPOINT; many by --endpoint, --fingerprint or --all, which need a --reason.")
        @OptionGroup var options: GlobalOptions
        @Argument(help: "Event number or webhook-id, or EVENT:ENDPOINT.") var event: String?
        @Argument(help: "Endpoint name or id.") var target: String?
        @Option(name: .long, help: "All of this endpoint.") var endpoint: String?
        @Option(name: .long, help: "All of this kind; see dead list.") var fingerprint: String?
        @Flag(name: .long, help: "All.") var all = false
        @Option(name: .long, help: "For the audit log.") var reason: String?

        func validate() throws {
            let isBulk = endpoint != nil || fingerprint != nil || all
            if event == nil, !isBulk {
                throw ValidationError("name a dead letter, or choose many with --endpoint, --fingerprint or --all")
            }
            if event != nil, isBulk { throw ValidationError("name one dead letter or choose many, not both") }
        }

        func run() async throws {
            let replayed = try await Session.operate(options) { desk in
                guard let event else {
                    return try await desk.dead.replay(
                        all && endpoint == nil && fingerprint == nil
                            ? .all : .of(endpoint: endpoint, fingerprint: fingerprint), reason: reason)
                }
                var arguments = DeliveryArguments()
                arguments.event = event
                arguments.endpoint = target
                return try await desk.dead.replay(try arguments.reference, reason: reason)
            }
            options.format.fact([("replayed", "\(replayed)")], text: "replayed \(replayed)")
        }
    }
}
