package import Outbox
package import Postgres
package import Transport

/// Calls an endpoint once, on the path that deliveries take, and says step by step what came of it.
/// Nothing is stored.
package struct EndpointTest: Sendable {
    /// The checks, in order; the first that fails ends the trial.
    package enum Step: String, Sendable, CaseIterable {
        case url = "URL and address policy"
        case headers = "headers"
        case rendering = "rendering"
        case request = "live request"
        case rules = "rules"
    }

    /// What came of it.
    package struct Report: Sendable {
        /// What each step that was reached found.
        package internal(set) var steps: [(step: Step, text: String)] = []
        /// Why the last of them failed; nil when all were good.
        package internal(set) var failure: (step: Step, reason: String)?
        package internal(set) var request: HTTPRequest?
        package internal(set) var note: String?
        package internal(set) var exchange: HTTPExchange?
        /// For the attempt log; nil when nothing was sent.
        package internal(set) var attempt: Attempt?

        package var isSuccess: Bool { failure == nil }
        /// Nobody said yes or no: no response came, or one that says that the endpoint itself is in
        /// trouble. Not so when the request could not be made, for which whoever asks may be to
        /// blame.
        package internal(set) var gotNoResponse = false

        init() {}

        /// A trial that was not made; it counts as a rule that does not hold.
        package init(refusedBecause reason: String) { failure = (.rules, reason) }
    }

    private let endpoint: Endpoint
    private let event: Event
    private let webhookID: String
    private let now: Timestamp
    private let policy: AddressPolicy
    private let trigger: Trigger

    /// - Parameter now: the database's time.
    package init(
        _ endpoint: Endpoint, event: Event, webhookID: String, now: Timestamp, policy: AddressPolicy,
        trigger: Trigger = .test
    ) {
        self.endpoint = endpoint
        self.event = event
        self.webhookID = webhookID
        self.now = now
        self.policy = policy
        self.trigger = trigger
    }

    /// Runs the steps. The transport's own policy decides about addresses, as it does for
    /// deliveries.
    package func run(on transport: Transport) async -> Report {
        var report = Report()
        do throws(StepFailure) {
            report.steps.append((.url, try checkURL()))
            report.steps.append((.headers, try checkHeaders()))
            let delivery = try await render(transport)
            report.request = delivery.request
            report.note = delivery.note
            report.steps.append(
                (.rendering, "\(delivery.request.body.count) bytes" + (delivery.note.map { ", \($0)" } ?? "")))
            let exchange = await transport.send(delivery.request)
            report.exchange = exchange
            report.gotNoResponse = exchange.status.map { $0 >= 500 } ?? (exchange.failure != .blockedAddress)
            let verdict = RetryPolicy.judge(
                exchange, endpoint: endpoint, number: 1, trigger: trigger, now: now, jitter: 0.5)
            report.attempt = Attempt(
                exchange, verdict, number: 1, trigger: trigger, startedAt: now, note: delivery.note)
            report.steps.append((.request, try checkResponse(exchange)))
            guard verdict.isSuccess else {
                throw StepFailure(.rules, "\(verdict.errorClass ?? "failed"): \(verdict.error ?? "")")
            }
            report.steps.append((.rules, endpoint.rules.summary))
        } catch {
            report.failure = (error.step, error.reason)
            if error.step == .request, report.exchange == nil { report.gotNoResponse = true }
        }
        return report
    }

    private struct StepFailure: Error {
        let step: Step
        let reason: String

        init(_ step: Step, _ reason: String) {
            self.step = step
            self.reason = reason
        }
    }

    private func checkURL() throws(StepFailure) -> String {
        let target: TargetURL
        do throws(TargetURL.ValidationError) { target = try TargetURL(endpoint.configuration.url) } catch {
            throw StepFailure(.url, "the URL \(error)")
        }
        if let reason = policy.refusal(of: target) { throw StepFailure(.url, "the URL \(reason)") }
        return "\(target.scheme)://\(target.host):\(target.port)"
    }

    private func checkHeaders() throws(StepFailure) -> String {
        if let defect = endpoint.defect { throw StepFailure(.headers, defect) }
        return "\(endpoint.configuration.headers.count) of its own"
    }

    private func render(_ transport: Transport) async throws(StepFailure) -> DeliveryRequest {
        var token: String?
        if let client = endpoint.oauth {
            let tokens = AccessTokens(transport: transport)
            let party = endpoint.customerID
            let result = await withCheckedContinuation { continuation in
                tokens.token(for: client, of: party) { continuation.resume(returning: $0) }
            }
            do throws(AccessTokens.Failure) { token = try result.get().value } catch {
                throw StepFailure(.request, "auth: \(error)")
            }
        }
        do throws(RequestError) {
            return try HTTPRequest.delivery(
                of: event, to: endpoint, number: 1, webhookID: webhookID, at: now, token: token)
        } catch { throw StepFailure(.rendering, "\(error.errorClass): \(error)") }
    }

    private func checkResponse(_ exchange: HTTPExchange) throws(StepFailure) -> String {
        guard let status = exchange.status else {
            throw StepFailure(
                .request, "\((exchange.failure ?? .protocolError).rawValue): \(exchange.message ?? "no response")")
        }
        return "HTTP \(status)"
    }
}
