import Foundation
import Postgres

/// The load of the database server so far; the difference of two is the cost of a phase.
struct ServerLoad: Sendable {
    /// Processor time of all its processes; nil when they are not visible from here.
    let processorTime: Duration?
    let walBytes: Int64

    static func read(_ connection: inout Connection) throws -> ServerLoad {
        let row = try connection.query(
            "SELECT pg_backend_pid(), pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::int8"
        ).first(Int.self, Int64.self)
        guard let (pid, wal) = row else { return ServerLoad(processorTime: nil, walBytes: 0) }
        return ServerLoad(processorTime: family(of: Int32(pid)), walBytes: wal)
    }

    /// Processor time of a process itself, and of its children that have ended, in the system's
    /// ticks.
    private static func times(of pid: Int32) -> (name: Substring, parent: Int32, own: Int, ended: Int)? {
        guard let text = try? String(contentsOfFile: "/proc/\(pid)/stat", encoding: .utf8),
            let open = text.firstIndex(of: "("), let close = text.lastIndex(of: ")")
        else { return nil }
        // The fields after the name, from the third on (proc(5)).
        let fields = text[text.index(after: close)...].split(separator: " ").map { Int($0) ?? 0 }
        guard fields.count > 14 else { return nil }
        return (
            text[text.index(after: open)..<close], Int32(fields[1]), fields[11] + fields[12], fields[13] + fields[14]
        )
    }

    /// The processor time of a backend's server: the postmaster, its living children and those that
    /// have ended.
    private static func family(of backend: Int32) -> Duration? {
        // A server on another machine has process ids that belong to other processes here.
        guard let own = times(of: backend), own.name.hasPrefix("postgres"), let server = times(of: own.parent),
            server.name.hasPrefix("postgres"),
            let entries = try? FileManager.default.contentsOfDirectory(atPath: "/proc")
        else { return nil }
        var ticks = server.own + server.ended
        for pid in entries.lazy.compactMap({ Int32($0) }) {
            if let child = times(of: pid), child.parent == own.parent { ticks += child.own }
        }
        return .seconds(ticks) / Int(sysconf(Int32(_SC_CLK_TCK)))
    }

    /// Processor time that a process has used.
    static func processorTime(of pid: Int32) -> Duration {
        .seconds(times(of: pid)?.own ?? 0) / Int(sysconf(Int32(_SC_CLK_TCK)))
    }
}
