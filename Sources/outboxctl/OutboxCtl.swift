import ArgumentParser
import Foundation
import Outbox
import Templates

/// The command line. Words, flags and exit codes are described in docs/cli.md.
@main
struct OutboxCtl: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "outboxctl",
        abstract: "Transactional outbox and webhook delivery on PostgreSQL.",
        version: outboxVersion,
        subcommands: [
            Run.self, Serve.self, Status.self, Doctor.self, DatabaseCommand.self, EndpointCommand.self,
            EventCommand.self,
            DeliveryCommand.self, AttemptCommand.self, DeadCommand.self, TokenCommand.self, Listen.self,
            TriggerCommand.self,
            TemplateCommand.self, Sign.self, Verify.self, BenchCommand.self, Config.self,
        ])

    static func main() async {
        // What is opened first would get the number of one that is missing, and what is meant for
        // people would be written there.
        for descriptor in Int32(0)...2 where fcntl(descriptor, F_GETFD) < 0 { _ = open("/dev/null", O_RDWR) }
        // A receiver or a reader that goes away must not end the process without a word.
        signal(SIGPIPE, SIG_IGN)
        // Memory holds keys and bodies: it goes into no file when this process dies.
        var none = rlimit(rlim_cur: 0, rlim_max: 0)
        _ = setrlimit(__rlimit_resource_t(RLIMIT_CORE.rawValue), &none)
        let arguments = Array(CommandLine.arguments.dropFirst())
        // What is no UTF-8 would be taken for something else.
        if let number = (1..<Int(CommandLine.argc)).first(where: { index in
            CommandLine.unsafeArgv[index].map { String(validatingCString: $0) == nil } ?? false
        }) {
            Failure(
                .usage, "invalid_value", "argument \(number) is not UTF-8", "Write it in UTF-8, or give it in a file"
            )
            .report(asJSON: Output.isJSON(arguments))
        }
        if let option = RepeatedOptions.first(in: arguments, of: Self.self) {
            Failure(.usage, "invalid_value", "\(option) is given twice", "It takes one value")
                .report(asJSON: Output.isJSON(arguments))
        }
        do {
            var command = try parseAsRoot(arguments)
            if var command = command as? any AsyncParsableCommand { try await command.run() } else { try command.run() }
        } catch {
            if let failure = Failure(error, role: role(for: arguments)) {
                failure.report(asJSON: Output.isJSON(arguments))
            }
            if let suggestion = suggestion(for: arguments) {
                StandardError.say(suggestion)
            }
            exit(withError: error)
        }
    }

    /// The role that a command needs. One that publishes looks at the schema first, which producers
    /// need not and cannot.
    private static func role(for arguments: [String]) -> String {
        switch arguments.first {
        case "run": "outbox_worker"
        case "db" where ["status", "validate", "rebase"].contains(arguments.dropFirst().first): "outbox_operator"
        case "db": "the schema's owner"
        default: "outbox_operator"
        }
    }

    /// The parser says that a subcommand is unknown, but not which was meant.
    private static func suggestion(for arguments: [String]) -> String? {
        var command: any ParsableCommand.Type = OutboxCtl.self
        for word in arguments.prefix(2) {
            let children = command.configuration.subcommands
            if children.isEmpty || word.hasPrefix("-") { return nil }
            if let child = children.first(where: { $0._commandName == word }) {
                command = child
                continue
            }
            let close = children.map { ($0._commandName, editDistance($0._commandName, word)) }.filter { $0.1 <= 2 }.min
            { $0.1 < $1.1 }
            return close.map { "outboxctl: unknown command \"\(word)\". Did you mean \"\($0.0)\"?" }
        }
        return nil
    }
}
