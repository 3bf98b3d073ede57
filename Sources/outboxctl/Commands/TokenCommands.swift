import ArgumentParser
import Operator
import Outbox
import Postgres

struct TokenCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "token", abstract: "Who may call the HTTP API.",
        subcommands: [Create.self, List.self, Revoke.self])

    struct Create: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Create a token; it is shown once.")
        @OptionGroup var options: GlobalOptions
        @Argument(help: "A name, to tell it from others.") var name: String
        @Option(
            name: .long, parsing: .upToNextOption,
            help: "What it may do: \(Token.Scope.allCases.map(\.rawValue).joined(separator: ", ")).")
        var scope: [String]
        @Option(name: .long, help: "Who its holder is, in events and in the audit log; its name when left out.")
        var identity: String?
        @Option(name: .long, help: "How many calls, as in 100/s or \"10/s burst 50\"; 1000/s burst 2000 when left out.")
        var rate: String?
        @Option(name: .long, help: "Until when it is valid (\(TimeArgument.forms)); for good when left out.")
        var expires: TimeArgument?

        func run() async throws {
            var wish = TokenWish(name: name, scopes: Set(try scope.map { try Token.Scope(named: $0) }))
            wish.identity = identity
            wish.rate = try rate.map { try RateLimit($0) }
            wish.expiresAt = expires?.timestamp
            let (row, token) = try await Session.operate(options) { [wish] in try await $0.tokens.create(wish) }
            if options.format == .table {
                options.format.item(row)
                print("\ntoken (shown once)  \(token.text)")
            } else if let object = row.json.first {
                printJSON("\(object.dropLast()),\"token\":\(jsonString(token.text))}")
            }
        }
    }

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List tokens, newest first.")
        @OptionGroup var options: GlobalOptions
        @Option(name: .long, help: "The largest number of rows, 1 to 10000.") var limit = 100

        func validate() throws {
            guard (1...10_000).contains(limit) else { throw ValidationError("--limit must be 1 to 10000") }
        }

        func run() async throws {
            let tokens = try await Session.operate(options) { try await $0.tokens.list(limit: limit + 1) }.tokens
            options.format.list(
                tokens.first(limit, orMore: "--limit"),
                columns: [
                    "id", "name", "identity", "prefix", "scopes", "created_at", "expires_at", "revoked_at",
                    "last_used_at",
                ])
        }
    }

    struct Revoke: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Revoke a token for good; running servers know it within five seconds.")
        @OptionGroup var options: GlobalOptions
        @Argument(help: "The token's id, which lists show.") var id: UniqueIDArgument
        @Option(name: .long, help: "Why, for the audit log.") var reason: String?

        func run() async throws {
            try await Session.operate(options) { try await $0.tokens.revoke(id.id, reason: reason) }
        }
    }
}
