import Foundation
import Outbox
import Postgres

/// A database created for one phase of a benchmark and dropped after it: no existing data is
/// touched.
struct Scratch: Sendable {
    let target: ConnectionTarget
    let pool: ConnectionPool
    private let name: String
    private let server: ConnectionPool

    /// Creates the database beside the given one and migrates it.
    ///
    /// Throws a `PostgresError` when the user may not create databases there.
    static func make(beside target: ConnectionTarget) async throws -> Scratch {
        let name = "outbox_bench_\(UInt32.random(in: 0 ... .max))"
        let server = try ConnectionPool(target, size: 1)
        do {
            try await server.execute("CREATE DATABASE \(raw: name)", within: .seconds(60))
        } catch {
            await server.close()
            throw error
        }
        let own = try target.database(name)
        let scratch = Scratch(target: own, pool: try ConnectionPool(own, size: 1), name: name, server: server)
        do {
            try await scratch.pool.run { _ = try Migrator.migrate(&$0) }
        } catch {
            await scratch.remove()
            throw error
        }
        return scratch
    }

    /// Drops the database, even with open connections.
    func remove() async {
        await pool.close()
        do { try await server.execute("DROP DATABASE \(raw: name) WITH (FORCE)", within: .seconds(60)) } catch {
            FileHandle.standardError.write(
                Data("outboxctl: the scratch database \(name) was left behind: \(error)\n".utf8))
        }
        await server.close()
    }

    /// Runs the body with a scratch database, and drops it however the body ends.
    static func with<Value>(
        beside target: ConnectionTarget, _ body: (Scratch) async throws -> Value
    ) async throws -> Value {
        let scratch = try await make(beside: target)
        do {
            let value = try await body(scratch)
            await scratch.remove()
            return value
        } catch {
            await scratch.remove()
            throw error
        }
    }
}
