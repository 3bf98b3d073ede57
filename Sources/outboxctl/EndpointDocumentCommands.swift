import ArgumentParser
import Foundation
import Outbox
import Postgres
import Transport

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
            let keyring = reveal ? try Settings(options).keyring(creating: false) : nil
            let documents = try await Session.run(options) { [endpoints, reason] connection in
                let ids =
                    endpoints.isEmpty
                    ? try connection.endpointIDs() : try endpoints.map { try connection.endpointID($0) }
                return try ids.map { id in
                    guard let keyring else { return try connection.configuration(of: id).json(.masked) }
                    try connection.audit("endpoint.reveal", endpoint: id, reason: reason)
                    return try connection.endpoint(id, keyring: keyring).configuration.json(.revealed)
                }
            }
            printJSON("[" + documents.map { String(decoding: $0, as: UTF8.self) }.joined(separator: ",\n ") + "]")
        }
    }

    struct Import: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Create or replace endpoints as a document says, by customer and name.",
            discussion:
                "What the document does not say has its default; *** keeps the secret that is stored. Endpoints that "
                + "the document does not name stay as they are. Signing secrets of new ones are shown once.")
        @OptionGroup var options: GlobalOptions
        @Argument(help: "A file with one endpoint or a list of them; - for stdin.") var file: String

        func run() async throws {
            let wanted = try EndpointConfiguration.list(json: try textArgument(file == "-" ? "-" : "@" + file))
            let settings = try Settings(options)
            let (keyring, policy) = (
                try settings.keyring(creating: settings["database_url"] == nil), try settings.policy()
            )
            // Before the first of them is written.
            for configuration in wanted { try configuration.validate(policy) }
            for configuration in wanted {
                let secret = SigningSecret.generate()
                let isNew = try await Session.run(options) { connection in
                    let policy = policy.refusing(connection.serverSockets)
                    if let id = try connection.endpointID(named: configuration.name, of: configuration.customerID) {
                        try connection.updateEndpoint(id, keyring: keyring, policy: policy) { $0 = configuration }
                        return false
                    }
                    _ = try connection.createEndpoint(configuration, secret: secret, keyring: keyring, policy: policy)
                    return true
                }
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
            let settings = try Settings(options)
            let (keyring, policy) = (try settings.keyring(creating: false), try settings.policy())
            try await changeEndpoint(endpoint, options) { connection, id in
                try connection.updateEndpoint(
                    id, keyring: keyring, policy: policy.refusing(connection.serverSockets)
                ) { $0 = try $0.patched(patch) }
            }
        }
    }
}
