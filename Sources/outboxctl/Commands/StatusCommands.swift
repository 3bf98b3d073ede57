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
        _ = try settings.value(of: .egressProxy)
        let problems = try await Session.operate(options, isWatching: true) { desk in
            try await desk.problems { try Session.check(&$0, settings) }
        }
        if problems.rows.isEmpty, options.format == .table { return print("no problems found") }
        options.format.list(
            Listing(
                columns: problems.columns, rows: problems.rows.map { $0.map { $0.map(withCommands) } },
                json: problems.json.map(withCommands)))
        if !problems.rows.isEmpty { throw Answer(message: "\(problems.rows.count) problems found") }
    }
}

struct Config: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show every setting, its value and where that comes from.")
    @OptionGroup var options: GlobalOptions
    @Flag(name: .long, help: "Say what each setting is instead, as the table in docs/cli.md.") var describe = false

    func run() async throws {
        if describe { return Self.table.forEach { print($0) } }
        let settings = try Settings(options)
        let shown = try Settings.all.map { setting in
            let (text, origin) = try settings.text(of: setting)
            return (key: setting.key, value: Self.shown(setting, text, origin), origin: origin.rawValue)
        }
        options.format.list(
            Listing(
                columns: ["key", "value", "origin"], rows: shown.map { [$0.key, $0.value, $0.origin] },
                json: shown.map {
                    "{\"key\":\(jsonString($0.key)),\"value\":\($0.value.map(jsonString) ?? "null"),\"origin\":\(jsonString($0.origin))}"
                }))
        try settings.check()
    }

    private static func shown(_ setting: any AnySetting, _ text: String, _ origin: Settings.Origin) -> String? {
        let isDatabase = setting.key == Setting.databaseURL.key
        if origin == .default { return isDatabase ? "(embedded PostgreSQL in ./.outbox)" : text.isEmpty ? nil : text }
        if !setting.isSecret { return text }
        return text.isEmpty && isDatabase ? "(from PG* variables)" : "***"
    }

    /// Every setting as a row of a table in Markdown.
    private static var table: [String] {
        ["| Key | Flag | Default | |", "|---|---|---|---|"]
            + Settings.all.map { setting in
                let fallback = setting.shownFallback ?? (setting.fallback.isEmpty ? "" : "`\(setting.fallback)`")
                return "| `\(setting.key)` | \(setting.flag.map { "`\($0)`" } ?? "") | \(fallback) | \(setting.help) |"
            }
    }
}
