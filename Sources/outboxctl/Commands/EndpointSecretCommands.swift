import ArgumentParser
import Foundation
import Operator
import Outbox
import Postgres
import StandardWebhooks

extension EndpointCommand {
    struct Secret: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "The secrets that deliveries are signed with.",
            subcommands: [Show.self, Rotate.self, Retire.self])

        struct Show: AsyncParsableCommand {
            static let configuration = CommandConfiguration(abstract: "List the valid secrets, masked.")
            @OptionGroup var options: GlobalOptions
            @Argument(help: "Name or id.") var endpoint: String
            @Flag(name: .long, help: "Show them; the audit log says that you did.") var reveal = false
            @Option(name: .long, help: "For the audit log.") var reason: String?

            func run() async throws {
                let secrets = try await Session.operate(options) {
                    try await $0.secrets.list(endpoint, reveals: reveal, reason: reason)
                }
                print(
                    secrets.map { row in
                        [
                            ("id", row.id.description), ("secret", reveal ? row.secret.revealed : row.secret.masked),
                            ("fingerprint", row.secret.fingerprint), ("public_key", row.secret.publicKey ?? ""),
                            ("created_at", row.createdAt.description), ("expires_at", row.expiresAt.description),
                        ].filter { !$0.1.isEmpty }
                    }, options.format)
            }

            private func print(_ rows: [[(String, String)]], _ format: Output) {
                if format == .table {
                    for row in rows { Swift.print(row.map { "\($0.0)=\($0.1)" }.joined(separator: "  ")) }
                } else {
                    let objects = rows.map { row in
                        "{" + row.map { "\(jsonString($0.0)):\(jsonString($0.1))" }.joined(separator: ",") + "}"
                    }
                    printJSON(
                        format == .json
                            ? "[" + objects.joined(separator: ",\n ") + "]" : objects.joined(separator: "\n"))
                }
            }
        }

        struct Rotate: AsyncParsableCommand {
            static let configuration = CommandConfiguration(
                abstract: "Sign with a new secret, and with the old ones until receivers have changed over.")
            @OptionGroup var options: GlobalOptions
            @Argument(help: "Name or id.") var endpoint: String
            @Option(name: .long, help: "How long the old ones stay valid; 0s ends them at once.")
            var overlap: DurationArgument?
            @Option(name: .long, help: "File with the new secret (whsec_… or whsk_…); - for stdin.")
            var secretFile: String?
            @Flag(name: .long, help: "An ed25519 key (v1a), beside the symmetric secret.") var asymmetric = false
            @Option(name: .long, help: "For the audit log.") var reason: String?

            func run() async throws {
                let secret =
                    try secretFile.map { file in
                        try SigningSecret(
                            String(decoding: try textArgument(file == "-" ? "-" : "@" + file), as: UTF8.self))
                    } ?? (asymmetric ? .generateAsymmetric() : .generate())
                let valid = try await Session.operate(options) {
                    try await $0.secrets.rotate(endpoint, to: secret, overlap: overlap?.duration, reason: reason)
                }
                let old = valid.filter { $0.secret.fingerprint != secret.fingerprint }
                var fields = [("rotated", jsonString(endpoint)), ("fingerprint", jsonString(secret.fingerprint))]
                var text = "rotated \(endpoint); "
                // What is so, and not what was asked for: one may have been to end earlier, one of
                // the other kind does not end.
                text +=
                    old.isEmpty
                    ? "no other secret is valid"
                    : "also valid: "
                        + old.map { row in
                            "\(row.secret.fingerprint) "
                                + (row.expiresAt == .distantFuture ? "for good" : "until \(row.expiresAt)")
                        }.joined(separator: ", ")
                if secretFile == nil {
                    fields.append(("secret", jsonString(secret.revealed)))
                    text += "\nsecret (shown once)  \(secret.revealed)"
                }
                if let key = secret.publicKey {
                    fields.append(("public_key", jsonString(key)))
                    text += "\npublic key           \(key)"
                }
                options.format.fact(fields.map { (name: $0.0, json: $0.1) }, text: text)
            }
        }

        struct Retire: AsyncParsableCommand {
            static let configuration = CommandConfiguration(
                abstract: "End secrets before their time: one, or all but the newest.")
            @OptionGroup var options: GlobalOptions
            @Argument(help: "Name or id.") var endpoint: String
            @Option(name: .long, help: "Only this one; see: endpoint secret show") var id: UniqueIDArgument?
            @Option(name: .long, help: "For the audit log.") var reason: String?

            func run() async throws {
                let count = try await Session.operate(options) {
                    try await $0.secrets.retire(endpoint, only: id?.id, reason: reason)
                }
                options.format.fact([("retired", "\(count)")], text: "retired \(count)")
            }
        }
    }
}
