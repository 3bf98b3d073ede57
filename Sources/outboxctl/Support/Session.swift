import EmbeddedPostgres
import Foundation
import Operator
import Outbox
import Postgres

/// A database for the length of one command: the configured one, or the embedded cluster.
struct Session: Sendable {
    /// Where the embedded cluster lives when no database is configured.
    static let embeddedFolder = ".outbox"

    let target: ConnectionTarget
    let cluster: EmbeddedCluster?

    /// Opens the configured database; without one, joins or starts the embedded cluster and
    /// migrates it.
    static func open(_ settings: Settings, as name: String = "outboxctl") async throws -> Session {
        let url = try settings.databaseURL()
        if url == nil, try !settings.value(of: .databases).isEmpty {
            throw SettingError(
                description: "OUTBOX_DATABASES names several databases; choose one with --database-url")
        }
        if let url {
            return Session(target: try ConnectionTarget(url, name: name), cluster: nil)
        }
        var environment = settings.environment
        if let folder = try settings.value(of: .postgresBin) { environment["OUTBOX_POSTGRES_BIN"] = folder }
        let cluster = try await EmbeddedCluster(folder: embeddedFolder, environment: environment)
        let session = Session(target: try ConnectionTarget(cluster.connectionString, name: name), cluster: cluster)
        do {
            try await session.use { _ = try Migrator.migrate(&$0) }
            return session
        } catch {
            try cluster.leave()
            throw error
        }
    }

    /// Runs an operator's use cases, in the name of the session's role, and closes everything
    /// afterwards.
    ///
    /// - Parameter isWatching: the use case checks the schema itself, since it waits for no lock
    ///   longer than it takes to find out who has it; it gets a second connection for that.
    static func operate<Value: Sendable>(
        _ options: GlobalOptions, isWatching: Bool = false, connections: Int? = nil, patience: Duration? = nil,
        _ body: (Operator) async throws -> Value
    ) async throws -> Value {
        let settings = try Settings(options)
        let session = try await open(settings)
        return try await session.closing {
            try await session.withPool(
                size: connections ?? (isWatching ? 2 : 1),
                isWatching ? OperatorSession.planning.with(("lock_timeout", "4s")) : OperatorSession.planning
            ) { pool in
                if !isWatching { try await pool.run { try check(&$0, settings) } }
                return try await body(
                    Operator(
                        pool: pool, actor: .session, patience: patience,
                        keyring: { try settings.keyring(creating: false) },
                        policy: { try settings.value(of: .allowNetworks) }))
            }
        }
    }

    /// Throws unless the schema fits and it is the installation that is expected.
    static func check(_ connection: inout Connection, _ settings: Settings) throws {
        try Migrator.check(&connection)
        if let expected = try settings.value(of: .instance), try connection.instance() != expected {
            throw SettingError(
                description:
                    "OUTBOX_INSTANCE is not the instance of this database: this is another installation, or a copy of it"
            )
        }
    }

    /// Runs the closure on one connection and closes everything afterwards.
    static func run<Value: Sendable>(
        _ options: GlobalOptions, checkingSchema: Bool = true,
        _ body: @escaping @Sendable (inout Connection) throws -> Value
    ) async throws -> Value {
        let settings = try Settings(options)
        let session = try await open(settings)
        return try await session.closing {
            try await session.use { connection in
                if checkingSchema { try check(&connection, settings) }
                return try body(&connection)
            }
        }
    }

    /// One connection for the closure.
    func use<Value: Sendable>(
        _ body: @escaping @Sendable (inout Connection) throws -> Value
    ) async throws -> Value {
        try await withPool { try await $0.run(body) }
    }

    /// Connections for the closure.
    private func withPool<Value: Sendable>(
        size: Int = 1, _ session: SessionSetUp = OperatorSession.planning,
        _ body: (ConnectionPool) async throws -> Value
    ) async throws -> Value {
        let pool = try ConnectionPool(target, size: size, session: session)
        let result: Result<Value, any Error>
        do { result = .success(try await body(pool)) } catch { result = .failure(error) }
        await pool.close()
        return try result.get()
    }

    /// Leaves the embedded cluster after the closure.
    private func closing<Value: Sendable>(_ body: () async throws -> Value) async throws -> Value {
        let result: Result<Value, any Error>
        do { result = .success(try await body()) } catch { result = .failure(error) }
        let left = Result { try cluster?.leave() }
        // What the command has to say comes first.
        let value = try result.get()
        try left.get()
        return value
    }
}

/// Every request in flight is a descriptor, and the usual soft limit of 1024 is a default, not a
/// wish. Returns how many there may be now.
@discardableResult func raiseDescriptorLimit() -> Int {
    var limit = rlimit()
    guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return 1024 }
    let before = limit.rlim_cur
    limit.rlim_cur = min(limit.rlim_max, 65_536)
    // Refused: then fewer requests run at a time.
    let isRaised = setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0
    return Int(isRaised ? limit.rlim_cur : before)
}
