import ArgumentParser
import EmbeddedPostgres
import Foundation
import Outbox
import Postgres
import Templates
import Transport

/// A setting that cannot be used: its name, what is wrong, what would be right. Never its value.
struct SettingRefusal: Error, CustomStringConvertible {
    let description: String
}

/// Flags that every command has.
struct GlobalOptions: ParsableArguments {
    @Option(
        name: .long,
        help: ArgumentHelp("Connection string or URI of the database; see also DATABASE_URL and PG*.", valueName: "url")
    )
    var databaseUrl: String?

    @Flag(name: .long, help: "Accept a --database-url with a password, which other users of this machine can see.")
    var allowInsecureDsn = false

    @Option(name: .long, help: ArgumentHelp("Configuration file; ./outbox.json when it exists.", valueName: "file"))
    var config: String?

    @Option(name: .shortAndLong, help: "table, json or jsonl.")
    var output: Output = .table

    @Flag(name: .long, help: "The same as -o json.")
    var json = false

    var format: Output { json ? .json : output }
}

/// Every setting with its value and where that came from: flag over environment over file over default.
struct Settings {
    enum Origin: String { case flag, environment, file, `default` }

    struct Value {
        let key: String
        let value: String?
        let origin: Origin
        let isSecret: Bool
    }

    /// The keys of the configuration file; each is `OUTBOX_` and the upper-case key in the environment.
    static let keys: [(key: String, fallback: String?, isSecret: Bool)] = [
        ("database_url", nil, true), ("databases", nil, true), ("instance", nil, false),
        ("secret_key_file", ".outbox/secret.key", false),
        ("allow_networks", nil, false), ("egress_proxy", nil, true), ("log_level", "info", false),
        ("log_format", "text", false),
        ("lease", "60s", false),
        ("grace", "10s", false), ("poll_interval", "1s", false), ("listen_notifications", "true", false),
        ("max_in_flight", "4096", false), ("postgres_bin", nil, false),
    ]

    let values: [Value]
    let environment: [String: String]

    init(_ options: GlobalOptions) throws {
        // Names of other letters that Swift finds equal to ours are not ours.
        let environment = ProcessInfo.processInfo.environment.filter { name, _ in name.utf8.allSatisfy { $0 < 0x80 } }
        self.environment = environment
        let file = try Self.readFile(options.config)
        var values: [Value] = []
        for (key, fallback, isSecret) in Self.keys {
            let name = "OUTBOX_" + key.uppercased()
            if key == "database_url", let flag = options.databaseUrl {
                values.append(Value(key: key, value: flag, origin: .flag, isSecret: isSecret))
            } else if let value = try Self.fromEnvironment(name, environment) {
                values.append(Value(key: key, value: value, origin: .environment, isSecret: isSecret))
            } else if key == "database_url", let value = environment["DATABASE_URL"], !value.isEmpty {
                values.append(Value(key: key, value: value, origin: .environment, isSecret: isSecret))
            } else if key == "database_url", Self.libpqVariables.contains(where: { environment[$0] != nil }) {
                // libpq reads them itself.
                values.append(Value(key: key, value: "", origin: .environment, isSecret: isSecret))
            } else if let value = file[key] {
                values.append(Value(key: key, value: value, origin: .file, isSecret: isSecret))
            } else {
                values.append(Value(key: key, value: fallback, origin: .default, isSecret: isSecret))
            }
        }
        self.values = values
        if let flag = options.databaseUrl, !options.allowInsecureDsn,
            try ConnectionTarget.hasPassword(flag)
        {
            throw SettingRefusal(
                description: "--database-url contains a password, which every user of this machine can see; "
                    + "use DATABASE_URL, PGPASSFILE or PGSERVICE, or add --allow-insecure-dsn")
        }
    }

    subscript(_ key: String) -> String? { values.first { $0.key == key }?.value }

    private static let libpqVariables = ["PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE"]

    /// `NAME`, or the contents of the file that `NAME_FILE` names, as container platforms hand out secrets.
    private static func fromEnvironment(_ name: String, _ environment: [String: String]) throws -> String? {
        if let value = environment[name], !value.isEmpty { return value }
        guard !name.hasSuffix("_FILE"), let path = environment[name + "_FILE"] else { return nil }
        guard let data = try TrustedFile.read(path, "the file that \(name)_FILE names,", .readable) else {
            throw SettingRefusal(description: "\(name)_FILE names \(path), which does not exist")
        }
        return String(decoding: data, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
    }

    private static func readFile(_ named: String?) throws -> [String: String] {
        let path = named ?? "outbox.json"
        guard let data = try TrustedFile.read(path, "the configuration file", .readable) else {
            if named == nil { return [:] }
            throw SettingRefusal(description: "the configuration file \(path) does not exist and cannot be read")
        }
        guard let object = try? JSONDecoder().decode([String: String].self, from: data) else {
            throw SettingRefusal(
                description: "the configuration file \(path) is not a JSON object whose values are strings")
        }
        let known = keys.map(\.key)
        for key in object.keys where !known.contains(key) {
            let close = known.min { editDistance($0, key) < editDistance($1, key) } ?? ""
            throw SettingRefusal(
                description:
                    "the configuration file \(path) has an unknown key \"\(printable(key))\"; did you mean \"\(close)\"?"
            )
        }
        return object
    }

    // MARK: Settings as values

    func duration(_ key: String) throws -> Duration {
        guard let text = self[key], let value = DurationArgument(argument: text) else {
            throw SettingRefusal(description: "\(key) is not a duration; expected 500ms, 60s, 5m or 1h")
        }
        return value.duration
    }

    func policy() throws -> AddressPolicy {
        let texts = (self["allow_networks"] ?? "").split { $0 == "," || $0.isWhitespace }.map(String.init)
        return AddressPolicy(
            allowing: try texts.map { text in
                guard let network = Network(text) else {
                    throw SettingRefusal(
                        description:
                            "OUTBOX_ALLOW_NETWORKS: \"\(printable(text))\" is not a network; expected 10.0.0.0/8 or fd00::/8"
                    )
                }
                return network
            })
    }

    /// The proxy that requests leave through; nil for none.
    func proxy() throws -> EgressProxy? {
        guard let url = self["egress_proxy"], !url.isEmpty else { return nil }
        do { return try EgressProxy(url) } catch { throw SettingRefusal(description: "OUTBOX_EGRESS_PROXY: \(error)") }
    }

    /// The keys that endpoint secrets are sealed with. The default file is made when it is first needed; one that was
    /// named must exist.
    func keyring(creating: Bool) throws -> Keyring {
        guard let setting = values.first(where: { $0.key == "secret_key_file" }), let path = setting.value else {
            return .empty
        }
        // The folder is not named by anybody either: in one of somebody else's, the file is their choice.
        let folder = (path as NSString).deletingLastPathComponent
        var status = stat()
        if setting.origin == .default, lstat(folder, &status) == 0,
            status.st_uid != geteuid() || status.st_mode & S_IFMT != S_IFDIR
        {
            throw SettingRefusal(
                description:
                    "the folder \(folder) is a link or belongs to another user; remove it, or run in a folder of your own"
            )
        }
        if setting.origin == .default, !FileManager.default.fileExists(atPath: path) {
            guard creating else { return .empty }
            try makeKeyFile(path)
        }
        guard let data = try TrustedFile.read(path, "the key file", .secret) else {
            throw SettingRefusal(
                description:
                    "the key file \(path) cannot be read; make one with: (umask 077; openssl rand -base64 32 > \(path))"
            )
        }
        do { return try Keyring(text: String(decoding: data, as: UTF8.self)) } catch {
            throw SettingRefusal(description: "the key file \(path) cannot be used: \(error)")
        }
    }

    private func makeKeyFile(_ path: String) throws {
        let folder = (path as NSString).deletingLastPathComponent
        do {
            if !folder.isEmpty {
                try FileManager.default.createDirectory(
                    atPath: folder, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
            }
        } catch {
            throw EmbeddedCluster.Refusal(description: "cannot write to \(folder): \(error.localizedDescription)")
        }
        let descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o600)
        // Somebody else made it in this very moment: theirs is as good.
        if descriptor < 0, errno == EEXIST { return }
        guard descriptor >= 0 else {
            throw EmbeddedCluster.Refusal(description: "cannot write \(path): \(String(cString: strerror(errno)))")
        }
        let file = FileHandle(fileDescriptor: descriptor, closeOnDealloc: true)
        try file.write(contentsOf: Data(Keyring.newKeyLine().utf8))
        StandardError.say(
            "outboxctl: made \(path), the key that endpoint secrets are sealed with; back it up and keep it private")
    }
}
