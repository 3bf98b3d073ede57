import Foundation
import TestSupport
import Testing

/// Where a setting may be given, what it may be, and what is said of one that cannot be used.
@Suite(.timeLimit(.minutes(15))) struct SettingsTests {
    /// `outboxctl config` in a folder with these files.
    private func config(
        _ files: [String: String] = [:], _ environment: [String: String] = [:]
    ) async throws -> (end: ChildProcess.End, settings: [String: [String: Any]], errors: String) {
        let folder = TestFolder.path("settings")
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        for (name, text) in files {
            try text.write(toFile: "\(folder)/\(name)", atomically: true, encoding: .utf8)
        }
        let (end, output, errors) = try await ChildProcess.run(
            ["config", "-o", "json"], in: folder, environment: environment)
        let rows = try? JSONSerialization.jsonObject(with: Data(output.utf8)) as? [[String: Any]]
        return (
            end,
            Dictionary((rows ?? []).map { ($0["key"] as? String ?? "", $0) }, uniquingKeysWith: { first, _ in first }),
            errors
        )
    }

    @Test(arguments: [
        (
            "outbox.json",
            """
            {
                // Requests at a time, and where they may go.
                "max_in_flight": 64, "listen_notifications": false,
                "allow_networks": ["10.0.0.0/8", "fd00::/8"], "lease": "30s",
            }
            """
        ),
        (
            "outbox.yaml",
            """
            # Requests at a time, and where they may go.
            max_in_flight: 64
            listen_notifications: false
            allow_networks: [10.0.0.0/8, "fd00::/8"]
            lease: 30s
            """
        ),
    ])
    func `a file has texts, numbers, truth values, lists and comments`(name: String, text: String) async throws {
        let (end, settings, errors) = try await config([name: text], ["OUTBOX_LEASE": "90s"])
        #expect(end == .exit(0), "\(errors)")
        let values = settings.compactMapValues { $0["value"] as? String }
        #expect(values["max_in_flight"] == "64")
        #expect(values["listen_notifications"] == "false")
        #expect(values["allow_networks"] == "10.0.0.0/8,fd00::/8")
        #expect(values["lease"] == "90s")
        #expect(settings["max_in_flight"]?["origin"] as? String == "file")
        #expect(settings["lease"]?["origin"] as? String == "environment")
        #expect(settings["grace"]?["origin"] as? String == "default")
    }

    @Test(arguments: [
        ("outbox.json", #"{"max_in_flight": "many"}"#, "max_in_flight"),
        ("outbox.json", #"{"max_in_flight": 0}"#, "max_in_flight"),
        ("outbox.json", #"{"lease": {"seconds": 60}}"#, "lease"),
        ("outbox.json", #"{"lease": null}"#, "lease"),
        ("outbox.json", #"{"leese": "60s"}"#, "did you mean \\\"lease\\\""),
        ("outbox.json", #"["lease"]"#, "not a JSON object"),
        ("outbox.json", "lease: 60s", "not a JSON object"),
        ("outbox.yaml", "lease:\n  seconds: 60", "lease"),
        ("outbox.yaml", "poll_interval: 1ms", "at least 10ms"),
        ("outbox.yaml", "- lease", "not a YAML mapping"),
        ("outbox.yaml", "database_url: [canary", "is not YAML"),
        ("outbox.yaml", "listen_notifications: perhaps", "true or false"),
    ])
    func `a file that cannot be used is refused with the file, the key and what would be right`(
        name: String, text: String, reason: String
    ) async throws {
        let (end, _, errors) = try await config([name: text])
        #expect(end == .exit(78))
        #expect(errors.contains(reason), "\(errors)")
        #expect(errors.contains(name) || errors.contains("configuration file"))
        #expect(!errors.contains("canary"))
    }

    @Test func `two files are one too many`() async throws {
        let (end, _, errors) = try await config(["outbox.json": "{}", "outbox.yaml": ""])
        #expect(end == .exit(78))
        #expect(errors.contains("outbox.json and outbox.yaml"), "\(errors)")
    }

    @Test(arguments: [
        ("OUTBOX_LEESE", "OUTBOX_LEASE"), ("OUTBOX_DATABASE_URLS", "OUTBOX_DATABASE_URL"),
        ("OUTBOX_LOGLEVEL_FILE", "OUTBOX_LOG_LEVEL"),
    ])
    func `a variable that is no setting is refused, with the one that was meant`(name: String, meant: String)
        async throws
    {
        let (end, _, errors) = try await config([:], [name: "x"])
        #expect(end == .exit(78))
        #expect(errors.contains(name) && errors.contains("\(meant)?"), "\(errors)")
    }

    @Test func `what Kubernetes says of a service named outbox is no mistake`() async throws {
        let (end, _, errors) = try await config(
            [:],
            [
                "OUTBOX_SERVICE_HOST": "10.0.0.1", "OUTBOX_SERVICE_PORT": "80", "OUTBOX_SERVICE_PORT_HTTP": "80",
                "OUTBOX_PORT": "tcp://10.0.0.1:80", "OUTBOX_PORT_80_TCP": "tcp://10.0.0.1:80",
                "OUTBOX_PORT_80_TCP_ADDR": "10.0.0.1", "OUTBOX_API_SERVICE_HOST": "10.0.0.2",
            ])
        #expect(end == .exit(0), "\(errors)")
    }

    @Test func `the table of settings in the documentation is what the program says of them`() async throws {
        let (end, output, _) = try await ChildProcess.run(["config", "--describe"])
        #expect(end == .exit(0))
        let page = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "../../docs/cli.md")
            .standardized
        let text = try String(contentsOf: page, encoding: .utf8)
        if ProcessInfo.processInfo.environment["OUTBOX_TEST_UPDATE"] != nil {
            let table = try Regex(#"\| Key \| Flag \|[^\n]*\n(\|[^\n]*\n)*"#)
            try text.replacing(table, with: output).write(to: page, atomically: true, encoding: .utf8)
        } else {
            #expect(text.contains(output), "run OUTBOX_TEST_UPDATE=1 swift test --filter SettingsTests")
        }
    }
}
