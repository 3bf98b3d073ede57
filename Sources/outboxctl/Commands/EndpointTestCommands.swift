import ArgumentParser
import Bytewise
import Foundation
import Operator
import Outbox
import Postgres
import Scheduler
import Templates
import Transport

/// Where the event of a trial comes from.
struct EndpointTestOptions: ParsableArguments {
    @Option(name: .long, help: "Use this event (number or webhook-id) instead of a sample.") var event: String?
    @Option(name: .long, help: "The sample's data, JSON; @file or - for stdin.") var data: String?
    @Option(name: .long, help: "The event's context, a JSON object; a file, @file or - for stdin.") var context: String?
}

extension EndpointTestOptions {
    /// Runs the one request, and says what came of it.
    fileprivate func run(
        _ name: String, _ options: GlobalOptions, _ trigger: Trigger, url: String? = nil, reveals: Bool = false,
        reason: String? = nil
    ) async throws -> EndpointTestUseCases.Outcome {
        let settings = try Settings(options)
        var wish = EndpointTestUseCases.Wish()
        wish.trigger = trigger
        wish.event = event
        wish.data = try data.map { try textArgument($0) }
        wish.context = try context.map { try textArgument($0.hasPrefix("@") || $0 == "-" ? $0 : "@" + $0) }
        (wish.url, wish.reveals, wish.reason) = (url, reveals, reason)
        return try await Session.operate(options) { [wish] in
            try await $0.endpointTests.run(name, wish) {
                try Transport(policy: $0, proxy: try settings.value(of: .egressProxy), capacity: 2)
            }
        }
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
        @OptionGroup var trial: EndpointTestOptions

        func run() async throws {
            let run = try await trial.run(endpoint, options, .test, url: url, reveals: reveal, reason: reason)
            if options.format == .table { printSteps(run) } else { printJSON(json(run)) }
            if let failure = run.report.failure {
                if options.format == .table {
                    throw Answer(
                        message: "step \(number(of: failure.step)) of \(EndpointTest.Step.allCases.count), "
                            + "\(failure.step.rawValue), failed: \(failure.reason)")
                }
                throw ExitCode(Failure.Exit.no.rawValue)
            }
        }

        private func number(of step: EndpointTest.Step) -> Int {
            (EndpointTest.Step.allCases.firstIndex(of: step) ?? 0) + 1
        }

        private func printSteps(_ run: EndpointTestUseCases.Outcome) {
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

        private func json(_ run: EndpointTestUseCases.Outcome) -> String {
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
                allow, no response and a 5xx are an allow; a failed rule, a request that cannot be made and a disabled \
                endpoint still are a deny.
                """)

        enum OnError: String, ExpressibleByArgument, CaseIterable { case deny, allow }

        @OptionGroup var options: GlobalOptions
        @Argument(help: "Name or id.") var endpoint: String
        @OptionGroup var trial: EndpointTestOptions
        @Option(name: .long, help: "deny, or allow when the endpoint gives no response or a 5xx.") var onError = OnError
            .deny

        func run() async throws {
            let run = try await trial.run(endpoint, options, .evaluate)
            let failure = run.report.failure?.reason
            let isAllowed = failure == nil || (run.report.gotNoResponse && onError == .allow)
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
