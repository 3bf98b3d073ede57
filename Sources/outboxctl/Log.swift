import Foundation
import Logging

/// Log lines on stderr: text for people, JSON for machines. A line break in a message cannot start a line of its own.
struct LineLogHandler: LogHandler {
    var logLevel: Logger.Level
    var metadata: Logger.Metadata = [:]
    let isJSON: Bool

    subscript(metadataKey key: String) -> Logger.MetadataValue? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        let fields = metadata.merging(event.metadata ?? [:]) { $1 }.sorted { $0.key < $1.key }
        let time = Date().formatted(Date.ISO8601FormatStyle(includingFractionalSeconds: true))
        let line: String
        if isJSON {
            let head = [("time", time), ("level", event.level.rawValue), ("message", event.message.description)]
            let all = head + fields.map { ($0.key, $0.value.description) }
            line = "{" + all.map { "\(jsonString($0.0)):\(jsonString($0.1))" }.joined(separator: ",") + "}"
        } else {
            let tail = fields.map { " \($0.key)=\(printable($0.value.description))" }.joined()
            line = "\(time) \(event.level.rawValue) \(printable(event.message.description))\(tail)"
        }
        // A log that cannot be written must not stop a delivery.
        try? FileHandle.standardError.write(contentsOf: Data((line + "\n").utf8))
    }

    /// The logger that the settings ask for.
    static func logger(_ settings: Settings) throws -> Logger {
        guard let level = Logger.Level(rawValue: settings["log_level"] ?? "info") else {
            throw SettingRefusal(
                description: "OUTBOX_LOG_LEVEL must be trace, debug, info, notice, warning, error or critical")
        }
        guard let format = settings["log_format"], ["text", "json"].contains(format) else {
            throw SettingRefusal(description: "OUTBOX_LOG_FORMAT must be text or json")
        }
        return Logger(label: "outbox") { _ in LineLogHandler(logLevel: level, isJSON: format == "json") }
    }
}
