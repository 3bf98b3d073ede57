import Bench
import EmbeddedPostgres
import Foundation
import Outbox
import Postgres
import StandardWebhooks
import Threads
import Transport

/// An error as the user gets it: what failed, why, what to do next, and the exit code (docs/cli.md,
/// "Exit codes").
struct Failure {
    enum Exit: Int32 {
        case no = 1
        case notFound = 4
        case conflict = 5
        case usage = 64
        case unreachable = 69
        case notPermitted = 77
        case configuration = 78
        case interrupted = 130
    }

    let exit: Exit
    let code: String
    let message: String
    let hint: String?

    /// Nil for errors of the argument parser, which reports its own.
    ///
    /// - Parameter role: what whoever calls the command has to be a member of.
    init?(_ error: any Error, role: String = "outbox_operator") {
        switch error {
        case let error as Problem:
            let exit: Exit =
                switch error.code {
                case .notFound: .notFound
                case .nameTaken, .ambiguousName, .stateConflict, .deliveriesWaiting: .conflict
                default: .usage
                }
            let command = error.next.map { "\($0.isReading ? "See" : "Try"): \($0.command)" }
            let hints = [error.hint, command].compactMap(\.self)
            self.init(exit, error.code.rawValue, error.message, hints.isEmpty ? nil : hints.joined(separator: ". "))
        case let error as Migrator.SchemaError:
            if case .busy = error {
                self.init(.conflict, "migration_running", error.description)
            } else {
                self.init(.configuration, "schema_version_mismatch", error.description)
            }
        case let error as PostgresError: self.init(postgres: error, role: role)
        case let error as EmbeddedCluster.StartError:
            let isWriting = error.description.hasPrefix("cannot write") || error.description.hasPrefix("cannot make")
            self.init(isWriting ? .notPermitted : .unreachable, "embedded_postgres", error.description)
        case let error as LoopbackListener.ListenError:
            self.init(.unreachable, "port_unavailable", error.description, "Choose another with --port")
        case let error as Threads.Thread.StartError: self.init(.unreachable, "no_thread", error.description)
        case let error as HTTPHeader.ValidationError: self.init(.usage, "header_invalid", error.description)
        case let error as SigningSecret.ValidationError: self.init(.usage, "secret_invalid", error.description)
        case let error as Keyring.KeyError: self.init(.configuration, "secret_key", error.description)
        case let error as SettingError: self.init(.configuration, "configuration", error.description)
        case let error as Benchmark.Failure: self.init(.no, "benchmark_failed", error.description)
        case is CancellationError: self.init(.interrupted, "interrupted", "interrupted; everything begun is cleaned up")
        case let error as Answer: self.init(error.exit, "no", error.message)
        case let error as CocoaError: self.init(.usage, "file", error.localizedDescription)
        default: return nil
        }
    }

    init(_ exit: Exit, _ code: String, _ message: String, _ hint: String? = nil) {
        self.exit = exit
        self.code = code
        self.message = message
        self.hint = hint
    }

    private init(postgres error: PostgresError, role: String) {
        let text = error.description
        switch error.kind {
        case .configuration: self.init(.configuration, "configuration", text)
        case .unreachable where error.refusesCredentials:
            self.init(
                .notPermitted, "not_permitted", text,
                "Check the user and password in DATABASE_URL, PGPASSFILE or PGSERVICE")
        case .unreachable where text.contains("does not exist"):
            self.init(
                .unreachable, "database_unavailable", text, "Create the database or role, or correct DATABASE_URL")
        case .deadline:
            self.init(
                .unreachable, "deadline", text,
                "The server responds, but is busy, or another session holds a lock: see outboxctl doctor, or narrow the query"
            )
        case .unreachable, .connectionLost:
            self.init(.unreachable, "database_unavailable", text, "Is the server running, and is DATABASE_URL right?")
        case .value: self.init(.usage, "invalid_value", text)
        case .server:
            switch error.sqlState ?? "" {
            case "42501" where text.contains("create database"):
                self.init(
                    .notPermitted, "not_permitted", text,
                    "A benchmark makes databases of its own: use a role with CREATEDB")
            case "OB010": self.init(.configuration, "restored_database", text, error.hint)
            case "OB013": self.init(.configuration, "wrong_instance", text, error.hint)
            case "OB004": self.init(.notPermitted, "not_permitted", text, error.hint)
            case "42501":
                self.init(
                    .notPermitted, "not_permitted", text,
                    "GRANT \(role) TO the user, or use another one; who is a member already lacks what was taken from that role: "
                        + "a superuser's outboxctl doctor names it")
            case "57014":
                self.init(
                    .unreachable, "deadline", text,
                    "Somebody ended it, with pg_cancel_backend or by a limit of the server; run it again, or narrow what is asked for"
                )
            case "3F000", "42P01":
                self.init(
                    .configuration, "schema_version_mismatch", "the database has no outbox schema",
                    "Run: outboxctl db migrate")
            case let state where state.hasPrefix("22"), let state where state.hasPrefix("23"),
                let state where state.hasPrefix("OB00"):
                self.init(.usage, "invalid_value", text, error.hint)
            default: self.init(.no, "database_error", text, error.hint)
            }
        }
    }

    /// Writes the error to stderr and ends the process.
    func report(asJSON: Bool) -> Never {
        let text: String
        let (message, hint) = (withCommands(message), hint.map(withCommands))
        if asJSON {
            let fields = [("code", code), ("message", message)] + (hint.map { [("hint", $0)] } ?? [])
            text =
                #"{"error":{"# + fields.map { "\(jsonString($0.0)):\(jsonString($0.1))" }.joined(separator: ",") + "}}"
        } else {
            text = "outboxctl: \(printable(message))" + (hint.map { ". \(printable($0))" } ?? "")
        }
        StandardError.say(text)
        Foundation.exit(exit.rawValue)
    }
}

/// The answer to a question was no: exit code 1 without it being anybody's mistake.
struct Answer: Error {
    let message: String
    var exit = Failure.Exit.no
}

extension UseCase {
    /// The command line that does it; an argument `name=value` is an option.
    var command: String {
        (["outboxctl"] + name.split(separator: ".").map(String.init) + arguments.flatMap(words)).joined(separator: " ")
    }

    /// It changes nothing.
    var isReading: Bool { ["list", "get", "explain", "presets"].contains { name.hasSuffix(".\($0)") } }

    private func words(_ argument: String) -> [String] {
        guard let option = argument.wholeMatch(of: /([a-z_]+)=(.*)/) else { return [quotedForShell(argument)] }
        let flag = "--" + option.1.replacing("_", with: "-")
        return option.2 == "true" ? [flag] : [flag, quotedForShell(String(option.2))]
    }
}

/// A text of the service with the use cases in it, as in `{endpoint.resume 7}`, as command lines.
func withCommands(_ text: String) -> String {
    guard text.contains("{") else { return text }
    return text.replacing(/\{([a-z]+(?:\.[a-z]+)*)((?: [^{} ]+)*)\}/) { match in
        UseCase(String(match.1), arguments: match.2.split(separator: " ").map(String.init)).command
    }
}

/// A word for a shell; most need no quotes.
private func quotedForShell(_ word: String) -> String {
    let isPlain = word.utf8.allSatisfy {
        ($0 | 0x20 >= 0x61 && $0 | 0x20 <= 0x7A) || ($0 >= 0x30 && $0 <= 0x39) || "-_.:@%+/".utf8.contains($0)
    }
    return isPlain && !word.isEmpty ? word : "'" + word.replacingOccurrences(of: "'", with: "'\\''") + "'"
}
