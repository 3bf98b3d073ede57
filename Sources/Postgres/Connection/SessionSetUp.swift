/// The settings of a connection before it is used.
///
/// A direct connection is set once. Behind a pooler in transaction mode the next transaction may
/// run on another server connection, and settings of this one would remain for the next client:
/// there the settings are part of every transaction, and nothing remains after it.
public struct SessionSetUp: Sendable {
    /// Settings in addition to those of every connection, in order.
    public var settings: [(name: String, value: String)]
    /// A channel whose notifications are waited for; behind a pooler there are none.
    public var channel: String?
    /// Checked on every new connection; a connection for which it throws is not used.
    public var check: @Sendable (inout Connection) throws(PostgresError) -> Void = { _ throws(PostgresError) in }

    /// How long a commit is waited for; nil for the deadline of a statement.
    public var patience: Patience?

    /// A session with these settings.
    public init(settings: [(name: String, value: String)] = [], channel: String? = nil) {
        self.settings = settings
        self.channel = channel
    }

    /// The same set-up with one more setting, or another value of one.
    public func with(_ setting: (name: String, value: String)) -> SessionSetUp {
        var session = self
        session.settings.append(setting)
        return session
    }

    /// The settings of every connection: names mean PostgreSQL's own objects, regardless of the
    /// role's search_path; ISO times in UTC; no JIT (it adds 7 ms to a claim); and no transaction
    /// that a stopped process holds open over its row locks for longer than 10 s.
    private static let common = [
        ("search_path", "pg_catalog, pg_temp"), ("datestyle", "ISO"), ("timezone", "UTC"), ("jit", "off"),
        ("client_min_messages", "warning"), ("idle_in_transaction_session_timeout", "10s"), ("bytea_output", "hex"),
        ("standard_conforming_strings", "on"), ("default_transaction_read_only", "off"),
        // We use the deadlines of the statements instead, which their callers know.
        ("statement_timeout", "0"), ("lock_timeout", "0"), ("idle_session_timeout", "0"),
    ]

    private var all: [(name: String, value: String)] { Self.common + settings }

    /// For the session, as a script.
    var forSession: String {
        Self.select(all + [("default_transaction_isolation", "read committed")], isLocal: false) + Self.endsWithUs
            + (channel.map { "; LISTEN \"\($0)\"" } ?? "")
    }

    /// A statement of a process that has died ends within seconds. Otherwise the server notices
    /// only when it sends something, and a filter that takes for ever keeps a processor for ever.
    /// (A server on Windows refuses the setting.)
    private static let endsWithUs =
        ", pg_catalog.set_config('client_connection_check_interval', "
        + "CASE WHEN pg_catalog.strpos(pg_catalog.version(), 'Visual C') > 0 THEN '0' ELSE '5s' END, false)"

    /// For a transaction that has begun, as one statement.
    var forTransaction: String { Self.select(all, isLocal: true) }

    /// The beginning of a transaction, as a script: with commands only, because after a query its
    /// isolation could not be changed.
    var begin: String {
        Self.begin
            + all.map { "; SET LOCAL \($0.name) = \(Self.isList($0.name) ? $0.value : "'\($0.value)'")" }.joined()
    }

    static let begin = "BEGIN ISOLATION LEVEL READ COMMITTED"

    private static func isList(_ name: String) -> Bool { name == "search_path" }

    private static func select(_ settings: [(name: String, value: String)], isLocal: Bool) -> String {
        "SELECT "
            + settings.map { "pg_catalog.set_config('\($0.name)', '\($0.value)', \(isLocal))" }.joined(separator: ", ")
    }
}
