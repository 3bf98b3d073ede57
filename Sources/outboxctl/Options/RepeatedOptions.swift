import ArgumentParser
import Foundation

/// An option that takes one value refuses a second one: the parser would take the last without a
/// word.
enum RepeatedOptions {
    /// What the parser says of itself (`--experimental-dump-help`), as far as it is asked here.
    private struct Tool: Decodable {
        let command: Command
    }

    private struct Command: Decodable {
        let commandName: String
        let subcommands: [Command]?
        let arguments: [Argument]?
    }

    private struct Argument: Decodable {
        struct Name: Decodable { let name: String }
        let kind: String
        let names: [Name]?
        let isRepeating: Bool
    }

    /// The name of an option that is given twice and takes one value; nil when all is well.
    static func first(in arguments: [String], of root: any ParsableCommand.Type) -> String? {
        let words = arguments.prefix { $0 != "--" }
        var seen: Set<String> = []
        let twice = words.filter { $0.hasPrefix("-") && $0.count > 1 }
            .map { String($0.prefix { $0 != "=" }) }.filter { !seen.insert($0).inserted }
        // Nearly always.
        if twice.isEmpty { return nil }
        guard let tool = try? JSONDecoder().decode(Tool.self, from: Data(root._dumpHelp().utf8)) else { return nil }
        var command = tool.command
        for word in words {
            guard let child = command.subcommands?.first(where: { $0.commandName == word }) else { break }
            command = child
        }
        let single = (command.arguments ?? []).filter { $0.kind == "option" && !$0.isRepeating }
        let names = Set(single.flatMap { $0.names ?? [] }.map { ($0.name.count == 1 ? "-" : "--") + $0.name })
        return twice.first(where: names.contains)
    }
}
