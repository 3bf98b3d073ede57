import Outbox
import Postgres
import Transport

extension Attempt {
    /// The attempt as the log keeps it.
    ///
    /// - Parameter note: what should be known of the request although it succeeded.
    convenience init(
        _ exchange: HTTPExchange, _ verdict: Verdict, number: Int, trigger: Trigger, startedAt: Timestamp, note: String?
    ) {
        let timing = exchange.timing
        self.init(
            number: number, trigger: trigger, startedAt: startedAt + timing.queued, dns: timing.dns,
            connect: timing.connect, tls: timing.tls, firstByte: timing.firstByte, total: timing.total,
            isSuccess: verdict.isSuccess, status: exchange.status, errorClass: verdict.errorClass,
            error: (verdict.error ?? note).map(storable),
            response: verdict.isSuccess || exchange.body.isEmpty ? nil : Array(exchange.body.prefix(16 * 1024)),
            requestID: exchange.requestID.map(storable))
    }
}

/// Text that PostgreSQL can hold: no NUL, bounded.
func storable(_ text: String) -> String {
    String(text.unicodeScalars.filter { $0.value != 0 }.prefix(1000).map(Character.init))
}

/// When and whether a failed delivery is tried again.
enum RetryPolicy {
    /// The longest wait of a schedule, whatever its row says.
    private static let maxWait = Duration.seconds(30 * 86_400)
    /// The longest rest that a response without `Retry-After` gives the whole endpoint.
    private static let maxRest = Duration.seconds(60)

    /// Judges one exchange.
    ///
    /// - Parameters:
    ///   - number: which attempt this was; the schedule's n-th wait follows the n-th failure.
    ///   - jitter: 0 up to 1; spreads the wait over 80 to 120 percent, so that failures do not
    ///     return together.
    static func judge(
        _ exchange: HTTPExchange, endpoint: Endpoint, number: Int, trigger: Trigger, now: Timestamp,
        jitter: @autoclosure () -> Double
    ) -> Verdict {
        var finding: ResponseRules.Finding?
        if let status = exchange.status, endpoint.rules.takes(status) {
            finding = endpoint.rules.judge(exchange.body, isComplete: exchange.isBodyComplete)
            if finding == .success { return Verdict(isSuccess: true, resolution: .delivered, attempts: number) }
        }
        // Only failures are random, and randomness costs a system call.
        let jitter = jitter()
        switch finding {
        case .failure(let reason):
            return Verdict(
                isSuccess: false, errorClass: "rule_failed", error: reason,
                resolution: endpoint.rules.isFailureFinal
                    ? .dead(.permanent) : retry(endpoint, number, atLeast: .zero, jitter),
                attempts: number)
        case .throttled:
            var verdict = judge(429, exchange, endpoint, number, now, jitter)
            verdict.error = "the response's text says that there were too many requests"
            return verdict
        case .success, nil: break
        }
        if let status = exchange.status { return judge(status, exchange, endpoint, number, now, jitter) }
        let failure = exchange.failure ?? .protocolError
        var verdict = Verdict(
            isSuccess: false, errorClass: failure.rawValue, error: exchange.message,
            resolution: retry(endpoint, number, atLeast: .zero, jitter), attempts: number)
        switch failure {
        case .cancelled:
            // We stopped it ourselves: it may go out again at once, and costs an attempt only if it
            // had gone out.
            verdict.isAttempt = exchange.mayHaveBeenSent
            verdict.attempts = exchange.mayHaveBeenSent ? number : number - 1
            verdict.resolution = .wait(.zero, exchange.mayHaveBeenSent ? .retry : trigger)
        // Whatever went out is an attempt, and follows the schedule.
        case .localResources where !exchange.mayHaveBeenSent:
            verdict.isAttempt = false
            verdict.attempts = number - 1
            verdict.resolution = .wait(.seconds(1), trigger)
        case .invalidRequest where !exchange.mayHaveBeenSent:
            verdict.isAttempt = false
            verdict.resolution = .dead(.renderError)
        default: break
        }
        return verdict
    }

    private static func judge(
        _ status: Int, _ exchange: HTTPExchange, _ endpoint: Endpoint, _ number: Int, _ now: Timestamp, _ jitter: Double
    ) -> Verdict {
        var verdict = Verdict(
            isSuccess: false, errorClass: errorClass(status), error: "HTTP \(status)" + word(exchange.body),
            resolution: retry(endpoint, number, atLeast: .zero, jitter), attempts: number)
        switch status {
        case 300...399:
            verdict.error = "HTTP \(status): redirects are never followed; give the endpoint the new URL"
        case 410:
            // The receiver is gone for good: stop, and keep everything that waits.
            verdict.endpointEvent = .gone(reason: "gone: the receiver answered 410")
            verdict.resolution = .wait(.zero, .retry)
        case 429, 503:
            // The whole endpoint rests as long as the receiver asks; after a 429 that asks for
            // nothing, until this delivery is tried again. A 503 that asks for nothing is a failure
            // like any other: one instance of many may say it.
            let wish = exchange.retryAfter.flatMap { RetryAfter.parse($0, now: now) } ?? .zero
            verdict.resolution = retry(endpoint, number, atLeast: wish, jitter)
            verdict.isPutOff = wish > .zero || status == 429
            if wish > .zero {
                verdict.endpointEvent = .rest(wish)
            } else if status == 429, case .wait(let delay, _) = verdict.resolution {
                verdict.endpointEvent = .rest(min(delay, maxRest))
            }
        default: break
        }
        // What the endpoint's rules call final is final, whatever the response asks for beside it.
        if status != 410, endpoint.rules.isFinal(status) { verdict.resolution = .dead(.permanent) }
        return verdict
    }

    /// What a receiver says in a word or two, such as Slack's `channel_not_found`; nothing of
    /// longer answers, which may hold anything.
    private static func word(_ body: [UInt8]) -> String {
        guard (1...64).contains(body.count), body.allSatisfy({ (0x61...0x7A).contains($0) || $0 == 0x5F }) else {
            return ""
        }
        return ": " + String(decoding: body, as: UTF8.self)
    }

    private static func errorClass(_ status: Int) -> String {
        switch status {
        case 300...399: "redirect"
        case 429: "http_429"
        case 400...499: "http_4xx"
        case 500...599: "http_5xx"
        default: HTTPExchange.Failure.protocolError.rawValue
        }
    }

    private static func retry(_ endpoint: Endpoint, _ number: Int, atLeast: Duration, _ jitter: Double) -> Resolution {
        guard let delay = delay(endpoint.retrySchedule, after: number, jitter: jitter) else { return .dead(.exhausted) }
        return .wait(max(delay, atLeast), .retry)
    }

    /// The wait after the n-th failure; nil when the schedule is used up.
    static func delay(_ schedule: [Duration], after number: Int, jitter: Double) -> Duration? {
        guard number >= 1, number <= schedule.count else { return nil }
        return max(.zero, min(schedule[number - 1], maxWait)) * (0.8 + 0.4 * jitter)
    }
}
