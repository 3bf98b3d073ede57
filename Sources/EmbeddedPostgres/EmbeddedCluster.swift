import Foundation
import Postgres

/// A private PostgreSQL cluster in a folder, reachable through a unix socket only, started when
/// needed and stopped by the last process that uses it.
///
/// Every process that uses it holds a shared lock on `users.lock`; a process that leaves and then
/// gets the exclusive lock was the last one and stops the server. The kernel drops the lock of a
/// killed process, so a server that was left running is found by the next command and stopped at
/// its end. Starting and stopping happen under `start.lock`.
///
/// PostgreSQL refuses to run as root: root's cluster belongs to the user `postgres` (or `nobody`),
/// and lies under `/var/lib/outbox` when that user cannot reach the folder, with a link to it in
/// the folder.
package final class EmbeddedCluster: Sendable {
    /// Why the cluster cannot be used.
    package struct StartError: Error, Sendable, CustomStringConvertible {
        package let description: String
        package init(description: String) { self.description = description }
    }

    /// The connection string for libpq.
    package let connectionString: String
    private let data: String
    private let binaries: ServerBinaries
    private let user: String?
    private let folder: String
    private let users: FileLock

    /// Starts the cluster in the folder, or joins the processes that already use it; creates it
    /// first if there is none.
    ///
    /// - Parameter settings: lines for `postgresql.conf` of a cluster that is created now.
    package init(
        folder: String, settings: [String] = [], environment: [String: String] = ProcessInfo.processInfo.environment
    ) async throws {
        let place = try Place(folder: folder)
        let starting = try FileLock(place.folder + "/start.lock")
        try starting.lock(waiting: .seconds(60))
        defer { starting.unlock() }
        let users = try FileLock(place.folder + "/users.lock")
        users.lockShared()

        let made = try? String(contentsOfFile: place.data + "/PG_VERSION", encoding: .utf8)
        let version = made?.trimmingCharacters(in: .whitespacesAndNewlines)
        let binaries = try ServerBinaries.find(version: version, environment: environment)
        if made == nil { try Self.make(place, binaries, settings) }
        self.binaries = binaries
        self.users = users
        data = place.data
        user = place.user
        self.folder = place.folder
        connectionString = "host='\(place.socket)' port=5432 user=outbox dbname=outbox"
        if !isRunning { try start(place) }
        try await makeDatabase(place)
        // For psql and other clients: psql "$(cat .outbox/connection)"
        do { try connectionString.write(toFile: place.folder + "/connection", atomically: true, encoding: .utf8) } catch
        {
            throw StartError(description: "cannot write \(place.folder)/connection: \(error.localizedDescription)")
        }
    }

    /// Leaves the cluster; the last process stops the server.
    package func leave() throws {
        let starting = try FileLock(folder + "/start.lock")
        try starting.lock(waiting: .seconds(60))
        defer { starting.unlock() }
        users.unlock()
        guard users.tryLockAlone() else { return }
        defer { users.unlock() }
        // Killed or crashed: then there is nothing left to stop.
        guard isRunning else { return }
        try pgctl(["stop", "-m", "fast", "-w"], "could not stop the embedded PostgreSQL")
    }

    /// Starts the server again when it is gone, killed or crashed; true when it had to.
    package func restartIfGone() throws -> Bool {
        if let pid = serverPID, kill(pid, 0) == 0 || errno == EPERM { return false }
        let starting = try FileLock(folder + "/start.lock")
        try starting.lock(waiting: .seconds(60))
        defer { starting.unlock() }
        if isRunning { return false }
        try start(try Place(folder: folder))
        return true
    }

    /// The server's process id, while it runs.
    package var serverPID: Int32? {
        (try? String(contentsOfFile: data + "/postmaster.pid", encoding: .utf8))?.split(separator: "\n").first.flatMap {
            Int32($0)
        }
    }

    // MARK: Steps

    private static func make(_ place: Place, _ binaries: ServerBinaries, _ settings: [String]) throws {
        // Made beside its place and then moved: an interrupted initdb leaves nothing that looks
        // like a cluster.
        let unfinished = place.data + ".new"
        try place.prepareUnfinished(unfinished)
        do {
            try place.asUser(
                binaries.path("initdb"),
                [
                    "-D", unfinished, "-U", "outbox", "-A", "trust", "-E", "UTF8", "--locale=C", "-k",
                    "--no-instructions",
                ])
        } catch let failure as Program.Failure {
            throw StartError(description: "initdb failed in \(place.data): \(failure.output.suffix(500))")
        }
        let lines =
            [
                "listen_addresses = ''", "unix_socket_permissions = 0700",
                "max_connections = 200", "log_timezone = 'UTC'", "timezone = 'UTC'",
            ] + settings
        let file = unfinished + "/postgresql.auto.conf"
        do {
            // With the rights of the cluster's user: the folder belongs to that user, and a file in
            // it may be a link by now.
            try place.asUser("/bin/sh", ["-c", "printf '%s\\n' \"$@\" >> \"$0\"", file] + lines)
            try FileManager.default.moveItem(atPath: unfinished, toPath: place.data)
        } catch let failure as Program.Failure {
            throw StartError(description: "cannot write \(file): \(failure.output.suffix(500))")
        } catch let error as CocoaError {
            throw StartError(
                description: "cannot set up the embedded PostgreSQL in \(place.data): \(error.localizedDescription)")
        }
    }

    private var isRunning: Bool {
        (try? Place.run(binaries.path("pg_ctl"), ["-D", data, "status"], as: user)) != nil
    }

    private func start(_ place: Place) throws {
        try place.prepareSocket()
        do {
            try pgctl(
                ["start", "-w", "-t", "60", "-l", data + "/server.log", "-o", "-k '\(place.socket)'"],
                "could not start the embedded PostgreSQL")
        } catch {
            let log = (try? String(contentsOfFile: data + "/server.log", encoding: .utf8)) ?? ""
            throw StartError(description: "the embedded PostgreSQL in \(data) did not start: \(log.suffix(600))")
        }
    }

    private func pgctl(_ arguments: [String], _ complaint: String) throws {
        do { try Place.run(binaries.path("pg_ctl"), ["-D", data] + arguments, as: user) } catch let failure
            as Program.Failure
        {
            throw StartError(description: "\(complaint): \(failure.output.suffix(500))")
        }
    }

    private func makeDatabase(_ place: Place) async throws {
        let administration = try ConnectionTarget("host='\(place.socket)' port=5432 user=outbox dbname=postgres")
        let pool = try ConnectionPool(administration, size: 1)
        do {
            try await pool.run { connection in
                let exists = try connection.query("SELECT FROM pg_database WHERE datname = 'outbox'").count > 0
                if !exists { try connection.script("CREATE DATABASE outbox", within: .seconds(60)) }
            }
            await pool.close()
        } catch {
            await pool.close()
            throw error
        }
    }
}
