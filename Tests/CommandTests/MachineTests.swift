import Foundation
import Outbox
import Postgres
import Receiver
import StandardWebhooks
import TestSupport
import Testing

/// What other users of the machine, and whoever writes what is shown, can do to an operator.
@Suite(.timeLimit(.minutes(15))) struct MachineTests {
    private static let isRoot = getuid() == 0

    private func folder() throws -> String {
        let path = TestFolder.path("machine")
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        return path
    }

    private func give(_ path: String, to user: uid_t) { #expect(lchown(path, user, user) == 0) }

    // MARK: Files of others

    @Test(.enabled(if: isRoot)) func `a configuration of another user is not obeyed`() async throws {
        let folder = try folder()
        // What it names would run as us.
        let bin = folder + "/bin"
        try FileManager.default.createDirectory(atPath: bin, withIntermediateDirectories: true)
        for program in ["initdb", "pg_ctl", "postgres"] {
            try "#!/bin/sh\ntouch \(folder)/ran\n".write(toFile: bin + "/" + program, atomically: true, encoding: .utf8)
            chmod(bin + "/" + program, 0o755)
        }
        let file = folder + "/outbox.json"
        try #"{"postgres_bin":"\#(bin)"}"#.write(toFile: file, atomically: true, encoding: .utf8)
        give(file, to: 65534)
        for arguments in [["status"], ["config"], ["run", "--config", "outbox.json"]] {
            let (end, _, errors) = try await ChildProcess.run(arguments, in: folder)
            #expect(end == .exit(78), "\(arguments): \(errors)")
            #expect(errors.contains("outbox.json belongs to another user"), "\(errors)")
        }
        give(file, to: 0)
        chmod(file, 0o666)
        let open = try await ChildProcess.run(["config"], in: folder)
        #expect(open.end == .exit(78) && open.errors.contains("chmod go-w"), "\(open.errors)")
        #expect(!FileManager.default.fileExists(atPath: folder + "/ran"))
        // A pipe would keep the command waiting.
        try FileManager.default.removeItem(atPath: file)
        #expect(mkfifo(file, 0o600) == 0)
        let pipe = try await ChildProcess.run(["config"], in: folder)
        #expect(pipe.end == .exit(78) && pipe.errors.contains("no regular file"), "\(pipe.errors)")
    }

    @Test(.enabled(if: isRoot)) func `a key file of another user is not used`() async throws {
        let setting = try await Setting()
        let key = try #require(setting.environment["OUTBOX_SECRET_KEY_FILE"])
        give(key, to: 65534)
        let (end, _, errors) = try await setting.run("endpoint", "create", "e", "--url", "https://example.com/")
        #expect(end == .exit(78) && errors.contains("belongs to another user"), "\(errors)")
    }

    @Test(.enabled(if: isRoot))
    func `an .outbox that somebody else has put there is not used, and ours is closed to others`()
        async throws
    {
        let folder = try folder()
        let own = folder + "/.outbox"
        try FileManager.default.createDirectory(atPath: own, withIntermediateDirectories: true)
        give(own, to: 65534)
        var result = try await ChildProcess.run(["status"], in: folder)
        #expect(result.end == .exit(77) && result.errors.contains("belongs to another user"), "\(result.errors)")
        try FileManager.default.removeItem(atPath: own)
        try FileManager.default.createSymbolicLink(atPath: own, withDestinationPath: "/tmp")
        result = try await ChildProcess.run(["status"], in: folder)
        #expect(result.end == .exit(77) && result.errors.contains("is a link"), "\(result.errors)")
        try FileManager.default.removeItem(atPath: own)

        // A lock file that is a link would be made, or locked, where it leads.
        try FileManager.default.createDirectory(atPath: own, withIntermediateDirectories: true)
        chmod(own, 0o755)
        try FileManager.default.createSymbolicLink(atPath: own + "/start.lock", withDestinationPath: folder + "/victim")
        result = try await ChildProcess.run(["status"], in: folder)
        #expect(result.end == .exit(77), "\(result.errors)")
        #expect(!FileManager.default.fileExists(atPath: folder + "/victim"))
        try FileManager.default.removeItem(atPath: own + "/start.lock")
        result = try await ChildProcess.run(["status"], in: folder)
        #expect(result.end == .exit(0), "\(result.errors)")
        #expect(try FileManager.default.attributesOfItem(atPath: own)[.posixPermissions] as? Int == 0o700)
    }

    @Test(.enabled(if: isRoot)) func `a link of somebody else's is not followed to a file of ours`() async throws {
        let folder = try folder()
        let own = try temporaryFile(#"{"log_level":"debug"}"#)
        chmod(own, 0o600)
        try FileManager.default.createSymbolicLink(atPath: folder + "/outbox.json", withDestinationPath: own)
        #expect(try await ChildProcess.run(["config"], in: folder).end == .exit(0))
        give(folder + "/outbox.json", to: 65534)
        let refused = try await ChildProcess.run(["config"], in: folder)
        #expect(refused.end == .exit(78) && refused.errors.contains("belongs to another user"), "\(refused.errors)")
    }

    @Test(.enabled(if: isRoot)) func `the embedded server's user gets nothing of root's environment`() async throws {
        let folder = try folder()
        let daemon = try ChildProcess(
            ChildProcess.outboxctl, ["run"], in: folder, environment: ["ROOT_API_TOKEN": "canary"])
        #expect(await daemon.waitUntilReady(), "\(daemon.errors)")
        let pidFile = folder + "/.outbox/postgres/postmaster.pid"
        let pid = try #require(try String(contentsOfFile: pidFile, encoding: .utf8).split(separator: "\n").first)
        let environment = try String(contentsOfFile: "/proc/\(pid)/environ", encoding: .utf8)
        #expect(!environment.contains("canary"))
        daemon.signal(SIGTERM)
        #expect(await daemon.wait() == .exit(0))
        let data = try FileManager.default.destinationOfSymbolicLink(atPath: folder + "/.outbox/postgres")
        for path in [data, data + ".socket"] { try? FileManager.default.removeItem(atPath: path) }
    }

    @Test func `beside a configured database no key is made by itself`() async throws {
        let folder = try folder()
        let database = try await TestCluster.database()
        let (end, _, errors) = try await ChildProcess.run(
            ["endpoint", "create", "e", "--url", "https://example.com/"], in: folder,
            environment: ["DATABASE_URL": database.connectionString])
        #expect(end == .exit(78) && errors.contains("OUTBOX_SECRET_KEY_FILE"), "\(errors)")
        #expect(!FileManager.default.fileExists(atPath: folder + "/.outbox"))
    }

    // MARK: What leaves the process

    @Test func `neither memory nor the keys of TLS connections are written to files`() async throws {
        let setting = try await Setting()
        let servers = try await TLSServers()
        let ca = try temporaryFile(try servers.pem("ca"))
        let log = TestFolder.path("keylog")
        let made = try await setting.run("endpoint", "create", "e", "--url", servers.url("good"), "--ca-file", ca)
        #expect(made.end == .exit(0), "\(made.errors)")
        let tested = try await ChildProcess.run(
            ["endpoint", "test", "e"], environment: setting.environment.merging(["SSLKEYLOGFILE": log]) { $1 })
        #expect(tested.end == .exit(0), "\(tested.output) \(tested.errors)")
        #expect(servers.requests("good") == 1)
        #expect(!FileManager.default.fileExists(atPath: log))
        await servers.stop()
        let daemon = try await Daemon.start(
            setting.database.connectionString, keyFile: try #require(setting.environment["OUTBOX_SECRET_KEY_FILE"]))
        #expect(await daemon.waitUntilReady())
        let limits = try String(contentsOfFile: "/proc/\(daemon.pid)/limits", encoding: .utf8)
        let core = try #require(limits.split(separator: "\n").first { $0.hasPrefix("Max core file size") })
        #expect(core.split(separator: " ").dropFirst(4).prefix(2) == ["0", "0"], "\(core)")
        daemon.signal(SIGTERM)
        _ = await daemon.wait()
    }

    @Test(arguments: [
        "postgres://app:canary@ss@127.0.0.1:1/app", "postgres://app:1234/canary@127.0.0.1/app",
        "postgresql://app:canary@x@y@127.0.0.1/app", "postgres://app@127.0.0.1:1/app?sslmode=canary",
    ])
    func `a password with an at sign, or in the wrong place, is not repeated`(url: String) async throws {
        let (end, output, errors) = try await ChildProcess.run(["status"], environment: ["DATABASE_URL": url])
        #expect(
            url.contains("sslmode") ? end == .exit(69) : end == .exit(78) && errors.contains("percent-encoded"),
            "\(errors)")
        for word in ["canary", "ss@", "x@y"] { #expect(!(output + errors).contains(word), "\(errors)") }
    }

    // MARK: Credentials

    @Test func `credentials go where they were given for, and nowhere else`() async throws {
        let setting = try await Setting()
        let (home, elsewhere) = (try Ledger(), try Ledger())
        defer { home.receiver.stop(); elsewhere.receiver.stop() }
        let token = try temporaryFile("canary-token\n")
        let header = try temporaryFile("canary-header\n")
        let made = try await setting.run(
            "endpoint", "create", "e", "--url", home.url + "/a", "--auth", "bearer", "--auth-file", token,
            "--secret-header", "X-Own: @" + header)
        #expect(made.end == .exit(0), "\(made.errors)")
        func secrets(_ ledger: Ledger) -> [Bool] {
            ledger.all.map { String(decoding: $0.raw, as: UTF8.self).contains("canary") }
        }
        _ = try await setting.run("endpoint", "test", "e")
        // Another path of the same origin is the same receiver.
        _ = try await setting.run("endpoint", "test", "e", "--url", home.url + "/b")
        #expect(secrets(home) == [true, true])
        _ = try await setting.run("endpoint", "test", "e", "--url", elsewhere.url)
        #expect(secrets(elsewhere) == [false])
        _ = try await setting.run("endpoint", "test", "e", "--url", elsewhere.url, "--reveal", "--reason", "INC-1")
        #expect(secrets(elsewhere) == [false, true])
        #expect(
            try await setting.database.column("SELECT reason FROM outbox.audit WHERE action = 'endpoint.test.reveal'")
                == ["INC-1"])

        var moved = try await setting.run("endpoint", "update", "e", "--url", elsewhere.url)
        #expect(moved.end == .exit(64) && moved.errors.contains("Give them again"), "\(moved.errors)")
        moved = try await setting.run("endpoint", "update", "e", "--url", home.url + "/c")
        #expect(moved.end == .exit(0), "\(moved.errors)")
        // Half of it is not all of it.
        moved = try await setting.run(
            "endpoint", "update", "e", "--url", elsewhere.url, "--auth", "bearer", "--auth-file", token)
        #expect(moved.end == .exit(64), "\(moved.errors)")

        // Somebody who may write the table, and holds no key.
        try await setting.database.pool.execute("UPDATE outbox.endpoint SET url = \(elsewhere.url)")
        try await setting.database.publish()
        let endpoint = try await setting.database.pool.run {
            try $0.endpoint(try $0.endpointID("e"), keyring: TestWorker.keyring)
        }
        #expect(endpoint.defect?.contains("are not sent anywhere else") == true)
        let held = [endpoint.configuration.authentication.secret] + endpoint.configuration.headers.map(\.value)
        #expect(held.allSatisfy { $0?.text.contains("canary") != true })
        try await TestWorker.run(setting.database) {
            let waits = try await eventually { try await setting.database.deliveries("waiting") == 1 }
            #expect(waits)
        }
        #expect(elsewhere.all.count == 2)
        moved = try await setting.run(
            "endpoint", "update", "e", "--url", elsewhere.url, "--auth", "bearer", "--auth-file", token,
            "--secret-header",
            "X-Own: @" + header)
        #expect(moved.end == .exit(0), "\(moved.errors)")
        try await TestWorker.run(setting.database) {
            #expect(await eventually { elsewhere.all.count == 3 })
        }
        #expect(secrets(elsewhere).last == true)
    }

    @Test func `whoever vouches for the receiver is part of where credentials go`() async throws {
        let setting = try await Setting()
        let servers = try await TLSServers()
        let (token, ca) = (try temporaryFile("canary\n"), try temporaryFile(try servers.pem("ca")))
        var result = try await setting.run(
            "endpoint", "create", "e", "--url", servers.url("good"), "--auth", "bearer", "--auth-file", token)
        #expect(result.end == .exit(0), "\(result.errors)")
        result = try await setting.run("endpoint", "update", "e", "--ca-file", ca)
        #expect(result.end == .exit(64) && result.errors.contains("Give them again"), "\(result.errors)")
        try await setting.database.pool.execute("UPDATE outbox.endpoint SET ca_certificates = \(try servers.pem("ca"))")
        result = try await setting.run("endpoint", "test", "e")
        #expect(result.end == .exit(1) && result.errors.contains("are not sent anywhere else"), "\(result.errors)")
        #expect(servers.requests("good") == 0)
        result = try await setting.run(
            "endpoint", "update", "e", "--ca-file", ca, "--auth", "bearer", "--auth-file", token)
        #expect(result.end == .exit(0), "\(result.errors)")
        result = try await setting.run("endpoint", "test", "e")
        #expect(result.end == .exit(0), "\(result.output) \(result.errors)")
        await servers.stop()
    }

    @Test func `the client secret of oauth2 keeps to its token endpoint, too`() async throws {
        let setting = try await Setting()
        let secret = try temporaryFile("canary\n")
        let made = try await setting.run(
            "endpoint", "create", "e", "--url", "https://example.com/", "--auth", "oauth2", "--auth-file", secret,
            "--token-url",
            "https://login.example.com/token", "--client-id", "c")
        #expect(made.end == .exit(0), "\(made.errors)")
        try await setting.database.script(
            #"UPDATE outbox.endpoint SET authentication = authentication || '{"token_url":"https://evil.example.com/"}'"#
        )
        let endpoint = try await setting.database.pool.run {
            try $0.endpoint(try $0.endpointID("e"), keyring: TestWorker.keyring)
        }
        #expect(endpoint.defect != nil)
        #expect(endpoint.oauth.map { "\($0.clientSecret)" } != "canary")
    }

    @Test func `a secret opens as what it was sealed as, and as nothing else`() async throws {
        let setting = try await Setting()
        let secret = try temporaryFile("whsec_" + Data(repeating: 7, count: 32).base64EncodedString())
        _ = try await setting.run("endpoint", "create", "e", "--url", "https://example.com/", "--secret-file", secret)
        try await setting.database.script("UPDATE outbox.secret SET kind = 'v1a'")
        let shown = try await setting.run("endpoint", "secret", "show", "e")
        #expect(shown.end != .exit(0) && !shown.output.contains("whpk_"), "\(shown.output)")
    }

    @Test(arguments: [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    ])
    func `a public key with which anybody can sign is refused`(hex: String) throws {
        let digits = hex.compactMap(\.hexDigitValue).map(UInt8.init)
        let bytes = stride(from: 0, to: 64, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }
        #expect(throws: SigningSecret.ValidationError.self) {
            try VerificationKey("whpk_" + Data(bytes).base64EncodedString())
        }
    }

    // MARK: What is taken and shown

    @Test func `an empty authority, another's key and XML in another encoding are refused`() async throws {
        let setting = try await Setting()
        let servers = try await TLSServers()
        defer { Task { await servers.stop() } }
        let (empty, good, key) = (
            try temporaryFile(" \n"), try temporaryFile(try servers.pem("client")),
            try temporaryFile(try servers.pem("stranger", key: true))
        )
        let latin = try temporaryFile("<?xml version='1.0' encoding='ISO-8859-1'?><a>%type%</a>")
        for (arguments, words) in [
            (["--ca-file", empty], "is empty"),
            (["--client-cert-file", good, "--client-key-file", key], "is not that of the client certificate"),
            (["--template", "@" + latin, "--template-kind", "xml"], "iso-8859-1"),
        ] {
            let (end, _, errors) = try await ChildProcess.run(
                ["endpoint", "create", "e", "--url", "https://example.com/"] + arguments,
                environment: setting.environment)
            #expect(end == .exit(64), "\(errors)")
            #expect(errors.contains(words), "\(errors)")
        }
        let own = try temporaryFile(try servers.pem("client", key: true))
        let fits = try await setting.run(
            "endpoint", "create", "e", "--url", "https://example.com/", "--client-cert-file", good, "--client-key-file",
            own)
        #expect(fits.end == .exit(0), "\(fits.errors)")
    }

    @Test func `a file with the line ends of another system holds the same keys and databases`() async throws {
        let (old, new) = (Keyring.newKeyLine(), Keyring.newKeyLine())
        let unix = try Keyring(text: "# newest first\n" + new + old)
        let windows = try Keyring(text: ("# newest first\n" + new + old).replacing("\n", with: "\r\n"))
        #expect(unix.sealingKey == windows.sealingKey)
        // Two that cannot be reached: the first is named, not the last one alone.
        let several = try ChildProcess(
            ChildProcess.outboxctl, ["run"],
            environment: ["OUTBOX_DATABASES": "host=/no/such/one dbname=a\r\nhost=/no/such/two dbname=b\r\n"])
        #expect(await eventually { several.errors.contains("/no/such/one/.s.PGSQL") })
        several.signal(SIGTERM)
        #expect(await several.wait() == .exit(0))
    }

    /// CSI in one character, a right-to-left override, the end of an isolate, a line separator.
    private static let treacherous = "a\u{9B}31mb\u{202E}c\u{2069}d\u{2028}e'f\\g"
    /// A quote that is one character with the mark behind it, and ends a shell's word all the same.
    private static let quoted = "x'\u{301}; touch /tmp/outbox-pwned #"

    @Test func `what moves the cursor or hides text is escaped wherever it is shown`() async throws {
        let setting = try await Setting()
        let text = Self.treacherous
        try await setting.database.pool.execute(
            "INSERT INTO outbox.event (type, identity, after) VALUES ('t', \(text), to_json(\(text)::text))")
        for arguments in [
            ["event", "list"], ["event", "list", "-o", "json"], ["event", "list", "-o", "jsonl"],
            ["event", "get", "1"],
            ["event", "get", "1", "-o", "json"],
        ] {
            let (end, output, errors) = try await ChildProcess.run(arguments, environment: setting.environment)
            #expect(end == .exit(0), "\(errors)")
            let raw = output.unicodeScalars.filter { $0.value >= 0x7F && $0.properties.generalCategory != .otherLetter }
            #expect(raw.isEmpty, "\(arguments)")
        }
        let shown = try await setting.run("event", "get", "1", "-o", "json")
        let object = try #require(try JSONSerialization.jsonObject(with: Data(shown.output.utf8)) as? [String: Any])
        #expect(object["identity"] as? String == text)
    }

    @Test(arguments: [treacherous, quoted, "plain 'quotes' only"])
    func `attempt curl is one safe line, and sends what it says`(
        text: String
    ) async throws {
        let setting = try await Setting()
        _ = try await setting.run(
            "endpoint", "create", "e", "--url", "https://example.com/?token=canary", "--format", "raw")
        try await setting.database.pool.execute(
            "INSERT INTO outbox.event (type, after) VALUES ('t', to_json(\(text)::text))")
        let (end, output, errors) = try await setting.run("attempt", "curl", "1", "e")
        #expect(end == .exit(0), "\(errors)")
        #expect(
            !output.dropLast().unicodeScalars.contains {
                $0.value < 0x20 || (0x7F...0x9F).contains($0.value) || $0.value == 0x202E
            })
        #expect(output.split(separator: "\n").count == 1)
        #expect(!output.contains("canary") && output.contains("webhook-signature: ***"), "\(output)")
        // A shell makes the same bytes of it.
        let script = try temporaryFile("curl() { printf '%s' \"${@: -1}\"; }\n" + output)
        let shell = try ChildProcess("/bin/bash", [script])
        #expect(await shell.wait() == .exit(0), "\(shell.errors)")
        let body = try await setting.database.column("SELECT after::text FROM outbox.event")
        #expect(shell.output == body[0])
    }

    /// CREATE RULE queues for its lock before it is refused, and everybody who comes after waits
    /// behind it.
    @Test(arguments: ["event", "migration", "worker"])
    func `who waits for a lock and stops everybody is named by doctor, and by a worker`(table: String) async throws {
        let setting = try await Setting(["OUTBOX_POLL_INTERVAL": "100ms"])
        let name = "app_\(UInt32.random(in: 0 ... .max))"
        try await setting.database.script("CREATE ROLE \(name) LOGIN; GRANT outbox_producer TO \(name)")
        let target = try ConnectionTarget(
            setting.database.connectionString.replacing("user=outbox", with: "user=\(name)"))
        let (holder, waiting) = (try ConnectionPool(target, size: 1), try ConnectionPool(target, size: 1))
        let worker = try ChildProcess(ChildProcess.outboxctl, ["run"], environment: setting.environment)
        #expect(await worker.waitUntilReady())
        try await holder.run {
            try $0.script(
                """
                SET idle_in_transaction_session_timeout = 0;
                BEGIN; CREATE TEMPORARY VIEW v AS SELECT FROM outbox.\(table)
                """)
        }
        let attack = Task {
            try await waiting.run {
                try $0.script(
                    "SET lock_timeout = 0; CREATE RULE r AS ON INSERT TO outbox.\(table) DO NOTHING",
                    within: .seconds(200))
            }
        }
        #expect(
            try await eventually {
                let (end, output, _) = try await setting.run("doctor", "-o", "json")
                return end == .exit(1) && output.contains("waiting_for_lock") && output.contains("role \(name) ")
                    && output.contains("outbox.\(table),")
            })
        #expect(await eventually { worker.errors.contains("a lock holds others up") && worker.errors.contains(name) })
        try await holder.run { try $0.script("ROLLBACK") }
        await #expect(throws: PostgresError.self) { try await attack.value }
        worker.signal(SIGTERM)
        #expect(await worker.wait() == .exit(0))
        await holder.close()
        await waiting.close()
    }

    @Test(arguments: [["--overlap", "1h"], ["--asymmetric"], ["--overlap", "0s"]])
    func `with another key than the installation's nothing is sealed, and nothing changes`(flags: [String]) async throws
    {
        let setting = try await Setting()
        _ = try await setting.object("endpoint", "create", "e", "--url", "https://example.com/")
        let before = try await setting.database.column("SELECT s::text FROM outbox.secret s ORDER BY id")
        let other = setting.environment.merging(["OUTBOX_SECRET_KEY_FILE": try Daemon.keyFile(Keyring.newKeyLine())]) {
            $1
        }
        for arguments in [
            ["endpoint", "secret", "rotate", "e"] + flags,
            ["endpoint", "update", "e", "--auth", "bearer", "--auth-file", try temporaryFile("token")],
            ["endpoint", "create", "f", "--url", "https://example.com/"],
        ] {
            let (end, _, errors) = try await ChildProcess.run(arguments, environment: other)
            #expect(end == .exit(78), "\(arguments) \(errors)")
            #expect(errors.contains("OUTBOX_SECRET_KEY_FILE"), "\(errors)")
        }
        #expect(try await setting.database.column("SELECT s::text FROM outbox.secret s ORDER BY id") == before)
        #expect(try await setting.database.number("SELECT count(*) FROM outbox.endpoint") == 1)
    }
}
