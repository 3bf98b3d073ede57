import Foundation
import Postgres

/// PgBouncer in transaction mode before the tests' server: each transaction may get another server
/// connection.
package final class Pooler: Sendable {
    private let process: ChildProcess
    private let folder: String

    /// Starts it before a database of the server.
    ///
    /// - Parameter connections: how many server connections it has for a user.
    package init(before database: TestDatabase, users: [String], connections: Int = 2) async throws {
        folder = TestFolder.path("pooler")
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        let fields = Dictionary(
            database.connectionString.split(separator: " ").map { field in
                let parts = field.split(separator: "=", maxSplits: 1).map { $0.filter { $0 != "'" } }
                return (parts[0], parts[1])
            }, uniquingKeysWith: { $1 })
        let (host, name) = (fields["host"] ?? "", fields["dbname"] ?? "")
        try """
        [databases]
        outbox = host=\(host) port=5432 dbname=\(name)
        [pgbouncer]
        pool_mode = transaction
        default_pool_size = \(connections)
        max_client_conn = 200
        auth_type = trust
        auth_file = \(folder)/users
        listen_addr =
        unix_socket_dir = \(folder)
        listen_port = 6432
        logfile = \(folder)/log
        pidfile = \(folder)/pid
        """.write(toFile: folder + "/ini", atomically: true, encoding: .utf8)
        try (users + ["outbox"]).map { "\"\($0)\" \"\"\n" }.joined().write(
            toFile: folder + "/users", atomically: true, encoding: .utf8)
        var words = ["/usr/sbin/pgbouncer", folder + "/ini"]
        if geteuid() == 0 {
            // It refuses to run as root, as the server does.
            for path in ["", "/ini", "/users"] {
                try FileManager.default.setAttributes([.ownerAccountName: "postgres"], ofItemAtPath: folder + path)
            }
            words = ["/usr/sbin/runuser", "-u", "postgres", "--"] + words
        }
        process = try ChildProcess(words[0], Array(words.dropFirst()))
        let socket = folder + "/.s.PGSQL.6432"
        guard await eventually({ FileManager.default.fileExists(atPath: socket) }) else { throw POSIXError(.ECHILD) }
        // The socket is there before anybody listens to it.
        let first = try ConnectionPool(try ConnectionTarget(connectionString()), size: 1)
        let answers = await eventually { (try? await first.run { try $0.script("SELECT 1") }) != nil }
        await first.close()
        guard answers else { throw POSIXError(.ECONNREFUSED) }
    }

    /// The database through it.
    package func connectionString(user: String = "outbox") -> String {
        "host='\(folder)' port=6432 user=\(user) dbname=outbox"
    }

    package func stop() async {
        process.signal(SIGTERM)
        let pid = (try? String(contentsOfFile: folder + "/pid", encoding: .utf8)).flatMap {
            Int32($0.trimmingCharacters(in: .whitespacesAndNewlines))
        }
        if let pid { kill(pid, SIGKILL) }
        _ = await process.wait()
    }
}
