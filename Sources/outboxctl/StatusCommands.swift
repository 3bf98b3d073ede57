import ArgumentParser
import Operator
import Outbox
import Postgres

struct Status: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "How the installation stands, on one screen.")
    @OptionGroup var options: GlobalOptions
    /// On one screen.
    private static let most = 20

    func run() async throws {
        let isTable = options.format == .table
        let (status, problems, endpoints) = try await Session.operate(options) { desk in
            let (status, problems) = try await desk.status()
            return (status, problems, isTable ? try await desk.endpoints.list(limit: Self.most + 1) : nil)
        }
        options.format.item(status)
        guard let endpoints else { return }
        show(endpoints, columns: ["name", "state", "waiting", "dead_letters", "url"], more: "outboxctl endpoint list")
        show(problems, columns: nil, more: "outboxctl doctor")
    }

    private func show(_ listing: Listing, columns: [String]?, more: String) {
        if listing.rows.isEmpty { return }
        print("")
        options.format.list(listing.prefix(Self.most), columns: columns)
        if listing.rows.count > Self.most { print("and more: \(more)") }
    }
}

struct Doctor: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "What is wrong, and what to do about it; exit 1 when something is.")
    @OptionGroup var options: GlobalOptions

    func run() async throws {
        let settings = try Settings(options)
        _ = try settings.proxy()
        // Without a key of ours here, what endpoints' secrets are worth only the workers know.
        let keyring = (try? settings.keyring(creating: false)) ?? .empty
        let problems = try await Session.run(
            options,
            watching: {
                let waits = try $0.lockWaits()
                return waits.rows.isEmpty ? nil : waits
            }, { try $0.problems(keyring: keyring) })
        if problems.rows.isEmpty, options.format == .table { return print("no problems found") }
        options.format.list(problems)
        if !problems.rows.isEmpty { throw Answer(message: "\(problems.rows.count) problems found") }
    }
}

struct Config: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show every setting, its value and where that comes from.")
    @OptionGroup var options: GlobalOptions

    func run() async throws {
        let settings = try Settings(options)
        let listing = Listing(
            columns: ["key", "value", "origin"],
            rows: settings.values.map { [$0.key, shown($0), $0.origin.rawValue] },
            json: settings.values.map { value in
                "{\"key\":\(jsonString(value.key)),\"value\":\(shown(value).map(jsonString) ?? "null"),\"origin\":\(jsonString(value.origin.rawValue))}"
            })
        options.format.list(listing)
        _ = try settings.policy()
        for key in ["lease", "grace", "poll_interval"] { _ = try settings.duration(key) }
        _ = try LineLogHandler.logger(settings)
    }

    private func shown(_ value: Settings.Value) -> String? {
        guard let text = value.value else {
            return value.key == "database_url" ? "(embedded PostgreSQL in ./.outbox)" : nil
        }
        if !value.isSecret { return text }
        return text.isEmpty ? "(from PG* variables)" : "***"
    }
}
