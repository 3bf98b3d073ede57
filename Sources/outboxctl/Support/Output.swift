import ArgumentParser
import Foundation
import Outbox

/// How results are printed.
enum Output: String, ExpressibleByArgument, CaseIterable {
    /// Columns for people.
    case table
    /// One JSON document.
    case json
    /// One JSON object per line.
    case jsonl

    /// Whether these arguments ask for JSON, when they could not even be parsed.
    static func isJSON(_ arguments: [String]) -> Bool {
        arguments.contains("--json") || arguments.contains("-ojson") || arguments.contains("-ojsonl")
            || arguments.contains("--output=json")
            || zip(arguments, arguments.dropFirst()).contains {
                ($0 == "-o" || $0 == "--output") && $1.hasPrefix("json")
            }
    }

    /// Prints a list.
    func list(_ listing: Listing, columns: [String]? = nil) {
        switch self {
        case .json: printJSON("[" + listing.json.joined(separator: ",\n ") + "]")
        case .jsonl: for line in listing.json { printJSON(line) }
        case .table: table(listing, columns: columns ?? listing.columns)
        }
    }

    /// Prints one thing: its first row.
    func item(_ listing: Listing) {
        guard let object = listing.json.first, let row = listing.rows.first else { return }
        if self != .table { return printJSON(object) }
        let width = listing.columns.map(\.count).max() ?? 0
        for (name, value) in zip(listing.columns, row) {
            guard let value else { continue }
            print(name.padding(toLength: width + 2, withPad: " ", startingAt: 0) + printable(value))
        }
    }

    /// Prints one small fact: fields in order.
    func fact(_ fields: [(name: String, json: String)], text: String) {
        if self == .table {
            print(text)
        } else {
            printJSON("{" + fields.map { "\(jsonString($0.name)):\($0.json)" }.joined(separator: ",") + "}")
        }
    }

    private func table(_ listing: Listing, columns: [String]) {
        let places = columns.compactMap { listing.columns.firstIndex(of: $0) }
        let cells =
            [places.map { listing.columns[$0].uppercased() }]
            + listing.rows.map { row in places.map { place in row[place].map { shortened(printable($0)) } ?? "-" } }
        let widths = places.indices.map { column in cells.map { $0[column].count }.max() ?? 0 }
        for row in cells {
            let padded = zip(row, widths).map { $0.padding(toLength: $1, withPad: " ", startingAt: 0) }
            print(padded.joined(separator: "  ").trimmingTrailingSpaces)
        }
    }

    /// On a screen a long value would break every line; a program gets all of it.
    private func shortened(_ text: String) -> String {
        text.count <= 60 || isatty(1) == 0 ? text : text.prefix(57) + "..."
    }
}

/// Text that cannot move the cursor or change the terminal: control characters, C1 and
/// bidirectional marks are escaped.
func printable(_ text: String) -> String {
    var result = ""
    for scalar in text.unicodeScalars {
        switch scalar {
        case "\n": result += "\\n"
        case "\t": result += "\\t"
        case "\r": result += "\\r"
        case _ where isTreacherous(scalar): result += "\\x" + String(scalar.value, radix: 16)
        default: result.unicodeScalars.append(scalar)
        }
    }
    return result
}

/// True for what is not seen and changes what is: control characters (C0, C1, DEL), bidirectional
/// marks and separators of lines.
func isTreacherous(_ scalar: Unicode.Scalar) -> Bool {
    switch scalar.value {
    case ..<0x20, 0x7F...0x9F, 0x061C, 0x200E...0x200F, 0x2028...0x202E, 0x2066...0x2069: true
    default: false
    }
}

/// Prints a JSON text. Between its tokens there is none of these characters but white space, so
/// that escaping them everywhere is escaping them inside strings.
func printJSON(_ text: String) { print(escapedJSON(text)) }

func escapedJSON(_ text: String) -> String {
    guard text.unicodeScalars.contains(where: { isTreacherous($0) && $0.value >= 0x7F }) else { return text }
    var result = ""
    for scalar in text.unicodeScalars {
        if isTreacherous(scalar), scalar.value >= 0x7F {
            let digits = String(scalar.value, radix: 16)
            result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
        } else {
            result.unicodeScalars.append(scalar)
        }
    }
    return result
}

/// The text as a JSON string.
func jsonString(_ text: String) -> String {
    let encoder = JSONEncoder()
    encoder.outputFormatting = .withoutEscapingSlashes
    guard let data = try? encoder.encode(text) else { return #""""# }
    return escapedJSON(String(decoding: data, as: UTF8.self))
}

extension String {
    fileprivate var trimmingTrailingSpaces: String {
        var text = self[...]
        while text.last == " " { text.removeLast() }
        return String(text)
    }
}
