import Foundation
import Postgres
import Receiver
import TestSupport
import Testing

/// Limits, pause and order as an operator handles them with the real binary.
@Suite(.timeLimit(.minutes(15))) struct FlowTests {
    @Test func `limits and order are set, shown, changed and taken away`() async throws {
        let setting = try await Setting()
        let url = "http://127.0.0.1:9/"
        let made = try await setting.object(
            "endpoint", "create", "e", "--url", url, "--max-concurrency", "3", "--rate", "60/30s", "--rate",
            "1/s burst 3",
            "--ordered", "--on-dead", "skip")
        #expect(made["max_concurrency"] as? Int == 3)
        #expect(made["rates"] as? [String] == ["60/30s", "1/1s burst 3"])
        #expect(made["ordered"] as? Bool == true)
        #expect(made["on_dead"] as? String == "skip")
        let changed = try await setting.object(
            "endpoint", "update", "e", "--max-concurrency", "0", "--rate", "none", "--no-ordered")
        #expect(changed["max_concurrency"] is NSNull)
        #expect(changed["rates"] as? [String] == [])
        #expect(changed["ordered"] as? Bool == false)
        #expect(changed["on_dead"] as? String == "skip")
    }

    @Test(arguments: [
        (
            ["endpoint", "pause", "e", "--reason", "r", "--from", "+2h", "--until", "+1h"],
            "the pause ends before it begins"
        ),
        (["endpoint", "pause", "e", "--reason", "r", "--until", "tomorrow"], "tomorrow"),
        (["endpoint", "pause", "e", "--reason", "r", "--resume-rate", "fast"], "\"fast\" is not a rate"),
        (["endpoint", "pause", "e"], "--reason"),
        (["endpoint", "resume", "e", "--rate", "0/s"], "\"0/s\" is not a rate"),
        (["endpoint", "update", "e", "--rate", "60/30"], "\"60/30\" is not a rate"),
        (["endpoint", "update", "e", "--max-concurrency=-1"], "or none"),
        (["endpoint", "update", "e", "--template-kind", "xml"], "--template @file"),
        (["endpoint", "update", "e", "--on-dead", "wait"], "wait"),
        (["delivery", "explain", "1"], "a delivery is an event and an endpoint"),
    ])
    func `what makes no sense is refused with a reason`(arguments: [String], reason: String) async throws {
        let setting = try await Setting()
        _ = try await setting.run("endpoint", "create", "e", "--url", "http://127.0.0.1:9/")
        let (end, _, errors) = try await ChildProcess.run(arguments, environment: setting.environment)
        #expect(end == .exit(64), "\(errors)")
        #expect(errors.contains(reason), "\(errors)")
    }

    @Test func `a pause is announced, explained, and ended at a rate`() async throws {
        let setting = try await Setting()
        let ledger = try Ledger()
        defer { ledger.receiver.stop() }
        _ = try await setting.object("endpoint", "create", "e", "--url", ledger.url)
        let announced = try await setting.object(
            "endpoint", "pause", "e", "--from", "+1h", "--until", "+2h", "--reason", "CHG-1")
        #expect(announced["state"] as? String == "active")
        #expect(announced["paused_from"] is String && announced["paused_until"] is String)
        let paused = try await setting.object("endpoint", "pause", "e", "--reason", "CHG-2", "--resume-rate", "5/s")
        #expect(paused["state"] as? String == "paused")

        let worker = try ChildProcess(ChildProcess.outboxctl, ["run"], environment: setting.environment)
        #expect(await worker.waitUntilReady())
        try await setting.database.publish(30)
        #expect(try await eventually { try await setting.database.deliveries("paused") == 30 })
        let why = try await setting.run("delivery", "explain", "7", "e")
        #expect(why.output.contains("paused: paused by") && why.output.contains("until it is resumed: CHG-2"), "\(why)")
        let id = try #require(try await setting.database.column("SELECT id FROM outbox.endpoint")[0])
        #expect(why.output.contains("outboxctl endpoint resume \(id)"))
        #expect(ledger.all.isEmpty)

        // Ten, ten a second later, and ten more; then everything is as fast as before.
        _ = try await setting.object("endpoint", "resume", "e", "--rate", "10/s")
        #expect(try await eventually { try await setting.database.isDrained() })
        let milliseconds = try await setting.database.number(
            "SELECT (extract(epoch FROM max(started_at) - min(started_at)) * 1000)::int FROM outbox.attempt")
        #expect(milliseconds >= 1800)
        #expect(
            try await eventually {
                try await setting.database.column("SELECT drain_rate FROM outbox.lane") == [nil]
            })
        #expect(ledger.all.count == 30)
        worker.signal(SIGTERM)
        #expect(await worker.wait() == .exit(0))
        #expect(
            try await setting.database.column(
                "SELECT action || coalesce(' ' || reason, '') FROM outbox.audit ORDER BY id")
                == ["endpoint.create", "endpoint.pause CHG-1", "endpoint.pause CHG-2", "endpoint.resume"])
    }

    @Test func `disabling says beforehand what becomes of the deliveries, and deleting asks`() async throws {
        let setting = try await Setting()
        _ = try await setting.object("endpoint", "create", "e", "--url", "http://127.0.0.1:9/")
        _ = try await setting.object("endpoint", "pause", "e", "--reason", "r")
        try await setting.database.publish(3)
        let worker = try ChildProcess(ChildProcess.outboxctl, ["run"], environment: setting.environment)
        #expect(try await eventually { try await setting.database.deliveries("paused") == 3 })
        let disabled = try await setting.run("endpoint", "disable", "e", "--reason", "gone")
        #expect(disabled.end == .exit(0))
        #expect(disabled.errors.contains("3 deliveries wait for it and stay"), "\(disabled.errors)")
        let refused = try await setting.run("endpoint", "delete", "e")
        #expect(refused.end == .exit(5))
        #expect(refused.errors.contains("3 deliveries wait for \"e\" and would be cancelled"), "\(refused.errors)")
        #expect(try await setting.run("endpoint", "delete", "e", "--yes").end == .exit(0))
        #expect(try await setting.database.deliveries("cancelled") == 3)
        #expect(await worker.waitUntilReady())
        worker.signal(SIGTERM)
        #expect(await worker.wait() == .exit(0))
    }

    @Test func `explain names what holds a delivery, whatever it is, and the command that lets it go`() async throws {
        let setting = try await Setting()
        @Sendable func explain(_ event: Int, _ endpoint: String) async throws -> [[String: String?]] {
            let (end, output, errors) = try await setting.run("delivery", "explain", "\(event)", endpoint, "-o", "json")
            #expect(end == .exit(0), "\(errors)")
            return try JSONDecoder().decode([[String: String?]].self, from: Data(output.utf8))
        }
        @Sendable func reasons(_ event: Int, _ endpoint: String) async throws -> [String] {
            try await explain(event, endpoint).compactMap { $0["reason"] ?? nil }
        }
        let ledger = try Ledger { request, _ in
            Receiver.Response(String(decoding: request.body, as: UTF8.self).contains("bad") ? 500 : 200)
        }
        defer { ledger.receiver.stop() }
        _ = try await setting.object(
            "endpoint", "create", "e", "--url", ledger.url, "--ordered", "--event-type", "t", "--retry-schedule", "1h")
        try await setting.database.script(
            """
            SELECT outbox.publish('t', '"bad"', ordering_key => 'a'); SELECT outbox.publish('t', '2', ordering_key => 'a');
            SELECT outbox.publish('t', '3'); SELECT outbox.publish('other', '4');
            SELECT outbox.publish('t', '5', deliver_at => now() + interval '1 day')
            """)
        #expect(try await reasons(1, "e") == ["not_cut"])
        let worker = try ChildProcess(ChildProcess.outboxctl, ["run"], environment: setting.environment)
        #expect(
            try await eventually {
                try await setting.database.number("SELECT count(*) FROM outbox.attempt") == 2
            })
        #expect(try await eventually { try await reasons(1, "e") == ["retry"] })
        let behind = try await explain(2, "e")
        #expect(behind.map { $0["detail"] } == ["behind 1:e of ordering key a"])
        let id = try #require(try await setting.database.column("SELECT id FROM outbox.endpoint")[0])
        #expect(behind.map { $0["fix"] } == ["outboxctl delivery explain 1 \(id)"])
        #expect(try await reasons(3, "e") == ["delivered"])
        let foreign = try await explain(4, "e")
        #expect(foreign.first?["reason"] == "no_match")
        #expect(foreign.first?["detail"]??.contains("its type is other, the endpoint takes t") == true)
        #expect(try await reasons(5, "e") == ["scheduled"])
        let pulled = try await setting.run("delivery", "retry", "2", "e")
        #expect(pulled.end == .exit(5))
        #expect(pulled.errors.contains("outboxctl delivery explain 2 "), "\(pulled.errors)")
        let absent = try await setting.run("delivery", "explain", "99", "e")
        #expect(absent.end == .exit(4))

        // The second failure parks it, and it blocks its key until it is dropped.
        _ = try await setting.run("delivery", "retry", "1", "e")
        #expect(try await eventually { try await reasons(1, "e") == ["dead"] })
        #expect(try await explain(2, "e").first?["detail"] == "behind 1:e, a dead letter, of ordering key a")
        let dropped = try await setting.object("dead", "drop", "1", "e", "--reason", "CHG-3")
        #expect(dropped["state"] as? String == "cancelled")
        #expect(try await eventually { try await reasons(2, "e") == ["delivered"] })
        #expect(try await reasons(1, "e") == ["cancelled"])
        #expect(try await setting.run("dead", "drop", "1", "e").end == .exit(4))
        #expect(try await setting.run("dead", "drop", "2", "e").end == .exit(4))
        #expect(await worker.waitUntilReady())
        worker.signal(SIGTERM)
        #expect(await worker.wait() == .exit(0))
    }
}
