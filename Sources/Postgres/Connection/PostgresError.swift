import CPostgres

/// Why a database step failed. `description` is safe to show to anyone: it holds neither values nor
/// credentials.
public struct PostgresError: Error, Sendable, CustomStringConvertible, CustomDebugStringConvertible {
    /// The kind of failure; callers decide by this and by `sqlState`.
    public enum Kind: Sendable {
        /// The connection settings cannot be used.
        case configuration
        /// No connection could be made.
        case unreachable
        /// The connection was lost; the statement in progress may or may not have taken effect.
        case connectionLost
        /// The statement passed its deadline and the server confirmed that it was cancelled.
        case deadline
        /// The server refused the statement; `sqlState` says why.
        case server
        /// A value could not be sent or read as the requested type: our mistake or a foreign
        /// schema.
        case value
    }

    /// The step of the conversation that failed.
    public enum Step: String, Sendable {
        case connect, begin, statement, commit, rollback, decode
    }

    /// The kind of failure.
    public let kind: Kind
    /// The step that failed.
    public internal(set) var step: Step
    /// The five characters of the server's error code, for `kind` server and for refused
    /// connections.
    public let sqlState: String?
    /// The violated constraint, where the server names one.
    public let constraint: String?
    /// The server's hint, where it gives one: for our own errors it says what to do next.
    public let hint: String?
    private let message: String
    private let detail: String?

    init(
        _ kind: Kind, step: Step, message: String, sqlState: String? = nil, constraint: String? = nil,
        hint: String? = nil, detail: String? = nil
    ) {
        self.kind = kind
        self.step = step
        self.message = message
        self.sqlState = sqlState
        self.constraint = constraint
        self.hint = hint
        self.detail = detail
    }

    /// The failure, safe to show to anyone.
    public var description: String {
        guard let sqlState else { return message }
        // Class 22 quotes the value that it could not read; everything after the first colon may be
        // data.
        let safe = sqlState.hasPrefix("22") ? String(message.prefix { $0 != ":" }) : message
        return "\(safe) (SQLSTATE \(sqlState))"
    }

    /// Everything that is known, including values that the server quoted: for a debugger, not for a
    /// log.
    public var debugDescription: String {
        "PostgresError(\(kind), \(step.rawValue), \(sqlState ?? "-"), \(message), \(detail ?? "-"))"
    }

    /// True when the statement or commit may have taken effect although we got no response: read
    /// back, never guess.
    public var isOutcomeUnknown: Bool {
        kind == .connectionLost && (step == .statement || step == .commit)
    }

    /// True when the same work may succeed later without any change by an operator.
    public var isTransient: Bool {
        switch kind {
        case .unreachable, .connectionLost, .deadline: true
        case .configuration, .value: false
        case .server: PostgresError.transientStates.contains(sqlState ?? "") || (sqlState ?? "").hasPrefix("53")
        }
    }

    /// True when the server refuses the values: they have the wrong form, or violate a table's
    /// constraint.
    public var isOfValues: Bool {
        switch kind {
        case .value: true
        case .server: ["22", "23", "54"].contains(String((sqlState ?? "").prefix(2)))
        case .configuration, .unreachable, .connectionLost, .deadline: false
        }
    }

    /// True when the server rejects the identity of the client, or requires a password.
    public var refusesCredentials: Bool {
        kind == .unreachable
            && [
                "authentication failed", "no password supplied", "is not permitted to log in", "pg_hba.conf",
            ].contains { message.contains($0) }
    }

    /// True when no database responds, and one may respond later: a server that is starting, a name
    /// that does not resolve yet, a database that does not exist yet. False when the server refuses
    /// the client.
    public var mayPass: Bool {
        switch kind {
        case .unreachable: !refusesCredentials
        case .connectionLost: true
        // Another session holds a lock, or keeps the database too busy.
        case .deadline: true
        case .server: ["57", "53", "55"].contains(String((sqlState ?? "").prefix(2)))
        case .configuration, .value: false
        }
    }

    /// Shutdown and recovery (57P0x), serialization and deadlock (40xxx), lock timeouts, read-only
    /// primaries in failover.
    private static let transientStates: Set<String> = [
        "57P01", "57P02", "57P03", "57P05", "57014", "40001", "40P01", "55P03", "25006", "25P03", "08006", "08003",
    ]
}

extension PostgresError {
    /// The error in a result.
    ///
    /// - Parameter isCancelled: we requested the cancel, because the deadline had passed.
    init(_ result: OpaquePointer, step: Step, isCancelled: Bool) {
        func field(_ letter: Character) -> String? {
            guard let text = unsafe PQresultErrorField(result, Int32(letter.asciiValue ?? 0)) else { return nil }
            return unsafe String(cString: text)
        }
        guard let state = field("C") else {
            self.init(.connectionLost, step: step, message: "the connection to the database was lost")
            return
        }
        let timedOut = isCancelled && state == "57014"
        self.init(
            timedOut ? .deadline : .server, step: step,
            message: timedOut ? "the statement passed its deadline and was cancelled" : field("M") ?? "unknown error",
            sqlState: state, constraint: field("n"), hint: field("H"), detail: field("D"))
    }

    /// libpq's own message about a connection, on one line. libpq quotes a value that is invalid
    /// for its option, and that may have been meant for another option: a password.
    static func ownWords(of handle: OpaquePointer) -> String {
        let words = unsafe String(cString: PQerrorMessage(handle))
        let line = String(words.reversed().drop { $0.isWhitespace }.reversed()).replacing("\n", with: "; ")
        guard line.hasPrefix("invalid "), let quote = line.firstIndex(of: "\"") else { return line }
        return line[..<quote] + "\"…\""
    }
}
