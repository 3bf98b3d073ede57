import ArgumentParser
import Configuration
import EmbeddedPostgres
import Foundation
import Outbox
import Postgres
import Synchronization
import Templates
import Transport

/// A setting that cannot be used: its name, what is wrong, what would be right. Never its value.
struct SettingError: Error, CustomStringConvertible {
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

    @Option(
        name: .long,
        help: ArgumentHelp("Configuration file; ./outbox.json or ./outbox.yaml when it exists.", valueName: "file"))
    var config: String?

    @Option(name: .shortAndLong, help: "table, json or jsonl.")
    var output: Output = .table

    @Flag(name: .long, help: "The same as -o json.")
    var json = false

    var format: Output { json ? .json : output }
}

/// The settings of this process: of flag, environment, file and default the first that says
/// something.
struct Settings {
    enum Origin: String { case flag, environment, file, `default` }

    /// Every setting there is, in the order of the documentation.
    static let all: [any AnySetting] = [
        Setting.databaseURL, Setting.databases, Setting.instance, Setting.secretKeyFile, Setting.allowNetworks,
        Setting.egressProxy, Setting.logLevel, Setting.logFormat, Setting.lease, Setting.grace, Setting.pollInterval,
        Setting.listenNotifications, Setting.maxInFlight, Setting.transportThreads, Setting.postgresBin,
    ]

    let environment: [String: String]
    private let reader: ConfigReader
    private let origins = OriginReporter()

    /// - Parameter flags: what flags of the command say, by the keys.
    init(_ options: GlobalOptions, flags: [String: String] = [:]) throws {
        // Names of other letters that Swift finds equal to ours are not ours.
        var environment = ProcessInfo.processInfo.environment.filter { name, _ in name.utf8.allSatisfy { $0 < 0x80 } }
        self.environment = environment
        try Self.refuseUnknown(environment.keys)
        for setting in Self.all {
            environment[setting.variable] = try Self.fromEnvironment(setting.variable, environment)
        }
        let name = Setting.databaseURL.variable
        if environment[name] == nil {
            if let url = environment["DATABASE_URL"], !url.isEmpty {
                environment[name] = url
            } else if Self.libpqVariables.contains(where: { environment[$0] != nil }) {
                // libpq reads them itself.
                environment[name] = ""
            }
        }
        var flags = flags
        flags[Setting.databaseURL.key] = options.databaseUrl
        let file = try SettingsFile.read(options.config).values
        let fallbacks = Dictionary(uniqueKeysWithValues: Self.all.map { ($0.key, $0.fallback) })
        reader = ConfigReader(
            providers: [
                Self.provider(.flag, flags),
                EnvironmentVariablesProvider(environmentVariables: environment),
                Self.provider(.file, file), Self.provider(.default, fallbacks),
            ], accessReporter: origins
        ).scoped(to: "outbox")
        if let flag = options.databaseUrl, !options.allowInsecureDsn, try ConnectionTarget.hasPassword(flag) {
            throw SettingError(
                description: "--database-url contains a password, which every user of this machine can see; "
                    + "use DATABASE_URL, PGPASSFILE or PGSERVICE, or add --allow-insecure-dsn")
        }
    }

    /// The value of a setting. Throws a `SettingError` that names it, as whoever set it knows it,
    /// and says what would be right.
    func value<Value>(of setting: Setting<Value>) throws -> Value {
        let (text, origin) = try text(of: setting)
        do { return try setting.parse(text) } catch { throw Self.invalid(setting, origin, error) }
    }

    /// The database that was chosen, empty for libpq's own variables; nil for the embedded cluster.
    func databaseURL() throws -> String? {
        let (text, origin) = try text(of: Setting.databaseURL)
        return origin == .default ? nil : text
    }

    /// The text of a setting, and who gave it.
    func text(of setting: any AnySetting) throws -> (text: String, origin: Origin) {
        let text = try reader.requiredString(forKey: ConfigKey([setting.key]), isSecret: setting.isSecret)
        return (text, origins.last ?? .default)
    }

    /// Throws the first error of all settings.
    func check() throws {
        for setting in Self.all {
            let (text, origin) = try text(of: setting)
            do { try setting.check(text) } catch { throw Self.invalid(setting, origin, error) }
        }
    }

    /// The setting whose name is most like a text.
    static func closest(to text: String, _ name: (any AnySetting) -> String) -> String {
        all.map(name).min { editDistance($0, text) < editDistance($1, text) } ?? ""
    }

    private static func invalid(_ setting: any AnySetting, _ origin: Origin, _ error: InvalidSetting) -> SettingError {
        let name =
            switch origin {
            case .flag: setting.flag.map { String($0[($0.firstIndex(of: "-") ?? $0.startIndex)...]) } ?? setting.key
            case .file: "\"\(setting.key)\" in the configuration file"
            case .environment, .default: setting.variable
            }
        return SettingError(description: "\(name): \(error.reason)")
    }

    private static func provider(_ origin: Origin, _ values: [String: String]) -> InMemoryProvider {
        InMemoryProvider(
            name: origin.rawValue,
            values: Dictionary(
                uniqueKeysWithValues: values.map {
                    (AbsoluteConfigKey(["outbox", $0.key]), ConfigValue(.string($0.value), isSecret: true))
                }))
    }

    private static let libpqVariables = ["PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE"]

    /// Throws for a variable that begins like ours and is none: a slip of the pen would otherwise
    /// be a default.
    private static func refuseUnknown(_ names: some Collection<String>) throws {
        for name in names.sorted() where name.hasPrefix("OUTBOX_") {
            let setting = name.hasSuffix("_FILE") ? String(name.dropLast(5)) : name
            if all.contains(where: { [name, setting].contains($0.variable) }) || isForOthers(name) { continue }
            throw SettingError(
                description:
                    "the environment variable \(printable(name)) is no setting; did you mean \(closest(to: setting, \.variable))?"
            )
        }
    }

    /// True for what is not ours to judge: of the test suite, and what Kubernetes tells every
    /// container of a service whose name begins with `outbox`
    /// (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
    private static func isForOthers(_ name: String) -> Bool {
        name == "OUTBOX_FAIL_POINT" || name.hasPrefix("OUTBOX_TEST_")
            || name.wholeMatch(
                of:
                    /OUTBOX_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)/
            ) != nil
    }

    /// `NAME`, or the contents of the file that `NAME_FILE` names, as container platforms hand out
    /// secrets.
    private static func fromEnvironment(_ name: String, _ environment: [String: String]) throws -> String? {
        if let value = environment[name], !value.isEmpty { return value }
        guard !name.hasSuffix("_FILE"), let path = environment[name + "_FILE"] else { return nil }
        guard let data = try TrustedFile.read(path, "the file that \(name)_FILE names,", .readable) else {
            throw SettingError(description: "\(name)_FILE names \(path), which does not exist")
        }
        return String(decoding: data, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
    }

    // MARK: The key file

    /// The keys that endpoint secrets are sealed with. The default file is made when it is first
    /// needed; one that was named must exist.
    func keyring(creating: Bool) throws -> Keyring {
        let (path, origin) = try text(of: Setting.secretKeyFile)
        // The folder is not named by anybody either: in one of somebody else's, the file is their
        // choice.
        let folder = (path as NSString).deletingLastPathComponent
        var status = stat()
        if origin == .default, lstat(folder, &status) == 0,
            status.st_uid != geteuid() || status.st_mode & S_IFMT != S_IFDIR
        {
            throw SettingError(
                description:
                    "the folder \(folder) is a link or belongs to another user; remove it, or run in a folder of your own"
            )
        }
        if origin == .default, !FileManager.default.fileExists(atPath: path) {
            guard creating else { return .empty }
            try makeKeyFile(path)
        }
        guard let data = try TrustedFile.read(path, "the key file", .secret) else {
            throw SettingError(
                description:
                    "the key file \(path) cannot be read; make one with: (umask 077; openssl rand -base64 32 > \(path))"
            )
        }
        do { return try Keyring(text: String(decoding: data, as: UTF8.self)) } catch {
            throw SettingError(description: "the key file \(path) cannot be used: \(error)")
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
            throw EmbeddedCluster.StartError(description: "cannot write to \(folder): \(error.localizedDescription)")
        }
        let descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o600)
        // Somebody else made it in this very moment: theirs is as good.
        if descriptor < 0, errno == EEXIST { return }
        guard descriptor >= 0 else {
            throw EmbeddedCluster.StartError(description: "cannot write \(path): \(String(cString: strerror(errno)))")
        }
        let file = FileHandle(fileDescriptor: descriptor, closeOnDealloc: true)
        try file.write(contentsOf: Data(Keyring.newKeyLine().utf8))
        StandardError.say(
            "outboxctl: made \(path), the key that endpoint secrets are sealed with; back it up and keep it private")
    }
}

/// Remembers which provider gave the last value.
private final class OriginReporter: AccessReporter {
    private let origin = Mutex<Settings.Origin?>(nil)

    /// Of the value that was read last.
    var last: Settings.Origin? { origin.withLock(\.self) }

    func report(_ event: AccessEvent) {
        // The providers are asked in this order, up to the first that knows it.
        let order: [Settings.Origin] = [.flag, .environment, .file, .default]
        let giver = event.providerResults.firstIndex { (try? $0.result.get())?.value != nil }
        origin.withLock { $0 = giver.map { order[$0] } }
    }
}
