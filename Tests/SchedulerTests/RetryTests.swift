import Outbox
import Postgres
import Testing
import Transport

@testable import Scheduler

@Suite(.timeLimit(.minutes(15))) struct RetryAfterTests {
    private let now = Timestamp(year: 1994, month: 11, day: 6, hour: 8, minute: 49, second: 0)

    @Test(arguments: [
        ("0", 0), ("1", 1), ("120", 120), ("86400", 86_400), ("99999999999999999999", 86_400), ("007", 7),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 37), ("Sunday, 06-Nov-94 08:49:37 GMT", 37), ("Sun Nov  6 08:49:37 1994", 37),
        ("Sun, 06 Nov 1994 08:48:00 GMT", 0), ("Mon, 01 Jan 2099 00:00:00 GMT", 86_400),
    ])
    func `a valid wish is clamped to a day`(value: String, seconds: Int) {
        #expect(RetryAfter.parse(value, now: now) == .seconds(seconds))
    }

    @Test(arguments: [
        "", "-5", "1.5", "3600abc", "abc", "1 2", "Sun, 06 Nov 1994 08:49:37", "Sun, 32 Nov 1994 08:49:37 GMT",
        "Xyz, 06 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 25:49:37 GMT", "١٢", "0x10", String(repeating: "9", count: 65),
    ])
    func `an invalid wish is none`(value: String) {
        #expect(RetryAfter.parse(value, now: now) == nil)
    }
}

@Suite(.timeLimit(.minutes(15))) struct RetryPolicyTests {
    private let endpoint: Endpoint = {
        var configuration = EndpointConfiguration(name: "e", url: "http://x/")
        configuration.retrySchedule = [.seconds(10), .seconds(20)]
        return Endpoint(EndpointID(rawValue: .random()), configuration)
    }()

    private func judge(_ exchange: HTTPExchange, number: Int = 1, jitter: Double = 0.5) -> Verdict {
        RetryPolicy.judge(
            exchange, endpoint: endpoint, number: number, trigger: .first, now: Timestamp(microseconds: 0),
            jitter: jitter)
    }

    private func outcome(_ verdict: Verdict) -> String {
        switch verdict.resolution {
        case .delivered: "delivered"
        case .wait(let delay, _): "wait \(delay.milliseconds)"
        case .dead(let reason): "dead \(reason.rawValue)"
        case .unwanted: "unwanted"
        }
    }

    /// The table of reliability 2.4, every status there is.
    @Test func `every status has its consequence`() {
        for status in 100...599 {
            let verdict = judge(HTTPExchange(status: status))
            switch status {
            case 200...299:
                #expect(verdict.isSuccess && outcome(verdict) == "delivered", "\(status)")
            case 413, 415:
                #expect(outcome(verdict) == "dead permanent", "\(status)")
            case 410:
                #expect(outcome(verdict) == "wait 0", "\(status)")
                if case .gone = verdict.endpointEvent {} else { Issue.record("410 disables") }
            default:
                #expect(!verdict.isSuccess && outcome(verdict) == "wait 10000", "\(status)")
                // Without a wish the whole endpoint rests until this delivery is tried again; after
                // a 503 it does not: one instance of many may say it.
                if status == 429 {
                    if case .rest(let rest) = verdict.endpointEvent {
                        #expect(rest == .seconds(10))
                    } else {
                        Issue.record("no rest")
                    }
                } else {
                    #expect(verdict.endpointEvent == nil, "\(status)")
                }
            }
            let wanted =
                switch status {
                case 200...299: nil as String?
                case 300...399: "redirect"
                case 429: "http_429"
                case 400...499: "http_4xx"
                case 500...599: "http_5xx"
                default: "protocol_error"
                }
            #expect(verdict.errorClass == wanted, "\(status)")
            #expect(verdict.isAttempt)
        }
    }

    @Test func `the schedule's n-th wait follows the n-th failure, spread by a fifth, and then it is dead`() {
        #expect(outcome(judge(HTTPExchange(failure: .timeout), number: 1, jitter: 0)) == "wait 8000")
        #expect(outcome(judge(HTTPExchange(failure: .timeout), number: 2, jitter: 0)) == "wait 16000")
        #expect(outcome(judge(HTTPExchange(failure: .timeout), number: 2, jitter: 1)) == "wait 24000")
        #expect(outcome(judge(HTTPExchange(failure: .timeout), number: 3)) == "dead exhausted")
        #expect(outcome(judge(HTTPExchange(failure: .timeout), number: 1_000_000)) == "dead exhausted")
    }

    @Test func `Retry-After lengthens a wait, never shortens it, and rests the endpoint`() {
        for status in [429, 503] {
            let longer = judge(HTTPExchange(status: status, retryAfter: "60"))
            #expect(outcome(longer) == "wait 60000")
            if case .rest(let rest) = longer.endpointEvent {
                #expect(rest == .seconds(60))
            } else {
                Issue.record("no rest")
            }
            #expect(outcome(judge(HTTPExchange(status: status, retryAfter: "1"))) == "wait 10000")
        }
        let nonsense = judge(HTTPExchange(status: 429, retryAfter: "nonsense"))
        if case .rest(let rest) = nonsense.endpointEvent {
            #expect(rest == .seconds(10))
        } else {
            Issue.record("no rest")
        }
        // That counts as a failure of the endpoint, as every other 5xx.
        let unasked = judge(HTTPExchange(status: 503, retryAfter: "nonsense"))
        #expect(unasked.endpointEvent == nil && unasked.isEndpointFailure)
        #expect(judge(HTTPExchange(status: 500, retryAfter: "60")).endpointEvent == nil)
    }

    @Test func `what was not sent costs no attempt`() {
        let full = judge(HTTPExchange(failure: .localResources), number: 2)
        #expect(!full.isAttempt && full.attempts == 1 && outcome(full) == "wait 1000")
        let stopped = judge(HTTPExchange(failure: .cancelled), number: 2)
        #expect(!stopped.isAttempt && stopped.attempts == 1 && outcome(stopped) == "wait 0")
        let aborted = judge(HTTPExchange(failure: .cancelled, mayHaveBeenSent: true), number: 2)
        #expect(aborted.isAttempt && aborted.attempts == 2 && outcome(aborted) == "wait 0")
    }
}
