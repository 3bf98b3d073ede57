import Foundation
import Logging
import Synchronization

/// The last place where something can be said: where it cannot be written, nobody can be told.
enum StandardError {
    /// How many lines were left out, because nobody read.
    private static let lost = Mutex(0)
    /// What a pipe that has room takes whole (PIPE_BUF).
    private static let maxLineLength = 4096

    /// Writes a line before the process ends.
    static func say(_ line: String) { write(Array((line + "\n").utf8)) }

    /// Writes a line of the log, unless that would wait for somebody who does not read: no delivery
    /// waits for a log. The next line that is written says how many were lost.
    static func log(_ line: String) {
        lost.withLock { lost in
            var place = pollfd(fd: 2, events: Int16(POLLOUT), revents: 0)
            // A file or terminal is always ready; an error is for the write to find.
            guard poll(&place, 1, 0) != 0 else { return lost += 1 }
            let before = lost > 0 ? "(\(lost) lines of the log were lost: nobody read them)\n" : ""
            lost = 0
            var bytes = Array((before + line).utf8.prefix(maxLineLength - 1))
            bytes.append(UInt8(ascii: "\n"))
            write(bytes)
        }
    }

    private static func write(_ bytes: [UInt8]) {
        var rest = bytes[...]
        while !rest.isEmpty {
            let written = rest.withUnsafeBytes { Foundation.write(2, $0.baseAddress, $0.count) }
            if written < 0, errno == EINTR { continue }
            if written <= 0 { return }
            rest = rest.dropFirst(written)
        }
    }
}

/// Log lines on stderr: text for people, JSON for machines. A line break in a message cannot start
/// a line of its own.
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
        let message = withCommands(event.message.description)
        let line: String
        if isJSON {
            let head = [("time", time), ("level", event.level.rawValue), ("message", message)]
            let all = head + fields.map { ($0.key, withCommands($0.value.description)) }
            line = "{" + all.map { "\(jsonString($0.0)):\(jsonString($0.1))" }.joined(separator: ",") + "}"
        } else {
            let tail = fields.map { " \($0.key)=\(printable(withCommands($0.value.description)))" }.joined()
            line = "\(time) \(event.level.rawValue) \(printable(message))\(tail)"
        }
        StandardError.log(line)
    }

    /// The logger that the settings ask for.
    static func logger(_ settings: Settings) throws -> Logger {
        let (level, format) = (try settings.value(of: .logLevel), try settings.value(of: .logFormat))
        return Logger(label: "outbox") { _ in LineLogHandler(logLevel: level, isJSON: format == .json) }
    }
}
