import Foundation
import TestSupport

/// A database of its own and the environment in which the real binary works on it.
struct Setting {
    let database: TestDatabase
    let environment: [String: String]

    init(_ more: [String: String] = ["OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8"]) async throws {
        database = try await TestCluster.database()
        environment = [
            "DATABASE_URL": database.connectionString, "OUTBOX_SECRET_KEY_FILE": try Daemon.keyFile(),
        ].merging(more) { $1 }
    }

    /// Runs `outboxctl` with these arguments to its end.
    func run(_ arguments: String..., input: String = "") async throws -> (
        end: ChildProcess.End, output: String, errors: String
    ) {
        try await ChildProcess.run(arguments, environment: environment, input: input)
    }

    /// Runs it with `-o json` and returns the one object that it prints.
    func object(_ arguments: String...) async throws -> [String: Any] {
        let (end, output, errors) = try await ChildProcess.run(arguments + ["-o", "json"], environment: environment)
        guard end == .exit(0), let object = try JSONSerialization.jsonObject(with: Data(output.utf8)) as? [String: Any]
        else { throw Failure(text: errors) }
        return object
    }

    struct Failure: Error {
        let text: String
    }
}

/// A file with this text.
func temporaryFile(_ text: String) throws -> String {
    let path = TestFolder.path("file")
    try text.write(toFile: path, atomically: true, encoding: .utf8)
    return path
}
