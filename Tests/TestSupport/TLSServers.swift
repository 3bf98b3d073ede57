import Foundation

/// HTTPS servers that are wrong in different ways (Tests/Servers/tls.py), with their certificates.
package final class TLSServers: Sendable {
    private let process: ChildProcess
    private let folder: String
    private let ports: [String: Int]

    package init() async throws {
        folder = TestFolder.path("tls")
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        let script = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .appendingPathComponent("Servers/tls.py").path
        let python = ProcessInfo.processInfo.environment["OUTBOX_TEST_PYTHON"] ?? "python3"
        let process = try ChildProcess("/usr/bin/env", [python, script, folder])
        self.process = process
        _ = await eventually { process.output.contains("ready ") }
        guard let line = process.output.split(separator: "\n").first(where: { $0.hasPrefix("ready ") }) else {
            throw Failure(description: "Tests/Servers/tls.py did not start: \(process.errors)")
        }
        ports = try JSONDecoder().decode([String: Int].self, from: Data(line.dropFirst(6).utf8))
    }

    package struct Failure: Error, CustomStringConvertible {
        package let description: String
    }

    package func url(_ name: String) -> String { "https://127.0.0.1:\(ports[name] ?? 0)/hook" }

    /// A PEM file: `ca`, `client`, `stranger`, with `key` for the private one.
    package func pem(_ name: String, key: Bool = false) throws -> String {
        try String(contentsOfFile: "\(folder)/\(name).\(key ? "key" : "pem")", encoding: .utf8)
    }

    /// How many requests a server got.
    package func requests(_ name: String) -> Int {
        process.output.split(separator: "\n").count { $0.hasPrefix(name + " ") }
    }

    /// How many connections a server got.
    package func connections(_ name: String) -> Int {
        process.output.split(separator: "\n").count { $0 == "+" + name }
    }

    /// How many answers it gave that nobody asked for.
    package func unaskedResponses(_ name: String) -> Int {
        process.output.split(separator: "\n").count { $0 == "!" + name }
    }

    package func stop() async {
        process.signal(SIGKILL)
        _ = await process.wait()
        process.remove()
        // Certificates of a test that is over.
        try? FileManager.default.removeItem(atPath: folder)
    }
}
