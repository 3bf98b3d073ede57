import Foundation

/// A folder with PostgreSQL's server programs.
package struct ServerBinaries: Sendable {
    package let folder: String
    /// The major version, as in `15`.
    package let version: String

    /// The path of one of the programs.
    func path(_ program: String) -> String { folder + "/" + program }

    /// Finds the programs through `OUTBOX_POSTGRES_BIN`, `pg_config`, `PATH` and the usual folders;
    /// given a version, only programs of that version.
    ///
    /// Throws an `EmbeddedCluster.StartError` that names the package to install.
    package static func find(version wanted: String? = nil, environment: [String: String]) throws -> ServerBinaries {
        let candidates = folders(environment)
        for folder in candidates {
            guard
                ["initdb", "pg_ctl", "postgres"].allSatisfy({
                    FileManager.default.isExecutableFile(atPath: folder + "/" + $0)
                }),
                let version = majorVersion(folder)
            else { continue }
            if wanted == nil || wanted == version { return ServerBinaries(folder: folder, version: version) }
        }
        let package = wanted.map { "postgresql-\($0)" } ?? "postgresql"
        throw EmbeddedCluster.StartError(
            description:
                "the PostgreSQL \(wanted.map { $0 + " " } ?? "")server programs (initdb, pg_ctl, postgres) were not found; "
                + "install the package \(package) (apt-get install \(package)), or set DATABASE_URL to use a server of your own"
        )
    }

    private static func folders(_ environment: [String: String]) -> [String] {
        if let own = environment["OUTBOX_POSTGRES_BIN"] { return [own] }
        let path = (environment["PATH"] ?? "").split(separator: ":").map(String.init)
        var folders: [String] = []
        if let config = path.map({ $0 + "/pg_config" }).first(where: FileManager.default.isExecutableFile),
            let output = try? Program.run(config, ["--bindir"])
        {
            folders.append(output.trimmingCharacters(in: .whitespacesAndNewlines))
        }
        folders += path
        // Debian keeps every major version in a separate folder; the newest first.
        let debian = "/usr/lib/postgresql"
        let versions = (try? FileManager.default.contentsOfDirectory(atPath: debian)) ?? []
        folders += versions.sorted { (Int($0) ?? 0) > (Int($1) ?? 0) }.map { "\(debian)/\($0)/bin" }
        folders += ["/usr/local/pgsql/bin", "/usr/local/bin", "/opt/homebrew/bin", "/usr/pgsql/bin"]
        return folders
    }

    private static func majorVersion(_ folder: String) -> String? {
        // "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"
        guard let output = try? Program.run(folder + "/postgres", ["--version"]) else { return nil }
        let words = output.split(separator: " ")
        return words.count > 2 ? words[2].split(whereSeparator: { !$0.isNumber }).first.map(String.init) : nil
    }
}
