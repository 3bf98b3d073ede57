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
        case .json: print("[" + listing.json.joined(separator: ",\n ") + "]")
        case .jsonl: for line in listing.json { print(line) }
        case .table: table(listing, columns: columns ?? listing.columns)
        }
    }

    /// Prints one thing: its first row.
    func item(_ listing: Listing) {
        guard let object = listing.json.first, let row = listing.rows.first else { return }
        if self != .table { return print(object) }
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
            print("{" + fields.map { "\(jsonString($0.name)):\($0.json)" }.joined(separator: ",") + "}")
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

    private func shortened(_ text: String) -> String {
        text.count <= 60 ? text : text.prefix(57) + "..."
    }
}

/// Text that cannot move the cursor or change the terminal: control characters, C1 and bidirectional marks are escaped.
func printable(_ text: String) -> String {
    var result = ""
    for scalar in text.unicodeScalars {
        let isMark =
            (0x200E...0x200F).contains(scalar.value) || (0x202A...0x202E).contains(scalar.value)
            || (0x2066...0x2069).contains(scalar.value)
        if scalar.value < 0x20 || (0x7F...0x9F).contains(scalar.value) || isMark {
            result += scalar == "\n" ? "\\n" : "\\x" + String(scalar.value, radix: 16)
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
    return String(decoding: data, as: UTF8.self)
}

extension String {
    fileprivate var trimmingTrailingSpaces: String {
        var text = self[...]
        while text.last == " " { text.removeLast() }
        return String(text)
    }
}
