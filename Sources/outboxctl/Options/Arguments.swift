import ArgumentParser
import Bytewise
import Foundation
import Outbox
import Postgres
import Transport

/// A duration on the command line: `50ms`, `5s`, `2m`, `1h`, `1d`.
struct DurationArgument: ExpressibleByArgument {
    let duration: Duration

    init?(argument: String) {
        guard let duration = Duration(written: argument) else { return nil }
        self.duration = duration
    }
}

/// A point in time on the command line: RFC 3339, `now`, or `-1h` and its like, counted back from
/// now.
struct TimeArgument: ExpressibleByArgument {
    let timestamp: Timestamp

    init?(argument: String) {
        let now = Timestamp(microseconds: Int64(Date().timeIntervalSince1970 * 1_000_000))
        if argument == "now" { timestamp = now; return }
        if argument.hasPrefix("-"), let back = DurationArgument(argument: String(argument.dropFirst())) {
            timestamp = Timestamp(microseconds: now.microseconds - back.duration.microseconds)
            return
        }
        if argument.hasPrefix("+"), let ahead = DurationArgument(argument: String(argument.dropFirst())) {
            timestamp = now + ahead.duration
            return
        }
        guard let time = Timestamp(rfc3339: argument) else { return nil }
        timestamp = time
    }

    static let forms = "2026-10-04T02:00:00Z, now, -1h or +30m"
}

/// A header on the command line: `Name: value`.
struct HeaderArgument: ExpressibleByArgument {
    let name: String
    let value: String

    init?(argument: String) {
        guard let colon = argument.firstIndex(of: ":") else { return nil }
        name = String(argument[..<colon])
        value = String(argument[argument.index(after: colon)...].drop { $0 == " " })
    }
}

/// A UUID on the command line.
struct UniqueIDArgument: ExpressibleByArgument {
    let id: UniqueID

    init?(argument: String) {
        guard let id = UniqueID(argument) else { return nil }
        self.id = id
    }
}

extension Endpoint.Format: ExpressibleByArgument {}
extension HTTPRequest.Method: ExpressibleByArgument {
    init?(argument: String) { self.init(rawValue: argument.uppercased()) }
}

/// Text from an argument, from `@file`, or from standard input for `-`.
func textArgument(_ argument: String) throws -> [UInt8] {
    if argument == "-" { return Array(FileHandle.standardInput.readDataToEndOfFile()) }
    guard argument.hasPrefix("@") else { return Array(argument.utf8) }
    let path = String(argument.dropFirst())
    guard let data = FileManager.default.contents(atPath: path) else {
        throw Problem(.invalidValue, "the file \(path) cannot be read")
    }
    return Array(data)
}

/// JSON given as `textArgument` takes it, or an error: a byte that is not UTF-8 would not arrive as
/// it is.
func jsonArgument(_ argument: String) throws -> String {
    guard let text = String(validating: try textArgument(argument), as: UTF8.self) else {
        throw Problem(.invalidValue, "the text is not UTF-8, as JSON has to be")
    }
    return text
}
