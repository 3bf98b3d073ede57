import EmbeddedPostgres
import Foundation
import Outbox
import Receiver
import TestSupport
import Testing

/// The private cluster in `./.outbox`, through the real binary.
@Suite(.timeLimit(.minutes(15))) struct EmbeddedTests {
    private func folder() throws -> String {
        let folder = TestFolder.path("embedded")
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        return folder
    }

    private func serverPID(_ folder: String) -> Int32? {
        (try? String(contentsOfFile: folder + "/.outbox/postgres/postmaster.pid", encoding: .utf8))?.split(
            separator: "\n"
        ).first.flatMap { Int32($0) }
    }

    @Test func `run starts it, others find it, data survives a restart and kill -9, and the last one stops it`()
        async throws
    {
        let folder = try folder()
        let ledger = try Ledger()
        let environment = ["OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8", "OUTBOX_LEASE": "2s"]
        @Sendable func outboxctl(_ arguments: String...) async throws -> String {
            let (end, output, errors) = try await ChildProcess.run(arguments, in: folder, environment: environment)
            #expect(end == .exit(0), "\(arguments) \(errors)")
            return output
        }
        let first = try ChildProcess(ChildProcess.outboxctl, ["run"], in: folder, environment: environment)
        #expect(await first.waitUntilReady(), "\(first.errors)")
        _ = try await outboxctl("endpoint", "create", "e", "--url", ledger.url)
        _ = try await outboxctl("event", "publish", "--type", "a", "--after", "{}")
        #expect(await eventually { ledger.all.count == 1 })
        let isRecorded = try await eventually {
            try await outboxctl("delivery", "list", "-o", "jsonl").contains("delivered")
        }
        #expect(isRecorded)
        let pid = try #require(serverPID(folder))

        // The worker and the server are both killed; what was committed is still there.
        first.signal(SIGKILL)
        _ = await first.wait()
        kill(pid, SIGKILL)
        #expect(await eventually { kill(pid, 0) != 0 })
        #expect(try await outboxctl("event", "list", "-o", "jsonl").split(separator: "\n").count == 1)
        // That command was the only user, and stopped the server behind it.
        #expect(serverPID(folder) == nil)

        _ = try await outboxctl("trigger", "order.created")
        let second = try ChildProcess(ChildProcess.outboxctl, ["run"], in: folder, environment: environment)
        #expect(await eventually { ledger.all.count == 2 })
        #expect(await second.waitUntilReady())
        #expect(serverPID(folder) != nil)
        second.signal(SIGTERM)
        #expect(await second.wait() == .exit(0))
        #expect(serverPID(folder) == nil)
        #expect(Set(ledger.counts.values) == [1])
        try FileManager.default.removeItem(atPath: folder)
        ledger.receiver.stop()
    }

    @Test func `a daemon starts its server again when it was killed, and the folder can be moved`() async throws {
        let folder = try folder()
        let daemon = try ChildProcess(ChildProcess.outboxctl, ["run"], in: folder)
        #expect(await daemon.waitUntilReady(), "\(daemon.errors)")
        let pid = try #require(serverPID(folder))
        kill(pid, SIGKILL)
        #expect(await eventually { kill(pid, 0) != 0 })
        #expect(await eventually { serverPID(folder).map { $0 != pid && kill($0, 0) == 0 } == true })
        let published = try await ChildProcess.run(["event", "publish", "--type", "a"], in: folder)
        #expect(published.end == .exit(0), "\(published.errors)")
        daemon.signal(SIGTERM)
        #expect(await daemon.wait() == .exit(0))
        #expect(serverPID(folder) == nil)

        let moved = folder + "-moved, with 'quotes'"
        try FileManager.default.moveItem(atPath: folder, toPath: moved)
        let listed = try await ChildProcess.run(["event", "list", "-o", "jsonl"], in: moved)
        #expect(listed.end == .exit(0), "\(listed.errors)")
        #expect(listed.output.split(separator: "\n").count == 1)
        try FileManager.default.removeItem(atPath: moved)
    }

    @Test func `a folder that was put aside keeps its data, and the new one begins anew`() async throws {
        let folder = try folder()
        @Sendable func outboxctl(_ arguments: String...) async throws -> String {
            let (end, output, errors) = try await ChildProcess.run(arguments, in: folder)
            #expect(end == .exit(0), "\(arguments) \(errors)")
            return output
        }
        _ = try await outboxctl("event", "publish", "--type", "a", "--after", "{}")
        try FileManager.default.moveItem(atPath: folder + "/.outbox", toPath: folder + "/aside")
        #expect(try await outboxctl("event", "list", "-o", "jsonl") == "")
        try FileManager.default.removeItem(atPath: folder + "/.outbox")
        try FileManager.default.moveItem(atPath: folder + "/aside", toPath: folder + "/.outbox")
        #expect(try await outboxctl("event", "list", "-o", "jsonl").split(separator: "\n").count == 1)
    }

    @Test func `missing server programs get a sentence that names the package`() async throws {
        let folder = try folder()
        let (end, _, errors) = try await ChildProcess.run(
            ["status"], in: folder, environment: ["OUTBOX_POSTGRES_BIN": "/no/such/folder"])
        #expect(end == .exit(69))
        #expect(errors.contains("apt-get install postgresql"))
        #expect(errors.contains("DATABASE_URL"))
        try FileManager.default.removeItem(atPath: folder)
    }

    @Test func `a folder that cannot be written to is named`() async throws {
        // Even root cannot make a folder below a file.
        let folder = try folder()
        try "".write(toFile: folder + "/.outbox", atomically: true, encoding: .utf8)
        let (end, _, errors) = try await ChildProcess.run(["status"], in: folder)
        #expect(end == .exit(77))
        #expect(errors.contains(folder))
        try FileManager.default.removeItem(atPath: folder)
    }

    @Test func `only its owner may enter the socket's folder`() async throws {
        let folder = try folder() + "/cluster"
        let cluster = try await EmbeddedCluster(folder: folder, settings: ["fsync = off"])
        let socket = try #require(cluster.connectionString.split(separator: "'").dropFirst().first.map(String.init))
        for path in [socket, folder] {
            let mode = try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int
            #expect(mode == 0o700, "\(path)")
        }
        try cluster.leave()
        try FileManager.default.removeItem(atPath: folder)
    }
}
