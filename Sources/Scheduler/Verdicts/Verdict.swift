import Outbox
import Transport

/// What an exchange means: success or not, in which words, and what happens next. Pure: time and
/// chance are parameters.
struct Verdict: Sendable {
    var isSuccess: Bool
    var errorClass: String?
    var error: String?
    var resolution: Resolution
    /// What it says of the whole endpoint.
    var endpointEvent: EndpointState.Event?
    /// How many attempts of its schedule the delivery has used.
    var attempts: Int
    /// The response itself said when to come back.
    var isPutOff = false
    /// False when nothing was sent and nothing needs a line in the attempt log.
    var isAttempt = true

    /// The receiver refused the access token, and a new one may do: at once, and once. What its
    /// rules call final stays so, and so does the end of its schedule, but for the very first
    /// attempt: a token that ran out is no fault of the delivery's.
    mutating func tryAgainWithNewToken() {
        switch resolution {
        case .wait: break
        case .dead(.exhausted) where attempts == 1: break
        case .dead, .delivered, .unwanted: return
        }
        errorClass = HTTPExchange.Failure.auth.rawValue
        error = "HTTP 401: the access token was refused; trying again with a new one"
        resolution = .wait(.zero, .retry)
        // It says something about the token, and not yet about the receiver.
        isPutOff = true
    }
}

extension Verdict {
    /// True when this says something about the endpoint, and not about the one event that it was
    /// sent.
    var isEndpointFailure: Bool {
        // Who says when to come back is not out of order.
        guard !isSuccess, isAttempt, !isPutOff, errorClass != "cancelled" else { return false }
        if case .dead(.permanent) = resolution { return false }
        return true
    }

    /// True when the receiver dealt with the event, one way or the other.
    var showsThatItWorks: Bool {
        if case .dead(.permanent) = resolution { return isAttempt }
        return isSuccess
    }

    /// While the endpoint is failing, its deliveries wait for it: none is given up for its sake.
    mutating func waitForEndpoint(_ schedule: [Duration]) {
        if case .dead(.exhausted) = resolution { resolution = .wait(schedule.last ?? .seconds(60), .retry) }
    }
}
