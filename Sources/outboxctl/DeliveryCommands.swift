import ArgumentParser
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
            let listing = try await Session.run(options) { [filter] connection in
                try connection.listDeliveries(
                    try filter.resolve(&connection, states: ["delivered", "waiting", "paused", "dead", "cancelled"]))
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
        @OptionGroup var pair: PairArguments

        func run() async throws {
            let listing = try await Session.run(options) { [pair] in try $0.delivery(try pair.resolve(&$0)) }
            options.format.item(listing)
        }
    }

    struct Explain: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Say why a delivery has not gone out, and what would change that.")
        @OptionGroup var options: GlobalOptions
        @OptionGroup var pair: PairArguments

        func run() async throws {
            let listing = try await Session.run(options) { [pair] in try $0.explainDelivery(try pair.resolve(&$0)) }
            if options.format != .table { return options.format.list(listing) }
            for row in listing.rows {
                let words = row.map { $0.map(printable) }
                print("\(words[0] ?? ""): \(words[1] ?? "")")
                if let fix = words[2] { print("    \(fix)") }
            }
        }
    }

    struct Retry: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Make a waiting delivery due now.")
        @OptionGroup var options: GlobalOptions
        @OptionGroup var pair: PairArguments
        @Option(name: .long, help: "For the audit log.") var reason: String?

        func run() async throws {
            try await changeDelivery(pair, options) { [reason] connection, pair in
                try connection.retryDelivery(pair, reason: reason)
            }
        }
    }

    struct Cancel: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Take a waiting delivery out of its lane.")
        @OptionGroup var options: GlobalOptions
        @OptionGroup var pair: PairArguments
        @Option(name: .long, help: "For the audit log.") var reason: String?

        func run() async throws {
            try await changeDelivery(pair, options) { [reason] connection, pair in
                try connection.cancelDelivery(pair, reason: reason)
            }
        }
    }
}

/// Looks the delivery up, changes it, and prints how it is now.
private func changeDelivery(
    _ pair: PairArguments, _ options: GlobalOptions,
    _ change: @escaping @Sendable (inout Connection, Pair) throws -> Void
) async throws {
    let listing = try await Session.run(options) { connection in
        let pair = try pair.resolve(&connection)
        try change(&connection, pair)
        return try connection.delivery(pair)
    }
    options.format.item(listing)
}

struct AttemptCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "attempt", abstract: "Every HTTP request that was made.", subcommands: [List.self, Curl.self])

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List attempts, newest first.")
        @OptionGroup var options: GlobalOptions
        @OptionGroup var filter: FilterOptions

        func run() async throws {
            let listing = try await Session.run(options) { [filter] connection in
                try connection.listAttempts(try filter.resolve(&connection, states: ["success", "failure"]))
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
        @OptionGroup var pair: PairArguments
        @Flag(name: .long, help: "With its secrets; the audit log says that you asked.") var reveal = false
        @Option(name: .long, help: "For the audit log.") var reason: String?

        func run() async throws {
            let keyring = try Settings(options).keyring(creating: false)
            let (endpoint, request) = try await Session.run(options) { [pair, reveal, reason] connection in
                let pair = try pair.resolve(&connection)
                let endpoint = try connection.endpoint(pair.endpoint, keyring: keyring)
                if reveal { try connection.audit("attempt.curl.reveal", endpoint: pair.endpoint, reason: reason) }
                let (now, instance) = try connection.trialContext()
                let event = try connection.readEvent(pair.event)
                do {
                    return (
                        endpoint,
                        try HTTPRequest.delivery(
                            of: event, to: endpoint, number: 1,
                            webhookID: pair.event.webhookID(instance: instance), at: now
                        )
                        .request
                    )
                } catch { throw OperationRefusal(.invalid, "the request cannot be built: \(error)") }
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
            let listing = try await Session.run(options) { [filter] connection in
                try connection.listDeadLetters(try filter.resolve(&connection, states: []))
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
        @OptionGroup var pair: PairArguments

        func run() async throws {
            let listing = try await Session.run(options) { [pair] in try $0.deadLetter(try pair.resolve(&$0)) }
            options.format.item(listing)
        }
    }

    struct Drop: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Give a dead letter up for good; what its ordering key holds back goes on.",
            discussion: "It stays visible as cancelled.")
        @OptionGroup var options: GlobalOptions
        @OptionGroup var pair: PairArguments
        @Option(name: .long, help: "For the audit log.") var reason: String?

        func run() async throws {
            try await changeDelivery(pair, options) { [reason] connection, pair in
                try connection.dropDeadLetter(pair, reason: reason)
            }
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
            if isBulk, reason == nil { throw ValidationError("replaying many needs a --reason, for the audit log") }
        }

        func run() async throws {
            let replayed = try await Session.run(options) { [self] connection in
                guard let event else {
                    let id = try endpoint.map { try connection.endpointID($0) }
                    return try connection.replayDeadLetters(nil, endpoint: id, fingerprint: fingerprint, reason: reason)
                }
                var arguments = PairArguments()
                arguments.event = event
                arguments.endpoint = target
                let pair = try arguments.resolve(&connection)
                let count = try connection.replayDeadLetters(pair, reason: reason)
                if count == 0 { _ = try connection.deadLetter(pair) }
                return count
            }
            options.format.fact([("replayed", "\(replayed)")], text: "replayed \(replayed)")
        }
    }
}
