import ArgumentParser
import Foundation
import Operator
import Outbox
import StandardWebhooks

extension EndpointCommand {
    struct Export: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Print the configuration of endpoints as JSON, for: endpoint import",
            discussion: "Secrets are ***, which means what is stored: written back here they stay as they are.")
        @OptionGroup var options: GlobalOptions
        @Argument(help: "Names or ids; none for all.") var endpoints: [String] = []
        @Flag(name: .long, help: "With their secrets; the audit log says that you did.") var reveal = false
        @Option(name: .long, help: "For the audit log.") var reason: String?

        func run() async throws {
            let documents = try await Session.operate(options) {
                try await $0.endpoints.export(endpoints, reveals: reveal, reason: reason)
            }
            printJSON("[" + documents.map { String(decoding: $0, as: UTF8.self) }.joined(separator: ",\n ") + "]")
        }
    }

    struct Import: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Create or replace endpoints as a document says, by customer and name: all of them or none.",
            discussion:
                "What the document does not say has its default; *** keeps the secret that is stored. Endpoints that "
                + "the document does not name stay as they are. Signing secrets of new ones are shown once.")
        @OptionGroup var options: GlobalOptions
        @Argument(help: "A file with one endpoint or a list of them; - for stdin.") var file: String

        func run() async throws {
            let wanted = try EndpointConfiguration.list(json: try textArgument(file == "-" ? "-" : "@" + file))
            let settings = try Settings(options)
            if try settings.databaseURL() == nil { _ = try settings.keyring(creating: true) }
            let endpoints = wanted.map { (configuration: $0, secret: SigningSecret.generate()) }
            let areNew = try await Session.operate(options) { try await $0.endpoints.replace(endpoints) }
            for ((configuration, secret), isNew) in zip(endpoints, areNew) {
                let fields = [("endpoint", jsonString(configuration.name)), ("created", "\(isNew)")]
                options.format.fact(
                    isNew ? fields + [("secret", jsonString(secret.revealed))] : fields,
                    text: isNew
                        ? "created \(printable(configuration.name)), secret (shown once) \(secret.revealed)"
                        : "replaced \(printable(configuration.name))")
            }
        }
    }

    struct Patch: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Change settings by a JSON merge patch (RFC 7396): null gives a default back.")
        @OptionGroup var options: GlobalOptions
        @Argument(help: "Name or id.") var endpoint: String
        @Argument(help: "The patch, as in '{\"timeout_seconds\": 5}'; @file or - for stdin.") var patch: String

        func run() async throws {
            let patch = try textArgument(patch)
            options.format.item(try await Session.operate(options) { try await $0.endpoints.patch(endpoint, patch) })
        }
    }
}
