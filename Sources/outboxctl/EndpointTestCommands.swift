import ArgumentParser
import Bytewise
import Foundation
import Outbox
import Postgres
import Scheduler
import Templates
import Transport

/// Where the event of a trial comes from.
struct TrialOptions: ParsableArguments {
    @Option(name: .long, help: "Use this event (number or webhook-id) instead of a sample.") var event: String?
    @Option(name: .long, help: "The sample's data, JSON; @file or - for stdin.") var data: String?
    @Option(name: .long, help: "The event's context, a JSON object; a file, @file or - for stdin.") var context: String?
}

/// One trial, with everything around it: the endpoint as it is or as it would be, the event, the attempt log.
private struct TrialRun {
    let endpoint: Endpoint
    let report: Trial.Report
    /// As in the attempt log; nil when nothing was sent.
    let attemptID: String?

    init(
        _ name: String, _ options: GlobalOptions, _ trial: TrialOptions, url: String?, reveals: Bool = false,
        reason: String? = nil, trigger: Trigger
    ) async throws {
        let settings = try Settings(options)
        let keyring = try settings.keyring(creating: false)
        let data = try trial.data.map { try Self.object($0, "the data") }
        let context = try trial.context.map {
            try Self.object($0.hasPrefix("@") || $0 == "-" ? $0 : "@" + $0, "the context")
        }
        let allowed = try settings.policy()
        let prepared = try await Session.run(options) { connection in
            // From a copy nothing is sent, by whatever door.
            try connection.requireHome(instance: nil)
            let endpoint = try connection.endpoint(try connection.endpointID(name), keyring: keyring)
            if url != nil, reveals {
                try connection.audit("endpoint.test.reveal", endpoint: endpoint.id, reason: reason)
            }
            let (now, instance) = try connection.trialContext()
            let event =
                try trial.event.map { try connection.readEvent(try connection.eventKey($0)) }
                ?? Event.sample(
                    type: endpoint.configuration.eventTypes.sampleType,
                    after: data ?? Event.sampleData, context: context, at: now)
            return (
                endpoint: endpoint, event: event, now: now, webhookID: event.key.webhookID(instance: instance),
                policy: allowed.refusing(connection.serverSockets)
            )
        }
        var wanted = prepared.endpoint.configuration
        if let url {
            wanted.url = url
            if !reveals { wanted.withholdCredentials(givenFor: prepared.endpoint.configuration.url) }
        }
        endpoint = Endpoint(
            prepared.endpoint.id, wanted, signingSecrets: prepared.endpoint.signingSecrets,
            defect: prepared.endpoint.defect)
        // A rule that is not enabled is never called; its trial by hand is another matter.
        if trigger == .evaluate, prepared.endpoint.state.isDisabled {
            report = Trial.Report(refusedBecause: "the endpoint is disabled")
            attemptID = nil
            return
        }
        let transport = try Transport(policy: prepared.policy, proxy: try settings.proxy(), capacity: 2)
        report = await Trial(
            endpoint, event: prepared.event, webhookID: prepared.webhookID, now: prepared.now, policy: prepared.policy,
            trigger: trigger
        ).run(on: transport)
        await transport.stop()
        attemptID =
            if let attempt = report.attempt {
                try await Session.run(options) { [endpoint, event = prepared.event] connection in
                    try connection.recordTrial(attempt, event: event.key, endpoint: endpoint.id).description
                }
            } else { nil }
    }

    private static func object(_ argument: String, _ what: String) throws -> [UInt8] {
        let bytes = try textArgument(argument)
        do { _ = try JSON(bytes) } catch { throw OperationRefusal(.invalid, "\(what) is not JSON: \(error)") }
        return bytes
    }
}

extension EndpointCommand {
    struct Test: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Call an endpoint once, step by step; exit 0 when it works, 1 when not.",
            discussion: "Takes the way that deliveries take. Changes nothing but the attempt log (trigger test).")
        @OptionGroup var options: GlobalOptions
        @Argument(help: "Name or id.") var endpoint: String
        @Option(name: .long, help: "Try this URL instead of the endpoint's; elsewhere without its credentials.")
        var url: String?
        @Flag(name: .long, help: "With its credentials also elsewhere; the audit log says that you did.") var reveal =
            false
        @Option(name: .long, help: "For the audit log.") var reason: String?
        @OptionGroup var trial: TrialOptions

        func run() async throws {
            let run = try await TrialRun(
                endpoint, options, trial, url: url, reveals: reveal, reason: reason, trigger: .test)
            if options.format == .table { printSteps(run) } else { printJSON(json(run)) }
            if let failure = run.report.failure {
                if options.format == .table {
                    throw Answer(
                        message: "step \(number(of: failure.step)) of \(Trial.Step.allCases.count), "
                            + "\(failure.step.rawValue), failed: \(failure.reason)")
                }
                throw ExitCode(Failure.Exit.no.rawValue)
            }
        }

        private func number(of step: Trial.Step) -> Int { (Trial.Step.allCases.firstIndex(of: step) ?? 0) + 1 }

        private func printSteps(_ run: TrialRun) {
            for (step, text) in run.report.steps {
                print("\(number(of: step))  ok  \(step.rawValue): \(printable(text))")
            }
            if let request = run.report.request {
                print("\nrequest")
                for line in lines(of: request, run.endpoint) { print("  " + printable(line)) }
            }
            if let exchange = run.report.exchange, let status = exchange.status {
                print("\nanswer  HTTP \(status)")
                let body = String(decoding: exchange.body.prefix(2000), as: UTF8.self)
                if !body.isEmpty { print("  " + printable(body)) }
                let timing = exchange.timing
                let parts = [
                    ("dns", timing.dns), ("connect", timing.connect), ("tls", timing.tls),
                    ("first byte", timing.firstByte),
                    ("total", timing.total),
                ].compactMap { name, time in time.map { "\(name) \(Double($0.microseconds) / 1000) ms" } }
                print("\ntiming  " + parts.joined(separator: ", "))
            }
            if run.report.isSuccess { print("\nTest successful") }
        }

        private func lines(of request: HTTPRequest, _ endpoint: Endpoint) -> [String] {
            var lines = ["\(request.method.rawValue) \(Masking.url(request.url))"]
            lines += request.headers.all.map { "\($0.name): \(endpoint.mayShow($0) ? $0.value : "***")" }
            if request.method != .get { lines += ["", String(decoding: request.body.prefix(4000), as: UTF8.self)] }
            return lines
        }

        private func json(_ run: TrialRun) -> String {
            let report = run.report
            let steps =
                report.steps.map {
                    #"{"step":\#(jsonString($0.step.rawValue)),"ok":true,"detail":\#(jsonString($0.text))}"#
                }
                + (report.failure.map {
                    [#"{"step":\#(jsonString($0.step.rawValue)),"ok":false,"detail":\#(jsonString($0.reason))}"#]
                } ?? [])
            var fields = [
                ("success", "\(report.isSuccess)"),
                (
                    "message",
                    jsonString(report.failure.map { "\($0.step.rawValue): \($0.reason)" } ?? "Test successful")
                ),
                ("steps", "[" + steps.joined(separator: ",") + "]"),
            ]
            if let request = report.request {
                fields.append(
                    ("request", jsonString(lines(of: request, run.endpoint).joined(separator: "\n"))))
            }
            if let exchange = report.exchange {
                fields.append(("status", exchange.status.map { "\($0)" } ?? "null"))
                fields.append(("response", jsonString(String(decoding: exchange.body, as: UTF8.self))))
                fields.append(("total_ms", "\(Double(exchange.timing.total.microseconds) / 1000)"))
            }
            return "{" + fields.map { "\(jsonString($0.0)):\($0.1)" }.joined(separator: ",") + "}"
        }
    }

    struct Evaluate: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Ask an endpoint whether something is allowed; exit 0 for allow, 1 for deny.",
            discussion: """
                Renders, calls and applies the rules now, without a queue. Whatever goes wrong is a deny. With --on-error \
                allow, no answer and a 5xx are an allow; a failed rule, a request that cannot be made and a disabled \
                endpoint still are a deny.
                """)

        enum OnError: String, ExpressibleByArgument, CaseIterable { case deny, allow }

        @OptionGroup var options: GlobalOptions
        @Argument(help: "Name or id.") var endpoint: String
        @OptionGroup var trial: TrialOptions
        @Option(name: .long, help: "deny, or allow when the endpoint gives no answer or a 5xx.") var onError = OnError
            .deny

        func run() async throws {
            let run = try await TrialRun(
                endpoint, options, trial, url: nil, trigger: .evaluate)
            let failure = run.report.failure?.reason
            let isAllowed = failure == nil || (run.report.gaveNoAnswer && onError == .allow)
            let decision = isAllowed ? "allow" : "deny"
            let reason = failure ?? "all rules hold: \(run.endpoint.rules.summary)"
            options.format.fact(
                [
                    ("decision", jsonString(decision)), ("reason", jsonString(reason)),
                    ("attempt_id", run.attemptID.map(jsonString) ?? "null"),
                ],
                text: "\(decision)  \(printable(reason))")
            if !isAllowed { throw ExitCode(Failure.Exit.no.rawValue) }
        }
    }
}
