package import Foundation
import Synchronization

/// A program run by a test: its output in files, its end awaited without blocking anybody.
package final class ChildProcess: Sendable {
    package enum End: Sendable, Equatable {
        case exit(Int32)
        case signal(Int32)
    }

    package let pid: pid_t
    private let folder: String
    private let end: Task<End, Never>

    /// The `outboxctl` that was built with these tests.
    package static let outboxctl: String = {
        let bundle = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent()
        return bundle.appendingPathComponent("outboxctl").path
    }()

    /// Starts the program in a folder, with these variables in place of all `OUTBOX_*`, `PG*` and
    /// `DATABASE_URL`.
    package init(
        _ program: String = ChildProcess.outboxctl, _ arguments: [String], in directory: String = "/",
        environment: [String: String] = [:], input: String = ""
    ) throws {
        folder = TestFolder.path("child")
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        try input.write(toFile: folder + "/in", atomically: false, encoding: .utf8)
        var variables = ProcessInfo.processInfo.environment.filter {
            !$0.key.hasPrefix("OUTBOX_") && !$0.key.hasPrefix("PG") && $0.key != "DATABASE_URL"
        }
        variables.merge(environment) { $1 }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, folder + "/in", O_RDONLY, 0)
        posix_spawn_file_actions_addopen(&actions, 1, folder + "/out", O_WRONLY | O_CREAT | O_APPEND, 0o600)
        posix_spawn_file_actions_addopen(&actions, 2, folder + "/err", O_WRONLY | O_CREAT | O_APPEND, 0o600)
        let words = ["/bin/sh", "-c", "cd \"$0\" && exec \"$@\"", directory, program] + arguments
        let argv = words.map { strdup($0) } + [nil]
        let envp = variables.map { strdup("\($0.key)=\($0.value)") } + [nil]
        defer { for pointer in argv + envp { free(pointer) } }
        var pid = pid_t()
        let status = posix_spawn(&pid, "/bin/sh", &actions, nil, argv, envp)
        guard status == 0 else { throw POSIXError(POSIXErrorCode(rawValue: status) ?? .EIO) }
        self.pid = pid
        end = Task.detached { [pid] in
            await withCheckedContinuation { continuation in
                Thread.detachNewThread {
                    var status: Int32 = 0
                    while waitpid(pid, &status, 0) < 0, errno == EINTR {}
                    continuation.resume(
                        returning: status & 0x7F == 0 ? .exit(status >> 8 & 0xFF) : .signal(status & 0x7F))
                }
            }
        }
    }

    /// Runs the program to its end.
    package static func run(
        _ arguments: [String], in directory: String = "/", environment: [String: String] = [:], input: String = ""
    ) async throws -> (end: End, output: String, errors: String) {
        let child = try ChildProcess(outboxctl, arguments, in: directory, environment: environment, input: input)
        let end = await child.wait()
        defer { child.remove() }
        return (end, child.output, child.errors)
    }

    package var output: String { (try? String(contentsOfFile: folder + "/out", encoding: .utf8)) ?? "" }
    package var errors: String { (try? String(contentsOfFile: folder + "/err", encoding: .utf8)) ?? "" }

    package func signal(_ number: Int32) { kill(pid, number) }

    package func wait() async -> End { await end.value }

    package func remove() { try? FileManager.default.removeItem(atPath: folder) }

    /// Waits until the daemon says that it is ready.
    package func waitUntilReady() async -> Bool { await eventually { self.output.contains("outbox: ready") } }

    /// True while it is stopped by a signal.
    package var isStopped: Bool {
        let status = (try? String(contentsOfFile: "/proc/\(pid)/status", encoding: .utf8)) ?? ""
        return status.contains("State:\tT")
    }
}

/// A worker process of its own, with short times.
package struct Daemon {
    package static func start(
        _ connectionString: String, keyFile: String, failPoint: String? = nil, lease: String = "2s",
        grace: String = "3s"
    ) async throws -> ChildProcess {
        var environment = [
            "DATABASE_URL": connectionString, "OUTBOX_SECRET_KEY_FILE": keyFile, "OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8",
            "OUTBOX_LEASE": lease, "OUTBOX_GRACE": grace, "OUTBOX_POLL_INTERVAL": "100ms",
            "OUTBOX_LOG_LEVEL": "warning",
        ]
        if let failPoint { environment["OUTBOX_FAIL_POINT"] = failPoint }
        let child = try ChildProcess(ChildProcess.outboxctl, ["run"], environment: environment)
        return child
    }

    /// A key file with the tests' key.
    package static func keyFile(_ line: String = TestWorker.keyLine) throws -> String {
        let path = TestFolder.path("key")
        guard
            FileManager.default.createFile(
                atPath: path, contents: Data(line.utf8), attributes: [.posixPermissions: 0o600])
        else {
            throw POSIXError(.EIO)
        }
        return path
    }
}
