import EmbeddedPostgres
import Foundation
import Postgres

/// A PostgreSQL server of one test's own: to be killed, copied, replicated and promoted.
package final class TestServer: Sendable {
    private let folder: String
    private let binaries: ServerBinaries
    private let settings: [String]
    /// The server refuses to run as root.
    private let user: String?

    /// Where its socket is, for connection strings of several hosts.
    package let host: String
    package var connectionString: String { "host='\(host)' user=outbox dbname=outbox" }

    private var data: String { folder + "/data" }

    private init(_ name: String, settings: [String]) throws {
        folder = TestFolder.path(name)
        host = folder
        binaries = try ServerBinaries.find(environment: ProcessInfo.processInfo.environment)
        self.settings = settings
        user = geteuid() == 0 ? "postgres" : nil
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        if let user { try FileManager.default.setAttributes([.ownerAccountName: user], ofItemAtPath: folder) }
    }

    /// A new server with an empty database `outbox`, running.
    package static func make(settings: [String] = []) async throws -> TestServer {
        let server = try TestServer("server", settings: settings)
        try await server.run("initdb", ["-D", server.data, "-U", "outbox", "-A", "trust", "-E", "UTF8", "--locale=C"])
        try await server.start()
        let pool = try ConnectionPool(
            try ConnectionTarget("host='\(server.host)' user=outbox dbname=postgres"), size: 1)
        try await pool.run { try $0.script("CREATE DATABASE outbox", within: .seconds(60)) }
        await pool.close()
        return server
    }

    /// A standby of this one as it is now, not running: what it does not fetch before it is
    /// started, it does not have.
    package func standby() async throws -> TestServer {
        let standby = try TestServer("standby", settings: settings)
        try await standby.run("pg_basebackup", ["-D", standby.data, "-h", host, "-U", "outbox", "-R", "-c", "fast"])
        return standby
    }

    /// Starts a server whose primary is gone as the new one.
    package func startAndPromote() async throws {
        try await start()
        try await promote()
    }

    package func promote() async throws { try await run("pg_ctl", ["-D", data, "promote", "-w"]) }

    /// - Parameter changed: Settings of this start only, which replace those that it was made with.
    package func start(changed: [String] = []) async throws {
        let options =
            ["-k '\(host)'", "-c listen_addresses=''", "-c fsync=off", "-c hot_standby=on"]
            + (settings + changed).map { "-c \($0)" }
        try await run(
            "pg_ctl",
            ["-D", data, "start", "-w", "-t", "60", "-l", folder + "/log", "-o", options.joined(separator: " ")])
    }

    /// Ends it as a crash does.
    package func kill() async throws { try await run("pg_ctl", ["-D", data, "stop", "-m", "immediate", "-w"]) }

    package func stop() async throws { try await run("pg_ctl", ["-D", data, "stop", "-m", "fast", "-w"]) }

    /// Replaces the data of this server, which is not running, by the other's.
    package func restore(_ copy: TestServer) async throws {
        try await run("/bin/rm", ["-rf", data])
        try await run("/bin/cp", ["-a", copy.data, data])
        try await run("/bin/rm", ["-f", data + "/standby.signal"])
    }

    private func run(_ program: String, _ arguments: [String]) async throws {
        let path = program.hasPrefix("/") ? program : binaries.folder + "/" + program
        let words = (user.map { ["/usr/sbin/runuser", "-u", $0, "--"] } ?? []) + [path] + arguments
        let child = try ChildProcess(words[0], Array(words.dropFirst()))
        let end = await child.wait()
        defer { child.remove() }
        guard end == .exit(0) else {
            throw EmbeddedCluster.StartError(
                description: "\(program) failed: \(child.output.suffix(300)) \(child.errors.suffix(600))")
        }
    }
}
