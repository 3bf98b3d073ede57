import Foundation
import Testing

/// What holds of the sources themselves.
@Suite(.timeLimit(.minutes(15))) struct HouseTests {
    private func sources(_ folder: String) throws -> [(name: String, text: String)] {
        let root = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../\(folder)").standardized
        let files =
            FileManager.default.enumerator(at: root, includingPropertiesForKeys: nil)?.compactMap { $0 as? URL } ?? []
        return try files.filter { $0.pathExtension == "swift" }.map {
            ($0.path, try String(contentsOf: $0, encoding: .utf8))
        }
    }

    @Test func `only the endpoint's state knows its breaker`() throws {
        let words = [
            "l.trips", "SET trips", "recovered_at", "l.resting_until", "SET resting_until", "opened_at", "held_until",
            "probeInterval",
            "settings.opens", "isOpen(",
        ]
        let naming = try sources("Sources").filter { !$0.name.contains("/Bench/") && !$0.name.contains("/Receiver/") }
            .filter { file in
                // Comments may.
                let code = file.text.split(separator: "\n").filter { !$0.contains("// ") }.joined(separator: "\n")
                return words.contains { code.contains($0) }
            }
        #expect(
            Set(naming.map { URL(filePath: $0.name).lastPathComponent }) == [
                "EndpointState.swift", "EndpointStateChange.swift",
            ])
    }

    @Test func `a state machine reads no clock: times are passed in`() throws {
        let machines: Set = [
            "EndpointState.swift", "EndpointStateChange.swift", "LaneRamp.swift", "LaneScan.swift", "SendQueues.swift",
            "LaneRates.swift",
            "RateLimiter.swift", "RecorderInbox.swift", "CutPace.swift", "CutBudget.swift", "FilterPace.swift",
            "Route.swift", "RetryPolicy.swift", "TurnQueue.swift",
        ]
        let found = try sources("Sources").filter {
            machines.contains(URL(filePath: $0.name).lastPathComponent)
        }
        #expect(found.count == machines.count)
        let reading = found.filter { $0.text.firstMatch(of: /(?:Clock|Timestamp|[( ])\.now\b/) != nil }
        #expect(reading.map(\.name) == [])
    }

    @Test func `the domain speaks of no command and no flag, and the command line of no statement`() throws {
        /// Texts of the code, without comments.
        func texts(_ file: (name: String, text: String)) -> String {
            file.text.split(separator: "\n").filter { !$0.contains("//") && $0.contains("\"") }.joined(separator: "\n")
        }
        for folder in ["Sources/Outbox", "Sources/Scheduler", "Sources/Operator"] {
            let speaking = try sources(folder).filter { file in
                texts(file).contains("outboxctl ") || texts(file).firstMatch(of: /"[^"]* --[a-z]/) != nil
            }
            #expect(speaking.map(\.name) == [])
        }
        let stating = try sources("Sources/outboxctl").filter { texts($0).contains("SELECT ") }
        #expect(stating.map(\.name) == [])
    }

    /// Paragraphs and list items of the documentation, without code and tables, by the file that
    /// they are in.
    private func prose() throws -> [(file: String, text: String)] {
        let root = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../").standardized
        let found = FileManager.default.enumerator(at: root.appending(path: "docs"), includingPropertiesForKeys: nil)
        let docs = (found?.compactMap { $0 as? URL } ?? []).filter { $0.pathExtension == "md" }
        return try (docs + [root.appending(path: "README.md"), root.appending(path: "CONTRIBUTING.md")]).flatMap {
            file in
            var (isCode, lines): (Bool, [String]) = (false, [])
            for line in try String(contentsOf: file, encoding: .utf8).components(separatedBy: "\n") {
                if line.hasPrefix("```") { isCode.toggle() }
                lines.append(isCode || line.hasPrefix("```") || line.hasPrefix("|") ? "" : line)
            }
            return lines.joined(separator: "\n").replacing(/\n(?=\s*(- |\d+\. ))/, with: "\n\n")
                .components(separatedBy: "\n\n").map { (file.lastPathComponent, $0) }
        }
    }

    @Test func `a page is read without scrolling sideways, and a paragraph without losing the thread`() throws {
        let prose = try prose()
        #expect(prose.count > 300)
        #expect(prose.flatMap { $0.text.components(separatedBy: "\n") }.filter { $0.count > 100 } == [])
        let long = prose.filter { $0.text.split(whereSeparator: \.isWhitespace).count > 80 }
        #expect(long.map { "\($0.file): \($0.text.prefix(60))" } == [])
    }

    @Test func `a comment and a statement are read without scrolling sideways, too`() throws {
        let root = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../sql").standardized
        let found = FileManager.default.enumerator(at: root, includingPropertiesForKeys: nil)
        let statements = try (found?.compactMap { $0 as? URL } ?? []).filter { $0.pathExtension == "sql" }
            .flatMap { try String(contentsOf: $0, encoding: .utf8).components(separatedBy: "\n") }
        #expect(statements.count > 2000)
        #expect(statements.filter { $0.count > 100 } == [])
        let comments = try (sources("Sources") + sources("Tests"))
            .flatMap { $0.text.components(separatedBy: "\n") }
            .filter { $0.firstMatch(of: /^ *\/\/\/?[ ]/) != nil && !$0.contains("►") && !$0.contains("──") }
        #expect(comments.count > 2000)
        #expect(comments.filter { $0.count > 100 } == [])
    }

    @Test func `what a comment or a page names is there`() throws {
        let root = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../").standardized
        func files(_ folder: String, _ kinds: Set<String>) throws -> [(name: String, text: String)] {
            let found = FileManager.default.enumerator(
                at: root.appending(path: folder), includingPropertiesForKeys: nil)
            return try (found?.compactMap { $0 as? URL } ?? []).filter { kinds.contains($0.pathExtension) }.map {
                ($0.lastPathComponent, try String(contentsOf: $0, encoding: .utf8))
            }
        }
        let code = try files("Sources", ["swift", "h"]) + files("sql", ["sql", "swift"]) + files("Tests", ["swift"])
        let pages = try files("docs", ["md"])
        for (name, text) in code + pages {
            for path in text.matches(of: /(?:Sources|Tests|sql)\/[A-Za-z0-9_\/]+\.(?:swift|sql)/) {
                let isThere = FileManager.default.fileExists(atPath: root.appending(path: String(path.output)).path)
                #expect(isThere, "\(name): \(path.output)")
            }
        }
        // Names of ours as the pages about the code write them: `Type.member`, `function`,
        // `schema.object`.
        let words = Set(
            code.flatMap {
                "\($0.name) \($0.text)".split { !($0.isLetter || $0.isNumber || $0 == "_") }.map(String.init)
            })
        for (name, text) in pages where !["performance.md", "conformance.md", "dependencies.md"].contains(name) {
            for quoted in text.matches(of: /`([A-Za-z_]+(?:\.[A-Za-z_]+)*)(?:\([a-z_:]*\))?`/) {
                for word in quoted.output.1.split(separator: ".").map(String.init) where word.count > 3 {
                    let isOthers = ["pg_upgrade", "REFRESH", "unsafeSQL"].contains(word)
                    #expect(isOthers || words.contains(word), "\(name): \(quoted.output.0)")
                }
            }
        }
    }

    @Test func `every suite ends`() throws {
        let suites = try sources("Tests").flatMap { file in
            file.text.split(separator: "\n").filter { $0.hasPrefix("@Suite") }.map { (file.name, $0) }
        }
        #expect(suites.count > 70)
        #expect(suites.filter { !$0.1.contains("timeLimit") }.map(\.0) == [])
    }
}
