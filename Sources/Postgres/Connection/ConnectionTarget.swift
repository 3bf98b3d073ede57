import CPostgres

/// Where a database is and how to reach it: a libpq connection string or URI, completed by `PG*`
/// variables, password and service files exactly as libpq does it. An empty string means that the
/// environment decides.
public struct ConnectionTarget: Sendable {
    /// The string as libpq reads it; it may hold a password.
    package let conninfo: String
    let name: String

    /// Checks the string without connecting.
    ///
    /// - Parameter name: shown as `application_name` in `pg_stat_activity`, unless the string sets
    ///   its own.
    /// - Throws: a `PostgresError` of kind configuration, which never quotes the string: it may
    ///   hold a password.
    public init(_ conninfo: String, name: String = "outbox") throws(PostgresError) {
        let options = try Self.options(conninfo)
        // libpq quotes an invalid port, and the text that it takes for the port may be a piece of
        // an unescaped password.
        let ports = (options["port"] ?? "").split(separator: ",", omittingEmptySubsequences: true)
        guard ports.allSatisfy({ port in Int(port).map { (1...65535).contains($0) } ?? false }) else {
            throw PostgresError(
                .configuration, step: .connect,
                message: "the connection string has a port that is no number from 1 to 65535; "
                    + "a slash, colon or at sign in a password must be percent-encoded")
        }
        // In a URI an at sign can only come from there: the text that libpq calls unknown would be
        // part of the password.
        let isURI = conninfo.hasPrefix("postgres://") || conninfo.hasPrefix("postgresql://")
        if isURI, ["host", "dbname"].contains(where: { options[$0]?.utf8.contains(UInt8(ascii: "@")) == true }) {
            throw PostgresError(
                .configuration, step: .connect,
                message: "the connection string has an at sign where none can be; "
                    + "a slash, colon or at sign in a password must be percent-encoded (an at sign is %40)")
        }
        self.conninfo = conninfo
        self.name = name
    }

    /// True when the string itself holds a password.
    public static func hasPassword(_ conninfo: String) throws(PostgresError) -> Bool {
        let options = try options(conninfo)
        return options["password"] != nil || options["sslpassword"] != nil
    }

    /// The string's own options, by keyword.
    private static func options(_ conninfo: String) throws(PostgresError) -> [String: String] {
        if conninfo.isEmpty { return [:] }
        guard !conninfo.utf8.contains(0), let first = unsafe PQconninfoParse(conninfo, nil) else {
            throw PostgresError(
                .configuration, step: .connect,
                message: "the connection string cannot be read; expected postgres://user@host:port/database or "
                    + "key=value pairs such as \"host=/tmp dbname=app\"")
        }
        defer { unsafe PQconninfoFree(first) }
        var options: [String: String] = [:]
        var option = unsafe first
        while let keyword = unsafe option.pointee.keyword {
            if let value = unsafe option.pointee.val {
                unsafe options[String(cString: keyword)] = unsafe String(cString: value)
            }
            unsafe option += 1
        }
        return options
    }

    /// The same database under another `application_name`.
    public func named(_ name: String) -> ConnectionTarget {
        ConnectionTarget(checked: conninfo, name: name)
    }

    /// Another database of the same server.
    package func database(_ database: String) throws(PostgresError) -> ConnectionTarget {
        var options = try Self.options(conninfo)
        options["dbname"] = database
        let pairs = options.sorted { $0.key < $1.key }.map { key, value in
            "\(key)='\(value.unicodeScalars.map { $0 == "\\" || $0 == "'" ? "\\\($0)" : String($0) }.joined())'"
        }
        return ConnectionTarget(checked: pairs.joined(separator: " "), name: name)
    }

    private init(checked conninfo: String, name: String) {
        self.conninfo = conninfo
        self.name = name
    }

    /// The parameters for libpq. The values before `dbname` are defaults that the string may
    /// override: a dead peer is noticed within about 15 seconds instead of the kernel's quarter of
    /// an hour.
    var parameters: [(key: String, value: String)] {
        [
            ("fallback_application_name", name), ("connect_timeout", "10"), ("keepalives_idle", "10"),
            ("keepalives_interval", "3"), ("keepalives_count", "2"), ("tcp_user_timeout", "15000"),
            ("client_encoding", "UTF8"), ("dbname", conninfo),
        ]
    }
}
