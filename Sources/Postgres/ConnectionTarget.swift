import CPostgres

/// Where a database is and how to reach it: a libpq connection string or URI, completed by `PG*` variables, password
/// and service files exactly as libpq does it. An empty string means "whatever the environment says".
public struct ConnectionTarget: Sendable {
    let conninfo: String
    let name: String

    /// Checks the string without connecting.
    ///
    /// - Parameter name: shown as `application_name` in `pg_stat_activity`, unless the string sets its own.
    /// - Throws: a `PostgresError` of kind configuration, which never quotes the string: it may hold a password.
    public init(_ conninfo: String, name: String = "outbox") throws(PostgresError) {
        if !conninfo.isEmpty {
            guard !conninfo.utf8.contains(0), let options = unsafe PQconninfoParse(conninfo, nil) else {
                throw PostgresError(
                    .configuration, step: .connect,
                    message: "the connection string cannot be read; expected postgres://user@host:port/database or "
                        + "key=value pairs such as \"host=/tmp dbname=app\"")
            }
            unsafe PQconninfoFree(options)
        }
        self.conninfo = conninfo
        self.name = name
    }

    /// The same database under another `application_name`.
    public func named(_ name: String) -> ConnectionTarget {
        ConnectionTarget(checked: conninfo, name: name)
    }

    private init(checked conninfo: String, name: String) {
        self.conninfo = conninfo
        self.name = name
    }

    /// What libpq is told. The values before `dbname` are defaults that the string may override: a dead peer is noticed
    /// within about 15 seconds instead of the kernel's quarter of an hour.
    var parameters: [(key: String, value: String)] {
        [
            ("fallback_application_name", name), ("connect_timeout", "10"), ("keepalives_idle", "10"),
            ("keepalives_interval", "3"), ("keepalives_count", "2"), ("tcp_user_timeout", "15000"),
            ("client_encoding", "UTF8"), ("dbname", conninfo),
        ]
    }
}
