package import Outbox
import Postgres
package import Scheduler
import Templates
package import Transport

/// Calls an endpoint once, by hand.
package struct EndpointTestUseCases: Sendable {
    private let host: Operator

    init(_ host: Operator) { self.host = host }

    /// The parameters of a test.
    package struct Wish: Sendable {
        /// `test`, or `evaluate` for an endpoint that is asked for a decision.
        package var trigger = Trigger.test
        /// This event, by its number or `webhook-id`, in place of a sample.
        package var event: String?
        /// The sample's data and context, JSON.
        package var data: [UInt8]?
        package var context: [UInt8]?
        /// Another URL than the endpoint's. Credentials are not sent to another origin.
        package var url: String?
        /// Sends its credentials to another origin, too; that is audited.
        package var reveals = false
        package var reason: String?

        package init() {}
    }

    /// The result of a test.
    package struct Outcome: Sendable {
        /// The request as it was sent.
        package let endpoint: Endpoint
        package let report: EndpointTest.Report
        /// As in the attempt log; nil when nothing was sent.
        package let attemptID: String?
    }

    /// - Parameter transport: makes the transport for the one request, under the given policy.
    package func run(
        _ name: String, _ wish: Wish, on transport: @Sendable (AddressPolicy) throws -> Transport
    ) async throws -> Outcome {
        for (bytes, what) in [(wish.data, "the data"), (wish.context, "the context")] {
            guard let bytes else { continue }
            do { _ = try JSON(bytes) } catch { throw Problem(.malformedJSON, "\(what) is not JSON: \(error)") }
        }
        let (keyring, allowed) = (try host.keyring(), try host.policy())
        let prepared = try await host.run { [actor = host.actor] connection in
            // Nothing is sent from a copy, through any interface.
            try connection.requireHome(instance: nil)
            let endpoint = try connection.endpoint(try connection.endpointID(name), keyring: keyring)
            if wish.url != nil, wish.reveals {
                try connection.audit("endpoint.test.reveal", endpoint: endpoint.id, reason: wish.reason, by: actor)
            }
            let (now, instance) = try connection.endpointTestContext()
            let event =
                try wish.event.map { try connection.readEvent(try connection.eventKey($0)) }
                ?? Event.sample(
                    type: endpoint.configuration.eventTypes.sampleType, after: wish.data ?? Event.sampleData,
                    context: wish.context, at: now)
            return (
                endpoint: endpoint, event: event, now: now, webhookID: event.key.webhookID(instance: instance),
                policy: allowed.refusing(connection.serverSockets)
            )
        }
        var wanted = prepared.endpoint.configuration
        if let url = wish.url {
            wanted.url = url
            if !wish.reveals { wanted.withholdCredentials(givenFor: prepared.endpoint.configuration.url) }
        }
        let endpoint = Endpoint(
            prepared.endpoint.id, wanted, signingSecrets: prepared.endpoint.signingSecrets,
            defect: prepared.endpoint.defect)
        // A disabled rule is never called; a test by hand still calls it.
        if wish.trigger == .evaluate, prepared.endpoint.state.isDisabled {
            return Outcome(
                endpoint: endpoint, report: EndpointTest.Report(refusedBecause: "the endpoint is disabled"),
                attemptID: nil)
        }
        let transport = try transport(prepared.policy)
        let report = await EndpointTest(
            endpoint, event: prepared.event, webhookID: prepared.webhookID, now: prepared.now, policy: prepared.policy,
            trigger: wish.trigger
        ).run(on: transport)
        await transport.stop()
        guard let attempt = report.attempt else { return Outcome(endpoint: endpoint, report: report, attemptID: nil) }
        let id = try await host.run { [event = prepared.event.key] in
            try $0.recordEndpointTest(attempt, event: event, endpoint: endpoint.id).description
        }
        return Outcome(endpoint: endpoint, report: report, attemptID: id)
    }
}
