import Foundation
import Logging
import Postgres
import Transport

/// Everything that is known of one setting: what it is called, what it may be, and what it is when
/// nobody says.
///
/// The key is a member of the configuration file; `OUTBOX_` and the upper-case key is the variable.
struct Setting<Value: Sendable>: AnySetting {
    let key: String
    let fallback: String
    let shownFallback: String?
    let isSecret: Bool
    let flag: String?
    let help: String
    let parse: @Sendable (String) throws(InvalidSetting) -> Value

    /// - Parameters:
    ///   - fallback: the value when nobody gives one, as text.
    ///   - shownFallback: what the documentation says instead, where the text alone would not tell.
    ///   - isSecret: its value is never shown.
    ///   - flag: the flag that gives it, of a command that has one.
    init(
        _ key: String, fallback: String = "", shownFallback: String? = nil, isSecret: Bool = false,
        flag: String? = nil, help: String, parse: @escaping @Sendable (String) throws(InvalidSetting) -> Value
    ) {
        self.key = key
        self.fallback = fallback
        self.shownFallback = shownFallback
        self.isSecret = isSecret
        self.flag = flag
        self.help = help
        self.parse = parse
    }

    func check(_ text: String) throws(InvalidSetting) { _ = try parse(text) }
}

/// Why a text is not a value of a setting: what would be one. Never the text of a secret.
struct InvalidSetting: Error {
    let reason: String
}

/// A setting of whatever type.
protocol AnySetting: Sendable {
    var key: String { get }
    var fallback: String { get }
    var shownFallback: String? { get }
    var isSecret: Bool { get }
    var flag: String? { get }
    var help: String { get }
    /// Throws when the text is not a value of it.
    func check(_ text: String) throws(InvalidSetting)
}

extension AnySetting {
    /// Its environment variable.
    var variable: String { "OUTBOX_" + key.uppercased() }
}

extension Setting where Value == String? {
    private init(_ key: String, shownFallback: String? = nil, isSecret: Bool = false, flag: String? = nil, help: String)
    {
        self.init(key, shownFallback: shownFallback, isSecret: isSecret, flag: flag, help: help) {
            $0.isEmpty ? nil : $0
        }
    }

    static var instance: Self {
        Self(
            "instance",
            help: "the instance that the database must be (`outboxctl status` shows it); "
                + "recognises a clone of a disk: [recovery.md](recovery.md)")
    }
    static var postgresBin: Self {
        Self(
            "postgres_bin", shownFallback: "found",
            help: "the folder of PostgreSQL's programs for the embedded cluster")
    }
}

extension Setting where Value == String {
    /// Empty for libpq's own variables; the embedded cluster when nobody gives it.
    static var databaseURL: Self {
        Self(
            "database_url", shownFallback: "the embedded cluster", isSecret: true, flag: "--database-url",
            help: "also `DATABASE_URL`, libpq's `PG*`, or `--database-url` (refused with a password in it)"
        ) { $0 }
    }
    static var secretKeyFile: Self {
        Self(
            "secret_key_file", fallback: ".outbox/secret.key",
            shownFallback: "`.outbox/secret.key`, made when first needed beside the embedded cluster",
            help: "keys that seal the endpoints' secrets: 32 bytes in base64 a line; the first seals, all open, "
                + "so a key is rotated by putting a new one in front"
        ) { $0 }
    }
}

extension Setting where Value == [String] {
    static var databases: Self {
        Self(
            "databases", isSecret: true,
            help: "several databases for one `run`, one a line or separated by commas"
        ) { text throws(InvalidSetting) in
            let urls = text.unicodeScalars.split { "\r\n,".unicodeScalars.contains($0) }
                .map { String($0).trimmingCharacters(in: .whitespaces) }.filter { !$0.isEmpty }
            if urls.isEmpty, !text.isEmpty { throw InvalidSetting(reason: "names no database") }
            return urls
        }
    }
}

extension Setting where Value == AddressPolicy {
    static var allowNetworks: Self {
        Self(
            "allow_networks", shownFallback: "none",
            help: "CIDRs of private networks that requests may go to"
        ) { text throws(InvalidSetting) in
            var networks: [Network] = []
            for part in text.split(whereSeparator: { $0 == "," || $0.isWhitespace }).map(String.init) {
                guard let network = Network(part) else {
                    throw InvalidSetting(
                        reason: "\"\(printable(part))\" is not a network; expected 10.0.0.0/8 or fd00::/8")
                }
                networks.append(network)
            }
            return AddressPolicy(allowing: networks)
        }
    }
}

extension Setting where Value == EgressProxy? {
    static var egressProxy: Self {
        Self(
            "egress_proxy", shownFallback: "none", isSecret: true,
            help: "`http://host:port` that all requests leave through"
        ) { text throws(InvalidSetting) in
            if text.isEmpty { return nil }
            do { return try EgressProxy(text) } catch { throw InvalidSetting(reason: "\(error)") }
        }
    }
}

extension Setting where Value == Logger.Level {
    static var logLevel: Self {
        Self(
            "log_level", fallback: "info", help: "`trace`, `debug`, `info`, `notice`, `warning`, `error` or `critical`"
        ) {
            text throws(InvalidSetting) in
            guard let level = Logger.Level(rawValue: text) else {
                throw InvalidSetting(reason: "must be trace, debug, info, notice, warning, error or critical")
            }
            return level
        }
    }
}

/// How log lines are written.
enum LogFormat: String { case text, json }

extension Setting where Value == LogFormat {
    static var logFormat: Self {
        Self("log_format", fallback: "text", help: "`text` or `json`") { text throws(InvalidSetting) in
            guard let format = LogFormat(rawValue: text) else { throw InvalidSetting(reason: "must be text or json") }
            return format
        }
    }
}

extension Setting where Value == Duration {
    private init(
        _ key: String, fallback: String, atLeast least: Duration = .zero, flag: String? = nil, help: String
    ) {
        self.init(key, fallback: fallback, flag: flag, help: help) { text throws(InvalidSetting) in
            guard let value = DurationArgument(argument: text)?.duration else {
                throw InvalidSetting(reason: "is not a duration; expected 500ms, 60s, 5m or 1h")
            }
            guard value >= least else {
                throw InvalidSetting(
                    reason:
                        "must be at least \(least < .seconds(1) ? "\(least.milliseconds)ms" : "\(least.milliseconds / 1000)s")"
                )
            }
            return value
        }
    }

    static var lease: Self {
        Self(
            "lease", fallback: "60s", atLeast: .seconds(1), flag: "run --lease",
            help: "how long claimed work is held without renewal, 1s or more")
    }
    static var grace: Self {
        Self("grace", fallback: "10s", flag: "run --grace", help: "how long a stop waits for requests in flight")
    }
    static var pollInterval: Self {
        Self(
            "poll_interval", fallback: "1s", atLeast: .milliseconds(10),
            help: "the longest pause between two scans, 10ms or more")
    }
}

extension Setting where Value == Bool {
    static var listenNotifications: Self {
        Self(
            "listen_notifications", fallback: "true",
            help: "`false` to poll only. Behind a pooler, and where `max_prepared_transactions` is not 0, "
                + "workers poll by themselves"
        ) { text throws(InvalidSetting) in
            switch text.lowercased() {
            case "true", "yes", "on", "1": return true
            case "false", "no", "off", "0": return false
            default: throw InvalidSetting(reason: "must be true or false")
            }
        }
    }
}

extension Setting where Value == Int {
    static var maxInFlight: Self {
        Self(
            "max_in_flight", fallback: "4096",
            help: "requests in flight per process; fewer, with a warning, where the limit of open files is lower"
        ) { text throws(InvalidSetting) in
            guard let number = Int(text), (1...100_000).contains(number) else {
                throw InvalidSetting(reason: "must be a number from 1 to 100000")
            }
            return number
        }
    }

    static var transportThreads: Self {
        Self(
            "transport_threads", fallback: "\(max(1, ProcessInfo.processInfo.activeProcessorCount / 2))",
            shownFallback: "one for two processors",
            help: "threads that send requests; endpoints are spread over them"
        ) { text throws(InvalidSetting) in
            guard let number = Int(text), (1...64).contains(number) else {
                throw InvalidSetting(reason: "must be a number from 1 to 64")
            }
            return number
        }
    }
}
