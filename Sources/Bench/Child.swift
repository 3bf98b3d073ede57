import Foundation
import Synchronization

/// A worker process: this program again, as `outboxctl run` on the scratch database.
final class Child: Sendable {
    private let process: Process
    private let errors: Tail
    private let isKilled = Atomic<Bool>(false)

    private let output: AsyncStream<String>

    /// Starts the worker.
    init(_ arguments: [String], environment: [String: String]) throws {
        process = Process()
        process.executableURL = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
        process.arguments = arguments
        process.environment = ProcessInfo.processInfo.environment.merging(environment) { $1 }
        process.standardInput = FileHandle.nullDevice
        let (output, errors) = (Pipe(), Pipe())
        process.standardOutput = output
        process.standardError = errors
        try process.run()
        self.output = lines(of: output.fileHandleForReading)
        self.errors = Tail(errors.fileHandleForReading)
    }

    /// Waits until it reports that it is ready.
    func waitUntilReady() async throws {
        for await line in output where line.hasPrefix("outbox: ready") { return }
        // Cancelled, or its output has ended: it is not needed, or already gone.
        try Task.checkCancellation()
        throw Benchmark.Failure(
            description: "a worker did not start: \(await errors.atEnd.suffix(3).joined(separator: " · "))")
    }

    /// False once it has ended, or was killed.
    var isRunning: Bool { !isKilled.load(ordering: .relaxed) && process.isRunning }

    var pid: Int32 { process.processIdentifier }

    /// The most memory it has held so far, in bytes.
    var peakMemory: Int {
        let status = (try? String(contentsOfFile: "/proc/\(pid)/status", encoding: .utf8)) ?? ""
        let line = status.split(separator: "\n").first { $0.hasPrefix("VmHWM:") }
        return (line?.split(whereSeparator: \.isWhitespace).dropFirst().first.flatMap { Int($0) } ?? 0) * 1024
    }

    /// Stops it gracefully and returns its reported number of statements.
    func stop() async throws -> Int {
        process.terminate()
        let lines = await errors.atEnd
        let word = "\"sql_statements\":\""
        guard let last = lines.last(where: { $0.contains(word) }), let place = last.range(of: word),
            let count = Int(last[place.upperBound...].prefix { $0.isNumber })
        else {
            throw Benchmark.Failure(
                description: "a worker did not stop as it should: \(lines.suffix(3).joined(separator: " · "))")
        }
        return count
    }

    /// Ends it at once.
    func kill() {
        isKilled.store(true, ordering: .relaxed)
        Foundation.kill(pid, SIGKILL)
    }
}

/// The lines that come out of a pipe; a thread reads them, so that the writer never waits.
private func lines(of handle: FileHandle) -> AsyncStream<String> {
    AsyncStream { continuation in
        Thread.detachNewThread {
            var rest = Data()
            while case let data = handle.availableData, !data.isEmpty {
                rest += data
                while let end = rest.firstIndex(of: 10) {
                    continuation.yield(String(decoding: rest[..<end], as: UTF8.self))
                    rest = Data(rest[(end + 1)...])
                }
            }
            continuation.finish()
        }
    }
}

/// Keeps the last lines of a pipe.
private struct Tail: Sendable {
    private let task: Task<[String], Never>

    init(_ handle: FileHandle) {
        let lines = lines(of: handle)
        task = Task {
            var last: [String] = []
            for await line in lines { last = (last + [line]).suffix(20) }
            return last
        }
    }

    /// The last lines, once the writer has closed the pipe.
    var atEnd: [String] { get async { await task.value } }
}
