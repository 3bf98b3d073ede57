import Foundation
import Postgres
import TestSupport
import Testing

/// The benchmark as a user runs it: small, on a real server, with real workers.
@Suite(.serialized, .timeLimit(.minutes(15))) struct BenchTests {
    private func leftDatabases(_ database: TestDatabase) async throws -> [String?] {
        try await database.column("SELECT datname FROM pg_database WHERE datname LIKE 'outbox_bench_%'")
    }

    @Test func `every phase is measured and reported, and nothing is left behind`() async throws {
        let database = try await TestCluster.database(migrated: false)
        let (end, output, errors) = try await ChildProcess.run(
            [
                "bench", "--events", "2000", "--rate", "100", "--duration", "1s", "--endpoints", "2", "--workers", "2",
                "--phases", "loop", "drain", "steady", "-o", "json",
            ], environment: ["DATABASE_URL": database.connectionString])
        #expect(end == .exit(0), "\(errors)")
        let report = try #require(try JSONSerialization.jsonObject(with: Data(output.utf8)) as? [String: Any])
        let drain = try #require(report["drain"] as? [String: Any])
        #expect(drain["requests"] as? Int == 4000)
        #expect(drain["attempts"] as? Int == 4000)
        #expect(drain["duplicates"] as? Int == 0)
        #expect(drain["failures"] as? Int == 0)
        #expect((drain["tenths_per_second"] as? [Double])?.count == 10)
        for figure in [
            "deliveries_per_second", "share_of_loop", "statements_per_delivery", "wal_bytes_per_delivery",
            "worker_memory_bytes",
        ] {
            #expect(try #require(drain[figure] as? Double, "\(figure)") > 0, "\(figure)")
        }
        #expect((drain["attempts_per_worker"] as? [Int])?.reduce(0, +) == 4000)
        let steady = try #require(report["steady"] as? [String: Any])
        let latency = try #require(steady["commit_to_response_milliseconds"] as? [String: Any])
        #expect(latency["count"] as? Int == steady["published"] as? Int)
        #expect(try await leftDatabases(database) == [])
    }

    @Test(.heavy) func `a healthy endpoint is measured beside a party that takes what it can`() async throws {
        let database = try await TestCluster.database(migrated: false)
        let (end, output, errors) = try await ChildProcess.run(
            ["bench", "--duration", "1s", "--phases", "shares", "--parties", "rules", "-o", "json"],
            environment: ["DATABASE_URL": database.connectionString])
        #expect(end == .exit(0), "\(errors)")
        let report = try #require(try JSONSerialization.jsonObject(with: Data(output.utf8)) as? [String: Any])
        let share = try #require((report["shares"] as? [[String: Any]])?.first)
        #expect(share["party"] as? String == "rules" && share["party_responses"] as? Int ?? 0 > 0)
        #expect((share["beside"] as? [String: Any])?["count"] as? Int ?? 0 > 0)
        #expect(share["delivered_share"] as? Double ?? 0 > 0)
        #expect(try await leftDatabases(database) == [])
        let wrong = try await ChildProcess.run(
            ["bench", "--phases", "shares", "--parties", "nobody"],
            environment: ["DATABASE_URL": database.connectionString])
        #expect(wrong.0 == .exit(64) && wrong.2.contains("nobody"))
    }

    @Test(.heavy) func `lanes are measured beside bad neighbours and while endpoints flap`() async throws {
        let database = try await TestCluster.database(migrated: false)
        let (end, output, errors) = try await ChildProcess.run(
            [
                "bench", "--events", "200", "--duration", "2s", "--phases", "neighbours", "flapping", "directory", "-o",
                "json",
            ],
            environment: ["DATABASE_URL": database.connectionString])
        #expect(end == .exit(0), "\(errors)")
        let report = try #require(try JSONSerialization.jsonObject(with: Data(output.utf8)) as? [String: Any])
        let neighbours = try #require(report["neighbours"] as? [String: Any])
        #expect((neighbours["alone"] as? [String: Any])?["count"] as? Int == 4000)
        #expect((neighbours["beside"] as? [String: Any])?["count"] as? Int == 4000)
        // What waits for the dead endpoint and the others.
        #expect(neighbours["waiting"] as? Int ?? 0 >= 200)
        let flapping = try #require(report["flapping"] as? [String: Any])
        #expect(flapping["opens"] as? Int ?? 0 > 0)
        let directory = try #require(report["directory"] as? [String: Any])
        #expect(directory["endpoints"] as? Int == 10_000 && directory["idle_processor_share"] != nil)
        for part in ["before", "after"] {
            let rounds = try #require(flapping[part] as? [String: Any])
            #expect(rounds["per_second"] as? Double ?? 0 > 0)
            #expect(rounds["blocks"] as? Int ?? 0 > 0)
        }
        #expect(try await leftDatabases(database) == [])
    }

    @Test func `failing requests are counted and retried`() async throws {
        let database = try await TestCluster.database(migrated: false)
        let (end, output, errors) = try await ChildProcess.run(
            ["bench", "--events", "300", "--fail-rate", "0.1", "--phases", "drain", "-o", "json"],
            environment: ["DATABASE_URL": database.connectionString])
        #expect(end == .exit(0), "\(errors)")
        let report = try #require(try JSONSerialization.jsonObject(with: Data(output.utf8)) as? [String: Any])
        let drain = try #require(report["drain"] as? [String: Any])
        let (attempts, failures) = (drain["attempts"] as? Int ?? 0, drain["failures"] as? Int ?? 0)
        #expect(failures > 0)
        #expect(attempts == 300 + failures)
        #expect(drain["requests"] as? Int == attempts)
    }

    @Test func `an interrupted benchmark leaves neither a database nor a worker`() async throws {
        let database = try await TestCluster.database(migrated: false)
        let bench = try ChildProcess(
            ChildProcess.outboxctl, ["bench", "--events", "100000", "--latency", "500ms", "--phases", "drain"],
            environment: ["DATABASE_URL": database.connectionString])
        defer { bench.remove() }
        #expect(await eventually { bench.errors.contains("delivering") }, "\(bench.errors)")
        let workers = children(of: bench.pid)
        #expect(workers.count == 1)
        bench.signal(SIGINT)
        #expect(await bench.wait() == .exit(130), "\(bench.errors)")
        #expect(bench.errors.contains("interrupted"))
        #expect(await eventually { workers.allSatisfy { hasEnded($0) } })
        #expect(try await leftDatabases(database) == [])
    }

    @Test func `a user who may not create databases is told so`() async throws {
        let database = try await TestCluster.database(migrated: false)
        try await database.script(
            "DO $$ BEGIN CREATE ROLE bench_guest LOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
        let (end, _, errors) = try await ChildProcess.run(
            ["bench", "--phases", "drain"],
            environment: ["DATABASE_URL": database.connectionString + " user=bench_guest"])
        #expect(end == .exit(77))
        #expect(errors.contains("CREATEDB"), "\(errors)")
    }

    private func children(of pid: pid_t) -> [pid_t] {
        let folders = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/task")) ?? []
        return folders.flatMap { thread in
            ((try? String(contentsOfFile: "/proc/\(pid)/task/\(thread)/children", encoding: .utf8)) ?? "")
                .split(separator: " ").compactMap { pid_t($0) }
        }
    }

    /// True when the process is gone, or dead and only not yet waited for.
    private func hasEnded(_ pid: pid_t) -> Bool {
        guard let status = try? String(contentsOfFile: "/proc/\(pid)/status", encoding: .utf8) else { return true }
        return status.contains("State:\tZ")
    }
}
