import Foundation
import Outbox
import Postgres
import Receiver
import StandardWebhooks
import TestSupport
import Testing

/// Destinations as an operator handles them with the real binary.
@Suite(.timeLimit(.minutes(15))) struct DestinationTests {
    private static let isRoot = getuid() == 0

    @Test(arguments: [
        ("caf\u{E9}".data(using: .isoLatin1), "is not UTF-8"), (Data([0xEF, 0xBB, 0xBF, 0x61]), "byte order mark"),
        (Data("a\u{1}b".utf8), "control character"), (Data("a\nb\n".utf8), "control character"),
        (Data(count: 3), "control character"), (Data(repeating: 0x61, count: 5000), "has 5000 bytes"),
    ]) func `a credential that is not what it looks like is refused by the name of its file`(
        content: Data?, reason: String
    ) async throws {
        let setting = try await Setting()
        let file = try temporaryFile("")
        try #require(content).write(to: URL(fileURLWithPath: file))
        for arguments in [
            ["--auth", "bearer", "--auth-file", file], ["--auth", "basic", "--auth-user", "u", "--auth-file", file],
            ["--auth", "oauth2", "--token-url", "https://example.com/t", "--client-id", "c", "--auth-file", file],
            ["--secret-header", "X-S: @\(file)"],
        ] {
            let (end, _, errors) = try await ChildProcess.run(
                ["endpoint", "create", "e", "--url", "https://example.com/"] + arguments,
                environment: setting.environment)
            #expect(end == .exit(64) && errors.contains("the file \(file) ") && errors.contains(reason), "\(errors)")
        }
    }

    @Test func `a time that is none, and a pause that would be over, are refused`() async throws {
        let setting = try await Setting()
        _ = try await setting.run("endpoint", "create", "e", "--url", "https://example.com/")
        for time in ["2026-02-30T00:00:00Z", "294276-01-01T00:00:00Z", "2026-01-01T24:00:00Z"] {
            for command in [
                ["endpoint", "pause", "e", "--reason", "r", "--until", time], ["event", "list", "--until", time],
            ] {
                let (end, _, errors) = try await ChildProcess.run(command, environment: setting.environment)
                #expect(end == .exit(64) && errors.contains(time), "\(command): \(errors)")
            }
        }
        let past = try await setting.run("endpoint", "pause", "e", "--reason", "r", "--until", "2020-01-01T00:00:00Z")
        #expect(past.end == .exit(64) && past.errors.contains("would be over already"), "\(past.errors)")
        #expect(try await setting.object("endpoint", "get", "e")["state"] as? String == "active")
    }

    @Test func `an egress proxy may want a user and a password`() async throws {
        // It lets nobody through: what it was told is what counts.
        let proxy = try RawReceiver { _ in Array("HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n".utf8) }
        let place = proxy.url.replacing("http://", with: "").replacing("/", with: "")
        let setting = try await Setting([
            "OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8", "OUTBOX_EGRESS_PROXY": "http://us%40er:pa%3Ass@\(place)",
        ])
        _ = try await setting.run("endpoint", "create", "e", "--url", "https://example.com/")
        let (_, _, errors) = try await setting.run("endpoint", "test", "e")
        #expect(errors.contains("wants other credentials"), "\(errors)")
        let pair = Data("us@er:pa:ss".utf8).base64EncodedString()
        #expect(proxy.requests.first?.contains("Proxy-Authorization: Basic \(pair)") == true, "\(proxy.requests)")
        #expect(!errors.contains("pa:ss") && !errors.contains("pa%3Ass"))
        proxy.stop()
    }

    /// The system then says of its addresses what it says when there are no ports left, which would
    /// be our own shortage.
    @Test(.enabled(if: isRoot, "network namespaces need root"))
    func `where IPv6 is switched off, a receiver that is not there is charged all the same`() async throws {
        let setting = try await Setting(["OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8,::/0"])
        for (name, url) in [
            ("six", "http://[2001:db8::1]:1/"), ("loop", "http://[::1]:1/"), ("both", "http://localhost:1/"),
        ] {
            let made = try await setting.run("endpoint", "create", name, "--url", url)
            #expect(made.end == .exit(0), "\(made.errors)")
            let child = try ChildProcess(
                "/usr/bin/unshare",
                [
                    "--net", "sh", "-c",
                    "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; ip link set lo up; exec \"$0\" endpoint test \"$1\"",
                    ChildProcess.outboxctl, name,
                ], environment: setting.environment)
            #expect(await child.wait() == .exit(1))
            #expect(child.errors.contains("failed: connect: "), "\(name): \(child.errors)")
            child.remove()
        }
    }

    @Test(.enabled(if: isRoot, "network namespaces need root"))
    func `a name is judged by what it leads to, when it leads there`() async throws {
        let setting = try await Setting([:])
        let made = try await setting.run("endpoint", "create", "names", "--url", "https://example.com/")
        #expect(made.end == .exit(0), "\(made.errors)")
        let script = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .appendingPathComponent("Servers/names.py").path
        let child = try ChildProcess(
            "/usr/bin/unshare", ["--net", "--mount", "python3", script, ChildProcess.outboxctl, "names"],
            environment: setting.environment)
        #expect(await child.wait() == .exit(0), "\(child.errors)")
        struct EndpointTest: Decodable { let exit: Int; let error: String; let connected: [String] }
        let trials = try JSONDecoder().decode([String: [EndpointTest]].self, from: Data(child.output.utf8))
        child.remove()
        let publicAddress = "93.184.216.34"
        for (name, trial) in trials.flatMap({ pair in pair.value.map { (pair.key, $0) } }) {
            // Whatever a name says: nothing but the public address is ever connected to.
            #expect(trial.connected.allSatisfy { $0 == publicAddress }, "\(name) \(trial.connected)")
        }
        for name in [
            "private.test", "metadata.test", "loop.test", "six.test", "mapped.test", "nat64.test", "chain.test",
            "middle.test", "zero.test", "own.test",
        ] {
            let trial = try #require(trials[name]?.first)
            #expect(trial.exit == 1 && trial.error.contains("blocked_address"), "\(name): \(trial.error)")
            #expect(trial.connected == [], "\(name)")
        }
        #expect(trials["public.test"]?.first?.exit == 0, "\(trials["public.test"]?.first?.error ?? "")")
        // On a slow machine a connection is begun a second time while the first one is on its way.
        #expect(Set(trials["public.test"]?.first?.connected ?? []) == [publicAddress])
        // A name that changes its mind: good the first time, refused the second.
        #expect(trials["rebind.test"]?.map(\.exit) == [0, 1])
    }

    @Test(arguments: [
        ("http://127.0.0.1:18080/", "a private, local or otherwise special address"),
        ("http://localhost/", "a private, local or otherwise special address"),
        ("http://169.254.169.254/latest/meta-data", "special address"),
        ("https://example.com:6379/", "has the port 6379"),
        ("ftp://example.com/", "must begin with https:// or http://"),
        ("http://user:pw@example.com/", "contains a user name"),
    ])
    func `a URL that can never be called is refused when it is saved`(url: String, reason: String) async throws {
        let setting = try await Setting([:])
        for arguments in [["create", "e"], ["update", "known"]] {
            _ = try await setting.run("endpoint", "create", "known", "--url", "https://example.com/")
            let (end, _, errors) = try await ChildProcess.run(
                ["endpoint"] + arguments + ["--url", url], environment: setting.environment)
            #expect(end == .exit(64), "\(errors)")
            #expect(errors.contains(reason), "\(errors)")
            #expect(!errors.contains("pw"))
        }
    }

    @Test func `secrets rotate with an overlap, are shown masked, and can be retired`() async throws {
        let setting = try await Setting()
        let ledger = try Ledger()
        defer { ledger.receiver.stop() }
        let created = try await setting.run("endpoint", "create", "billing", "--url", ledger.url, "-o", "json")
        let first = try #require(
            (try JSONSerialization.jsonObject(with: Data(created.output.utf8)) as? [String: Any])?["secret"] as? String)
        let rotated = try await setting.run("endpoint", "secret", "rotate", "billing", "-o", "json")
        let second = try #require(
            (try JSONSerialization.jsonObject(with: Data(rotated.output.utf8)) as? [String: Any])?["secret"] as? String)
        // By default the old one goes on for a day.
        #expect(
            try await setting.database.number(
                "SELECT round(extract(epoch FROM expires_at - clock_timestamp()) / 3600)::int FROM outbox.secret WHERE expires_at < 'infinity'"
            ) == 24)
        let third = try await setting.run("endpoint", "secret", "rotate", "billing", "--asymmetric", "-o", "json")
        let publicKey = try #require(
            (try JSONSerialization.jsonObject(with: Data(third.output.utf8)) as? [String: Any])?["public_key"]
                as? String)

        let shown = try await setting.run("endpoint", "secret", "show", "billing", "-o", "json")
        let rows = try #require(try JSONSerialization.jsonObject(with: Data(shown.output.utf8)) as? [[String: String]])
        #expect(rows.count == 3)
        #expect(!shown.output.contains(first.dropFirst(6)) && !shown.output.contains(second.dropFirst(6)))
        #expect(rows.contains { $0["public_key"] == publicKey })
        let revealed = try await setting.run("endpoint", "secret", "show", "billing", "--reveal", "--reason", "CHG-7")
        #expect(revealed.output.contains(first) && revealed.output.contains(second))
        #expect(
            try await setting.database.column("SELECT reason FROM outbox.audit WHERE action = 'endpoint.secret.reveal'")
                == ["CHG-7"])

        _ = try await setting.run("endpoint", "test", "billing")
        _ = try await setting.run("endpoint", "secret", "retire", "billing")
        _ = try await setting.run("endpoint", "test", "billing")
        let signatures = try ledger.all.map { try #require($0["webhook-signature"]).split(separator: " ") }
        #expect(signatures.map { $0.map { $0.prefix { $0 != "," } } } == [["v1", "v1", "v1a"], ["v1", "v1a"]])
        for (key, valid) in [(first, [true, false]), (second, [true, true]), (publicKey, [true, true])] {
            let verifier = WebhookVerifier(keys: [try VerificationKey(key)])
            for (request, isValid) in zip(ledger.all, valid) {
                func verify() throws { try verifier.verify(request.body, headers: { request[$0] }) }
                if isValid {
                    try verify()
                } else {
                    #expect(throws: WebhookVerifier.VerificationError.wrongSignature) { try verify() }
                }
            }
        }
    }

    @Test func `an old secret is gone when its overlap is, and the last one cannot be retired`() async throws {
        let setting = try await Setting()
        let ledger = try Ledger()
        defer { ledger.receiver.stop() }
        let made = try await setting.run("endpoint", "create", "billing", "--url", ledger.url)
        #expect(made.end == .exit(0), "\(made.errors)")
        let daemon = try ChildProcess(ChildProcess.outboxctl, ["run"], environment: setting.environment)
        #expect(await daemon.waitUntilReady())
        _ = try await setting.run("endpoint", "secret", "rotate", "billing", "--overlap", "30s")
        try await setting.database.publish()
        #expect(await eventually { ledger.all.count == 1 })
        // By the database's clock, and without anything that would make the worker read its
        // endpoints again.
        #expect(
            try await eventually {
                try await setting.database.number(
                    "SELECT count(*) FROM outbox.secret WHERE expires_at < clock_timestamp()") == 1
            })
        try await setting.database.publish()
        #expect(await eventually { ledger.all.count == 2 })
        #expect(ledger.all.map { $0["webhook-signature"]?.split(separator: " ").count } == [2, 1])
        daemon.signal(SIGTERM)
        #expect(await daemon.wait() == .exit(0))
        daemon.remove()
        let shown = try await setting.run("endpoint", "secret", "show", "billing", "-o", "json")
        let rows = try #require(try JSONSerialization.jsonObject(with: Data(shown.output.utf8)) as? [[String: String]])
        let last = try await setting.run(
            "endpoint", "secret", "retire", "billing", "--id", try #require(rows.first?["id"]))
        #expect(last.end == .exit(5) && last.errors.contains("unsigned"), "\(last.errors)")
    }

    @Test
    func `an endpoint shows its client certificate and trusts its own authority, from the command line to the wire`()
        async throws
    {
        let setting = try await Setting()
        let servers = try await TLSServers()
        let certificate = ["--client-cert-file", try temporaryFile(servers.pem("client"))]
        let files =
            ["--ca-file", try temporaryFile(servers.pem("ca"))] + certificate
            + ["--client-key-file", try temporaryFile(servers.pem("client", key: true))]
        let made = try await ChildProcess.run(
            ["endpoint", "create", "mutual", "--url", servers.url("client_required")] + files,
            environment: setting.environment)
        #expect(made.end == .exit(0), "\(made.errors)")
        let good = try await setting.run("endpoint", "test", "mutual")
        #expect(good.end == .exit(0) && good.output.contains(#"{"client": ["client"]}"#), "\(good.errors)")
        let shown = try await setting.run("endpoint", "get", "mutual", "-o", "json")
        #expect(!shown.output.contains("PRIVATE KEY") && shown.output.contains("CERTIFICATE"))
        #expect(shown.output.contains(#""client_key": "***""#), "\(shown.output)")
        // In the database the key is sealed.
        #expect(
            try await setting.database.number(
                "SELECT count(*) FROM outbox.endpoint n, outbox.secret s WHERE n::text || encode(s.sealed, 'escape') LIKE '%PRIVATE KEY%'"
            ) == 0)
        let without = try await setting.run("endpoint", "update", "mutual", "--client-cert-file", "none")
        #expect(without.end == .exit(0), "\(without.errors)")
        let refused = try await setting.run("endpoint", "test", "mutual")
        // A server that refuses after the handshake (TLS 1.3) may reset the connection before its
        // reason can be read.
        let reasons = ["tls_client_certificate", "connection_lost"]
        #expect(refused.end == .exit(1) && reasons.contains(where: refused.errors.contains), "\(refused.errors)")
        let half = try await ChildProcess.run(
            ["endpoint", "create", "half", "--url", "https://example.com/"] + certificate,
            environment: setting.environment)
        #expect(half.end == .exit(64) && half.errors.contains("belong together"), "\(half.errors)")
        await servers.stop()
    }

    /// Whatever happens to deliveries, and however much is logged.
    @Test func `no secret appears in any log, list, error, audit row or attempt`() async throws {
        let setting = try await Setting([
            "OUTBOX_ALLOW_NETWORKS": "127.0.0.0/8", "OUTBOX_LOG_LEVEL": "trace", "OUTBOX_POLL_INTERVAL": "50ms",
        ])
        let ledger = try Ledger { request, _ in
            switch request["Outbox-Attempt"]?.first {
            case "1": Receiver.Response(500)
            case "2": Receiver.Response(manner: .hangUp)
            case "3": Receiver.Response(401)
            default: Receiver.Response(200)
            }
        }
        defer { ledger.receiver.stop() }
        let secret = try temporaryFile("canary-secret")
        let url = ledger.url + "/hook?token=canary-query"
        let common = ["--retry-schedule", "10ms,10ms,10ms,10ms", "--secret-header", "X-Key: @" + secret]
        var said = ""
        for (name, flags) in [
            ("bearer", ["--url", url, "--auth", "bearer", "--auth-file", secret]),
            ("basic", ["--url", url, "--auth", "basic", "--auth-user", "u", "--auth-file", secret]),
            ("verbatim", ["--url", url, "--auth", "verbatim", "--auth-file", secret]),
            ("header", ["--url", url, "--auth", "header", "--auth-header", "X-Own", "--auth-file", secret]),
            (
                "oauth",
                ["--url", url, "--auth", "oauth2", "--auth-file", secret, "--client-id", "c", "--token-url", url]
            ),
            (
                "unreachable",
                ["--url", "http://127.0.0.1:9/?token=canary-query", "--auth", "bearer", "--auth-file", secret]
            ),
        ] {
            let made = try await ChildProcess.run(
                ["endpoint", "create", name] + flags + common, environment: setting.environment)
            #expect(made.end == .exit(0), "\(made.errors)")
            said += made.output + made.errors
        }
        let daemon = try ChildProcess(ChildProcess.outboxctl, ["run"], environment: setting.environment)
        #expect(await daemon.waitUntilReady())
        try await setting.database.publish(5)
        // Some of each kind of failure at every endpoint; those that always fail end with an open
        // breaker.
        #expect(
            try await eventually {
                try await setting.database.number(
                    """
                    SELECT count(*) FROM (SELECT FROM outbox.attempt WHERE outcome = 'failure'
                                           GROUP BY endpoint_id HAVING count(*) >= 5) e
                    """) == 6
            })
        daemon.signal(SIGTERM)
        #expect(await daemon.wait() == .exit(0))
        said += daemon.output + daemon.errors
        daemon.remove()
        for arguments in [
            ["endpoint", "list", "-o", "json"], ["endpoint", "get", "bearer"], ["endpoint", "test", "basic"],
            ["endpoint", "test", "unreachable", "-o", "json"], ["endpoint", "secret", "show", "bearer"],
            ["delivery", "list", "-o", "json"], ["attempt", "list", "-o", "json"], ["dead", "list", "-o", "json"],
            ["attempt", "curl", "1", "bearer"], ["config"], ["status"], ["doctor"],
        ] {
            let done = try await ChildProcess.run(arguments, environment: setting.environment)
            said += done.output + done.errors
        }
        // The URL's token is part of the endpoint's row, where the worker reads it; nowhere else.
        for table in ["attempt", "delivery", "dead_letter", "audit", "batch", "worker", "lane"] {
            said += try await setting.database.column("SELECT t::text FROM outbox.\(raw: table) t").compactMap(\.self)
                .joined()
        }
        for canary in ["canary-secret", "canary-query", Data("u:canary-secret".utf8).base64EncodedString()] {
            #expect(!said.contains(canary), "\(said.components(separatedBy: "\n").first { $0.contains(canary) } ?? "")")
        }
        #expect(ledger.all.contains { $0["Authorization"] == "Bearer canary-secret" })
    }

    @Test func `an update changes the rules that it names and leaves the others`() async throws {
        let setting = try await Setting()
        let ledger = try Ledger { _, _ in Receiver.Response(201, body: Array(#"{"access":"refused"}"#.utf8)) }
        defer { ledger.receiver.stop() }
        _ = try await setting.run(
            "endpoint", "create", "policy", "--url", ledger.url, "--response", "json", "--rule", "string access granted"
        )
        let updated = try await setting.run("endpoint", "update", "policy", "--success", "201", "-o", "json")
        #expect(updated.end == .exit(0), "\(updated.errors)")
        let asked = try await setting.run("endpoint", "evaluate", "policy")
        #expect(asked.end == .exit(1) && asked.output.contains("string access granted"), "\(asked.output)")
        let stray = try await setting.run("endpoint", "update", "policy", "--scope", "x")
        #expect(stray.end == .exit(64), "\(stray.errors)")
    }

    @Test func `what could never be called is refused, and the endpoint stays as it was`() async throws {
        let setting = try await Setting()
        _ = try await setting.run("endpoint", "create", "e", "--url", "https://example.com/%typo%")
        let switched = try await setting.run("endpoint", "update", "e", "--url-parameters")
        #expect(switched.end == .exit(64) && switched.errors.contains("%typo%"), "\(switched.errors)")
        #expect(try await setting.database.column("SELECT url_parameters::text FROM outbox.endpoint") == ["false"])
    }

    @Test func `an operator may try an endpoint, and no trial counts as health`() async throws {
        let setting = try await Setting()
        let ledger = try Ledger()
        defer { ledger.receiver.stop() }
        try await setting.database.script(
            """
            DO $$ BEGIN CREATE ROLE trial_operator LOGIN; EXCEPTION WHEN duplicate_object THEN END $$;
            GRANT outbox_operator TO trial_operator
            """)
        var environment = setting.environment
        environment["DATABASE_URL"] = setting.database.connectionString + " user=trial_operator"
        for arguments in [
            ["endpoint", "create", "e", "--url", ledger.url, "--secret-header", "X: @\(try temporaryFile("s"))"],
            ["endpoint", "update", "e", "--description", "mine"], ["endpoint", "test", "e"],
            ["endpoint", "evaluate", "e"],
            ["endpoint", "secret", "rotate", "e"], ["endpoint", "secret", "show", "e"],
        ] {
            let (end, _, errors) = try await ChildProcess.run(arguments, environment: environment)
            #expect(end == .exit(0), "\(arguments) \(errors)")
        }
        #expect(
            try await setting.database.column("SELECT worker FROM outbox.attempt") == [
                "trial_operator", "trial_operator",
            ])
        #expect(try await setting.database.column("SELECT attempts_5m::text FROM outbox.endpoint_health") == ["0"])
        await #expect(throws: PostgresError.self) {
            try await setting.database.script(
                "SELECT outbox.record_endpoint_test(gen_random_uuid(), 1, 'first', gen_random_uuid(), now(), '{}', true, 200, NULL, NULL, NULL, NULL)"
            )
        }
    }

    @Test func `sign and verify agree, and a changed body is not verified`() async throws {
        let setting = try await Setting()
        let secret = try temporaryFile("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
        let signed = try await setting.run(
            "sign", "--secret-file", secret, "--id", "msg_p5jXN8AQM9LWM0D4loKWxJek", "--timestamp", "1614265330",
            input: #"{"test": 2432232314}"#)
        #expect(signed.output.contains("webhook-signature: v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=\n"))
        for (body, more, exit, text) in [
            (#"{"test": 2432232314}"#, ["--any-time"], ChildProcess.End.exit(0), "verified"),
            (#"{"test": 2432232315}"#, ["--any-time"], .exit(1), "no signature is valid"),
            (#"{"test": 2432232314}"#, [], .exit(1), "too old"),
        ] {
            let (end, output, errors) = try await ChildProcess.run(
                [
                    "verify", "--secret-file", secret, "--id", "msg_p5jXN8AQM9LWM0D4loKWxJek", "--timestamp",
                    "1614265330",
                    "--signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
                ] + more, environment: setting.environment, input: body)
            #expect(end == exit)
            #expect((output + errors).contains(text), "\(output) \(errors)")
        }
    }

    @Test func `templates are listed, shown, linted and rendered`() async throws {
        let setting = try await Setting()
        let presets = try await setting.run("template", "presets", "-o", "jsonl")
        #expect(presets.output.split(separator: "\n").count == Preset.all.count)
        for preset in Preset.all {
            let shown = try await setting.run("template", "show", preset.name)
            #expect(shown.output.contains(preset.template))
            let linted = try await setting.run("template", "lint", "--preset", preset.name)
            #expect(linted.end == .exit(0), "\(preset.name): \(linted.errors)")
            let tested = try await setting.run("template", "test", "--preset", preset.name)
            #expect(tested.end == .exit(0), "\(preset.name): \(tested.errors)")
        }
        let unknown = try await setting.run("template", "show", "slak")
        #expect(unknown.end == .exit(4) && unknown.errors.contains("Did you mean \"slack\"?"))
        let typo = try await setting.run("template", "lint", "--template", #"{"a": "%tipe%"}"#)
        #expect(typo.end == .exit(64))
        #expect(
            typo.errors.contains("line 1, column 8: there is no parameter %tipe%. Did you mean %type%?"),
            "\(typo.errors)")
        let rendered = try await setting.run(
            "template", "render", "--template", #"{"u":"%username%","n":%after.n%}"#, "--data", #"{"n":1.0}"#,
            "--context", #"{"username":"tom"}"#)
        #expect(rendered.output == #"{"u":"tom","n":1.0}"# + "\n")
        let large = try temporaryFile(#"{"text":"\#(String(repeating: "x", count: 29_000))"}"#)
        let refused = try await setting.run("template", "lint", "--preset", "teams-workflow", "--data", "@" + large)
        #expect(refused.end == .exit(64) && refused.errors.contains("28000"), "\(refused.errors)")
        let long = try temporaryFile(#"{"text":"\#(String(repeating: "x", count: 40_001))"}"#)
        let warned = try await setting.run("template", "lint", "--preset", "slack", "--data", "@" + long)
        #expect(warned.end == .exit(0) && warned.errors.contains("more than 40000"), "\(warned.errors)")
    }

    @Test func `a failed rule can be final, and an event can be tried again by hand`() async throws {
        let setting = try await Setting()
        let ledger = try Ledger { _, _ in Receiver.Response(200, body: Array("no".utf8)) }
        defer { ledger.receiver.stop() }
        let made = try await setting.object(
            "endpoint", "create", "e", "--url", ledger.url, "--rule", "text ok", "--rule-failure-final")
        #expect((made["response_rules"] as? [String: Any])?["rule_failure_final"] as? Bool == true, "\(made)")
        let event = try #require(try await setting.database.publish(after: #"{"n":"unmistakable"}"#).first)
        let worker = try ChildProcess(ChildProcess.outboxctl, ["run"], environment: setting.environment)
        #expect(try await eventually { try await setting.database.deliveries("dead") == 1 })
        #expect(
            try await setting.database.column("SELECT reason || ' ' || attempts FROM outbox.dead_letter") == [
                "permanent 1"
            ])
        let tried = try await setting.run("endpoint", "test", "e", "--event", "\(event)")
        #expect(tried.end == .exit(1), "\(tried.output)")
        #expect(ledger.all.count == 2)
        #expect(ledger.all.allSatisfy { String(decoding: $0.body, as: UTF8.self).contains("unmistakable") })
        #expect(Set(ledger.all.map { $0["webhook-id"] }).count == 1)
        #expect(await worker.waitUntilReady())
        worker.signal(SIGTERM)
        #expect(await worker.wait() == .exit(0))
    }

    @Test func `the database itself is no place to send to, also where its network is allowed`() async throws {
        let setting = try await Setting()
        let socket = try #require(setting.database.connectionString.split(separator: "'").dropFirst().first)
        let name = try #require(setting.database.connectionString.split(separator: "=").last)
        let proxy = try CuttingProxy(socketPath: "\(socket)/.s.PGSQL.5432", plan: [])
        defer { proxy.stop() }
        var environment = setting.environment
        environment["DATABASE_URL"] =
            "host=127.0.0.1 port=\(proxy.port) user=outbox dbname=\(name) sslmode=disable gssencmode=disable"
        let (end, _, errors) = try await ChildProcess.run(
            ["endpoint", "create", "e", "--url", "http://127.0.0.1:\(proxy.port)/"], environment: environment)
        #expect(end == .exit(64), "\(errors)")
        #expect(errors.contains("leads to this service itself or to its database"), "\(errors)")
    }

    @Test func `a secret is never taken from the command line`() async throws {
        let setting = try await Setting()
        let (end, _, errors) = try await setting.run(
            "endpoint", "create", "e", "--url", "https://example.com/", "--secret-header", "X-Token: canary")
        #expect(end == .exit(64))
        #expect(!errors.contains("canary"))
    }

    @Test func `requests leave through the egress proxy, and nowhere else`() async throws {
        // The proxy answers CONNECT and then plays the receiver, so that what arrives went through
        // it.
        let seen = try Ledger { request, _ in
            request.method == "CONNECT" ? Receiver.Response(200, body: []) : Receiver.Response(200)
        }
        defer { seen.receiver.stop() }
        let canary = try Ledger()
        defer { canary.receiver.stop() }
        let setting = try await Setting(["OUTBOX_EGRESS_PROXY": seen.url])
        let made = try await setting.run("endpoint", "create", "e", "--url", "http://receiver.example:8080/hook")
        #expect(made.end == .exit(0), "\(made.errors)")
        let good = try await setting.run("endpoint", "test", "e")
        #expect(good.end == .exit(0), "\(good.errors)")
        #expect(seen.all.map(\.method) == ["CONNECT", "POST"])
        #expect(seen.all[0].target == "receiver.example:8080")
        // A literal address is refused here; the proxy never hears of it.
        let (end, _, errors) = try await setting.run("endpoint", "test", "e", "--url", canary.url)
        #expect(end == .exit(1) && errors.contains("special address"), "\(errors)")
        #expect(seen.all.count == 2)
        #expect(canary.all.isEmpty)
    }
}
