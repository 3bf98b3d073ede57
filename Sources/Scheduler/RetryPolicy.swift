import Outbox
import Postgres
import Transport

/// What an exchange means: success or not, in which words, and what happens next. Pure: time and chance are parameters.
struct Verdict: Sendable {
    var isSuccess: Bool
    var errorClass: String?
    var error: String?
    var resolution: Resolution
    var effect: EndpointEffect?
    /// How many attempts of its schedule the pair has used.
    var attempts: Int
    /// False when nothing was sent and nothing needs a line in the attempt log.
    var isAttempt = true
}

/// When and whether a failed delivery is tried again.
enum RetryPolicy {
    /// Statuses that say: this event will never be taken (RFC 9110 15.5.14, 15.5.16).
    private static let permanent: Set<Int> = [413, 415]

    /// Judges one exchange.
    ///
    /// - Parameters:
    ///   - number: which attempt this was; the schedule's n-th wait follows the n-th failure.
    ///   - jitter: 0 up to 1; spreads the wait over 80 to 120 percent, so that failures do not return together.
    static func judge(
        _ exchange: HTTPExchange, endpoint: Endpoint, number: Int, trigger: Trigger, now: Timestamp,
        jitter: @autoclosure () -> Double
    ) -> Verdict {
        if let status = exchange.status, (200...299).contains(status) {
            return Verdict(isSuccess: true, resolution: .delivered, attempts: number)
        }
        // Only failures are random, and randomness costs a system call.
        let jitter = jitter()
        if let status = exchange.status { return judge(status, exchange, endpoint, number, now, jitter) }
        let failure = exchange.failure ?? .protocolError
        var verdict = Verdict(
            isSuccess: false, errorClass: failure.rawValue, error: exchange.message,
            resolution: retry(endpoint, number, atLeast: .zero, jitter), attempts: number)
        switch failure {
        case .cancelled:
            // We stopped it ourselves: it may go out again at once, and costs an attempt only if it had gone out.
            verdict.isAttempt = exchange.mayHaveBeenSent
            verdict.attempts = exchange.mayHaveBeenSent ? number : number - 1
            verdict.resolution = .wait(.zero, exchange.mayHaveBeenSent ? .retry : trigger)
        case .localResources:
            verdict.isAttempt = false
            verdict.attempts = number - 1
            verdict.resolution = .wait(.seconds(1), trigger)
        case .invalidRequest:
            verdict.isAttempt = false
            verdict.resolution = .dead(.renderError)
        case .dns, .connect, .tls, .timeout, .connectionLost, .blockedAddress, .protocolError: break
        }
        return verdict
    }

    private static func judge(
        _ status: Int, _ exchange: HTTPExchange, _ endpoint: Endpoint, _ number: Int, _ now: Timestamp, _ jitter: Double
    ) -> Verdict {
        var verdict = Verdict(
            isSuccess: false, errorClass: errorClass(status), error: "HTTP \(status)",
            resolution: retry(endpoint, number, atLeast: .zero, jitter), attempts: number)
        switch status {
        case 300...399:
            verdict.error = "HTTP \(status): redirects are never followed; give the endpoint the new URL"
        case 410:
            // The receiver is gone for good: stop, and keep everything that waits.
            verdict.effect = .disable(reason: "gone: the receiver answered 410")
            verdict.resolution = .wait(.zero, .retry)
        case 429, 503:
            guard let wish = exchange.retryAfter.flatMap({ RetryAfter.parse($0, now: now) }), wish > .zero else {
                break
            }
            verdict.effect = .hold(wish)
            verdict.resolution = retry(endpoint, number, atLeast: wish, jitter)
        case _ where permanent.contains(status):
            verdict.resolution = .dead(.permanent)
        default: break
        }
        return verdict
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
        return schedule[number - 1] * (0.8 + 0.4 * jitter)
    }
}
