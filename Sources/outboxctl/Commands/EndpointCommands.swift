import ArgumentParser
import Foundation
import Operator
import Outbox
import Postgres
import StandardWebhooks
import Transport

struct EndpointCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "endpoint", abstract: "Who gets which events, and how.",
        subcommands: [
            Create.self, List.self, Get.self, Update.self, Delete.self, Test.self, Evaluate.self, Secret.self,
            Pause.self, Resume.self, Enable.self, Disable.self, Patch.self, Export.self, Import.self,
        ])

    struct Create: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Create an endpoint; its signing secret is shown once.")
        @OptionGroup var options: GlobalOptions
        @Argument(help: "A name, unique per customer.") var name: String
        @Option(name: .long, help: "Where to send.") var url: String
        @OptionGroup var changes: EndpointOptions
        @Option(
            name: .long,
            help: "File with the signing secret (whsec_… or whsk_…) to use instead of a new one; - for stdin.")
        var secretFile: String?

        func run() async throws {
            var configuration = EndpointConfiguration(name: name, url: url)
            try changes.change()(&configuration)
            // Beside the embedded database the key may lie; for another one, whoever made it in
            // some folder would be the only one to have it.
            let settings = try Settings(options)
            if try settings.databaseURL() == nil { _ = try settings.keyring(creating: true) }
            let secret =
                try secretFile.map { file in
                    try SigningSecret(String(decoding: try textArgument(file == "-" ? "-" : "@" + file), as: UTF8.self))
                } ?? .generate()
            let created = try await Session.operate(options) {
                try await $0.endpoints.create(configuration, secret: secret)
            }
            if let warning = try changes.presetWarning { note(warning) }
            if options.format == .table {
                options.format.item(created)
                if secretFile == nil { print("\nsecret (shown once)  \(secret.revealed)") }
            } else if let object = created.json.first {
                printJSON(
                    secretFile == nil ? object.dropLast() + #","secret":\#(jsonString(secret.revealed))}"# : object)
            }
        }
    }

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List endpoints.")
        @OptionGroup var options: GlobalOptions
        @Option(name: .long, help: "Only those whose name or description contains this text.") var search: String?
        @Option(name: .long, help: "The largest number of rows, 1 to 10000.") var limit = 100

        func validate() throws {
            guard (1...10_000).contains(limit) else { throw ValidationError("--limit must be 1 to 10000") }
        }

        func run() async throws {
            let listing = try await Session.operate(options) {
                try await $0.endpoints.list(search: search, limit: limit + 1)
            }
            options.format.list(
                listing.first(limit, orMore: "--limit, --search"),
                columns: [
                    "name", "customer_id", "state", "failing_since", "method", "url", "format", "event_types",
                    "change_types", "waiting", "dead_letters",
                ])
        }
    }

    struct Get: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Show one endpoint.")
        @OptionGroup var options: GlobalOptions
        @Argument(help: "Name or id.") var endpoint: String

        func run() async throws {
            options.format.item(try await Session.operate(options) { try await $0.endpoints.get(endpoint) })
        }
    }

    struct Update: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Change settings; what is not named stays.")
        @OptionGroup var options: GlobalOptions
        @Argument(help: "Name or id.") var endpoint: String
        @Option(name: .long, help: "A new name.") var name: String?
        @Option(name: .long, help: "A new URL.") var url: String?
        @OptionGroup var changes: EndpointOptions

        func run() async throws {
            let change = try changes.change()
            let listing = try await Session.operate(options) { [name, url] in
                try await $0.endpoints.update(endpoint) { endpoint in
                    if let name { endpoint.name = name }
                    if let url { endpoint.url = url }
                    try change(&endpoint)
                }
            }
            options.format.item(listing)
        }
    }

    struct Delete: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Delete an endpoint; deliveries that wait for it are cancelled.")
        @OptionGroup var options: GlobalOptions
        @Argument(help: "Name or id.") var endpoint: String
        @Flag(name: .shortAndLong, help: "Do it although deliveries wait.") var yes = false
        @Option(name: .long, help: "For the audit log.") var reason: String?

        func run() async throws {
            try await Session.operate(options) {
                try await $0.endpoints.delete(endpoint, cancelsWaiting: yes, reason: reason)
            }
            options.format.fact([("deleted", jsonString(endpoint))], text: "deleted \(endpoint)")
        }
    }

    struct Pause: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Let deliveries wait; nothing is lost.")
        @OptionGroup var options: GlobalOptions
        @Argument(help: "Name or id.") var endpoint: String
        @Option(name: .long, help: "Begin then, not now (\(TimeArgument.forms)).") var from: TimeArgument?
        @Option(name: .long, help: "Resume by itself then (\(TimeArgument.forms)).") var until: TimeArgument?
        @Option(name: .long, help: "How fast what waited goes out afterwards, as in 50/s.") var resumeRate: String?
        @Option(name: .long, help: "Why; shown to everybody.") var reason: String

        func run() async throws {
            let rate = try resumeRate.map { try RateLimit($0) }
            let listing = try await Session.operate(options) {
                try await $0.endpoints.pause(
                    endpoint, from: from?.timestamp, until: until?.timestamp, rate: rate, reason: reason)
            }
            options.format.item(listing)
        }
    }

    struct Resume: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "End a pause; what waits goes out.")
        @OptionGroup var options: GlobalOptions
        @Argument(help: "Name or id.") var endpoint: String
        @Option(name: .long, help: "How fast what waits goes out, as in 50/s; new events follow behind it.") var rate:
            String?

        func run() async throws {
            let rate = try rate.map { try RateLimit($0) }
            options.format.item(
                try await Session.operate(options) { try await $0.endpoints.resume(endpoint, rate: rate) })
        }
    }

    struct Enable: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Route events to it again; what waits goes out.")
        @OptionGroup var options: GlobalOptions
        @Argument(help: "Name or id.") var endpoint: String

        func run() async throws {
            options.format.item(try await Session.operate(options) { try await $0.endpoints.enable(endpoint) })
        }
    }

    struct Disable: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Route no new events to it; what waits stays.")
        @OptionGroup var options: GlobalOptions
        @Argument(help: "Name or id.") var endpoint: String
        @Option(name: .long, help: "Why; shown to everybody.") var reason: String?

        func run() async throws {
            let listing = try await Session.operate(options) { desk in
                let waiting = try await desk.endpoints.waiting(endpoint)
                note(
                    "new events are not routed to \(endpoint) until it is enabled, and not sent later; "
                        + (waiting == 0 ? "nothing waits for it" : "\(waiting) deliveries wait for it and stay")
                        + ". To let new events wait, too, use: outboxctl endpoint pause \(endpoint)")
                return try await desk.endpoints.disable(endpoint, reason: reason)
            }
            options.format.item(listing)
        }
    }
}

/// Says something that is no error, on standard error.
func note(_ text: String) { StandardError.say("outboxctl: note: \(text)") }
