import Outbox
import Postgres
import Receiver
import TestSupport
import Testing
import Transport

@testable import Scheduler

/// What the other side does is never free of charge: whatever went out is an attempt, and follows
/// the schedule.
@Suite(.timeLimit(.minutes(15))) struct ChargeTests {
    /// libcurl takes no header line over 100 KB, and calls it "out of memory".
    private let longHeader = Receiver.Response(
        headers: [("X-Long", String(repeating: "x", count: 103_000))],
        body: Array(#"{"access_token":"t","token_type":"Bearer"}"#.utf8))

    @Test func `a response with an endless header line is an attempt each time, and ends with the schedule`()
        async throws
    {
        let database = try await TestCluster.database()
        let long = longHeader
        let delivered = try await database.deliver(
            retries: [.milliseconds(10), .milliseconds(10)], answer: { _, _ in long }
        ) { _ in }
        #expect(delivered.requests.count == 3)
        #expect(delivered.attempts == Array(repeating: "failure protocol_error", count: 3))
        #expect(delivered.dead.first?.hasPrefix("exhausted") == true)
    }

    @Test func `the same from a token endpoint is an attempt without a token`() async throws {
        let database = try await TestCluster.database()
        let long = longHeader
        let tokens = try Ledger { _, _ in long }
        defer { tokens.receiver.stop() }
        let delivered = try await database.deliver(retries: [.milliseconds(10)]) {
            var authentication = Authentication()
            authentication.kind = .oauth2
            authentication.tokenURL = tokens.url
            authentication.clientID = "c"
            $0.authentication = authentication
            $0.authentication.secret = "s"
        }
        #expect(delivered.requests.isEmpty)
        #expect(delivered.attempts == ["failure auth", "failure auth"])
        #expect(delivered.dead.first?.hasPrefix("exhausted") == true)
        #expect(tokens.all.count == 2)
    }

    @Test(arguments: HTTPExchange.Failure.allCases) func `only what was not sent can be no attempt`(
        failure: HTTPExchange.Failure
    ) {
        var configuration = EndpointConfiguration(name: "e", url: "http://x/")
        configuration.retrySchedule = [.seconds(10)]
        let endpoint = Endpoint(EndpointID(rawValue: .random()), configuration)
        func judge(_ wasSent: Bool) -> Verdict {
            RetryPolicy.judge(
                HTTPExchange(failure: failure, mayHaveBeenSent: wasSent), endpoint: endpoint, number: 1,
                trigger: .first,
                now: Timestamp(microseconds: 0), jitter: 0.5)
        }
        #expect(judge(true).isAttempt)
        #expect(judge(true).attempts == 1)
        // Ours, and nothing went out: the receiver is not charged, nor is its breaker.
        let isOurs = [.localResources, .cancelled, .invalidRequest].contains(failure)
        #expect(judge(false).isAttempt != isOurs)
        if isOurs { #expect(!judge(false).isEndpointFailure) }
    }
}
