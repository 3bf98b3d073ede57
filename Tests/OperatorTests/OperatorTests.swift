import Operator
import Outbox
import OutboxPublishing
import Postgres
import Receiver
import Scheduler
import StandardWebhooks
import TestSupport
import Testing
import Transport

/// What holds whatever door somebody comes through.
@Suite(.timeLimit(.minutes(15))) struct OperatorTests {
    private func desk(_ database: TestDatabase, _ actor: Actor = Actor(.token, "ana@ops")) -> Operator {
        Operator(
            pool: database.pool, actor: actor, keyring: { TestWorker.keyring },
            policy: { AddressPolicy(allowing: ["127.0.0.0/8"].compactMap(Network.init)) })
    }

    /// Runs a worker until so many deliveries are in that state.
    private func run(_ database: TestDatabase, until count: Int, _ state: String) async throws {
        try await TestWorker.run(database) {
            let isSo = try await eventually { try await database.deliveries(state) == count }
            #expect(isSo)
        }
    }

    private func refusal(_ body: () async throws -> Void) async -> Problem? {
        await #expect(throws: Problem.self) { try await body() }
    }

    @Test func `whoever acts stands in every row of the audit log, and in whose session`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { _, _ in Receiver.Response(400) }
        let desk = desk(database)
        var configuration = EndpointConfiguration(name: "e", url: ledger.url)
        configuration.rules.permanent = try StatusSet("400")
        _ = try await desk.endpoints.create(configuration, secret: .generate())
        _ = try await desk.endpoints.update("e") { $0.description = "x" }
        _ = try await desk.endpoints.patch("e", Array(#"{"description":"y"}"#.utf8))
        configuration.description = "z"
        #expect(try await desk.endpoints.replace([(configuration, .generate())]) == [false])
        _ = try await desk.endpoints.export([], reveals: true, reason: nil)
        _ = try await desk.endpoints.pause("e", from: nil, until: nil, rate: nil, reason: "r")
        #expect(try await database.column("SELECT paused_by FROM outbox.lane") == ["token:ana@ops"])
        _ = try await desk.endpoints.resume("e", rate: nil)
        _ = try await desk.endpoints.disable("e", reason: "r")
        _ = try await desk.endpoints.enable("e")
        _ = try await desk.secrets.list("e", reveals: true)
        _ = try await desk.secrets.rotate("e", to: .generate(), overlap: nil, reason: nil)
        _ = try await desk.secrets.retire("e", only: nil, reason: nil)
        let id = try await desk.events.publish(NewEvent(type: "t")).id
        let delivery = DeliveryReference(event: "\(id)", endpoint: "e")
        _ = try await desk.attempts.request(delivery, reveals: true, reason: nil)
        try await run(database, until: 1, "dead")
        #expect(try await desk.dead.replay(delivery, reason: nil) == 1)
        _ = try await desk.deliveries.retry(delivery, reason: nil)
        _ = try await desk.deliveries.cancel(delivery, reason: nil)
        #expect(try await desk.dead.replay(delivery, reason: nil) == 1)
        try await run(database, until: 1, "dead")
        #expect(try await desk.dead.replay(.of(endpoint: "e", fingerprint: nil), reason: "INC-1") == 1)
        try await run(database, until: 1, "dead")
        _ = try await desk.dead.drop(delivery, reason: nil)
        var wish = EndpointTestUseCases.Wish()
        (wish.url, wish.reveals) = (ledger.url + "/other", true)
        _ = try await desk.endpointTests.run("e", wish) { try Transport(policy: $0, capacity: 2) }
        try await desk.endpoints.delete("e", cancelsWaiting: true, reason: nil)

        let rows = try await database.column(
            "SELECT action || ' ' || actor FROM outbox.audit WHERE session = session_user ORDER BY id")
        let actions = [
            "endpoint.create", "endpoint.update", "endpoint.update", "endpoint.update", "endpoint.reveal",
            "endpoint.pause", "endpoint.resume", "endpoint.disable", "endpoint.enable", "endpoint.secret.reveal",
            "endpoint.secret.rotate", "endpoint.secret.retire", "attempt.curl.reveal", "dead.replay", "delivery.retry",
            "delivery.cancel", "dead.replay", "dead.replay", "dead.drop", "endpoint.test.reveal", "endpoint.delete",
        ]
        #expect(rows == actions.map { "\($0) token:ana@ops" })
        ledger.receiver.stop()
    }

    @Test func `without a door the role of the session is the actor, and a worker is its service`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger { _, _ in Receiver.Response(410) }
        _ = try await desk(database, .session).endpoints.create(
            EndpointConfiguration(name: "e", url: ledger.url), secret: .generate())
        try await TestWorker.run(database) {
            try await database.publish()
            #expect(
                try await eventually {
                    try await database.number("SELECT count(*) FROM outbox.audit WHERE action = 'endpoint.disable'")
                        == 1
                })
        }
        let rows = try await database.column("SELECT actor FROM outbox.audit ORDER BY id").compactMap(\.self)
        let role = try await database.column("SELECT session_user::text").first ?? nil
        #expect(rows.first == "database:\(role ?? "")" && rows.last?.hasPrefix("service:") == true)
        ledger.receiver.stop()
    }

    @Test func `nobody says that they are a role of the database, or nothing`() async throws {
        let database = try await TestCluster.database()
        for actor in ["database:postgres", "token:", "ana", "", "TOKEN:x"] {
            let error = await #expect(throws: PostgresError.self) {
                try await database.pool.query(
                    "SELECT outbox.record_audit(\(actor), 'a', 'b', NULL, '{}')::text", of: String.self
                )
            }
            #expect(error?.sqlState == "OB002")
        }
    }

    @Test func `what costs deliveries or concerns many has to be meant`() async throws {
        let database = try await TestCluster.database()
        let desk = desk(database)
        _ = try await desk.endpoints.create(
            EndpointConfiguration(name: "e", url: "http://127.0.0.1:1/"), secret: .generate())
        _ = try await desk.endpoints.pause("e", from: nil, until: nil, rate: nil, reason: "r")
        try await TestWorker.run(database) {
            try await database.publish(3)
            let isWaiting = try await eventually { try await database.deliveries("paused") == 3 }
            #expect(isWaiting)
        }
        let waiting = await refusal { try await desk.endpoints.delete("e", cancelsWaiting: false, reason: nil) }
        #expect(waiting?.code == .deliveriesWaiting && waiting?.message.contains("3 deliveries") == true)
        #expect(waiting?.next == UseCase("endpoint.disable", "e"))
        let unreasoned = await refusal { _ = try await desk.dead.replay(.all, reason: nil) }
        #expect(unreasoned?.code == .invalidValue)
        let unfiltered = await refusal {
            _ = try await desk.dead.replay(.of(endpoint: nil, fingerprint: nil), reason: "r")
        }
        #expect(unfiltered?.code == .filterRequired)
    }

    @Test func `a refusal has a code, and says what is wrong`() async throws {
        let database = try await TestCluster.database()
        let desk = desk(database)
        let made = EndpointConfiguration(name: "e", url: "https://example.com/")
        _ = try await desk.endpoints.create(made, secret: .generate())
        let cases: [(Problem.Code, @Sendable () async throws -> Void)] = [
            (.nameTaken, { _ = try await desk.endpoints.create(made, secret: .generate()) }),
            (.notFound, { _ = try await desk.endpoints.get("f") }),
            (.unknownMember, { _ = try await desk.endpoints.patch("e", Array(#"{"uri":"x"}"#.utf8)) }),
            (.malformedJSON, { _ = try await desk.endpoints.patch("e", Array("{".utf8)) }),
            (
                .endpointURLNotAllowed,
                { _ = try await desk.endpoints.update("e") { $0.url = "http://169.254.169.254/" } }
            ),
            (.templateInvalid, { _ = try await desk.endpoints.update("e") { $0.format = .template } }),
            (.filterInvalid, { _ = try await desk.endpoints.update("e") { $0.filter = "(" } }),
            (.maskedValue, { _ = try await desk.endpoints.update("e") { $0.authentication.secret = .kept } }),
            (.invalidValue, { _ = try await desk.endpoints.update("e") { $0.maxInFlight = 0 } }),
            (.notFound, { _ = try await desk.deliveries.get(DeliveryReference(event: "1", endpoint: "e")) }),
            (
                .stateConflict,
                { _ = try await desk.secrets.retire("e", only: try await desk.secrets.list("e")[0].id, reason: nil) }
            ),
        ]
        for (code, body) in cases {
            let problem = await refusal(body)
            #expect(problem?.code == code, "\(problem?.description ?? "")")
        }
    }
}
