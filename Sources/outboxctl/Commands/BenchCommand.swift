import ArgumentParser
import Bench
import EmbeddedPostgres
import Foundation
import UnixSignals

extension Benchmark.Phase: ExpressibleByArgument {}
extension Party: ExpressibleByArgument {}

/// `outboxctl bench`: how fast this is, here.
struct BenchCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench", abstract: "Measure the service on your own server, in databases made and dropped for it.",
        discussion: """
            Makes scratch databases beside the configured one, so its user needs the right to create databases; nothing \
            that exists is touched. Runs real workers as processes of their own against a built-in sink (or --url), and \
            stays within this machine. Ratios travel to other machines, absolute figures do not.
            """)

    @OptionGroup var options: GlobalOptions
    @Option(name: .long, help: "Events to deliver in the drain.") var events = 100_000
    @Option(name: .long, help: "Bytes of JSON per event.") var payload = 600
    @Option(name: .long, help: "Endpoints, each of which gets every event.") var endpoints = 1
    @Option(name: .long, help: "Worker processes.") var workers = 1
    @Option(name: .long, help: "How long the sink takes to answer.") var latency: DurationArgument?
    @Option(name: .long, help: "The share of requests, 0 to 1, that the sink fails.") var failRate = 0.0
    @Flag(name: .long, help: "Hold a snapshot open during the drain, as a forgotten transaction does.")
    var holdSnapshot =
        false
    @Option(name: .long, help: "Events that wait beside those that are measured.") var backlog = 0
    @Flag(name: .long, help: "Send everything through the endpoints' lanes.") var lanes = false
    @Option(name: .long, help: "Events per second in the steady phase.") var rate = 500
    @Option(name: .long, help: "How long the steady phase takes, or the flapping.") var duration: DurationArgument?
    @Option(name: .long, help: "Requests in flight per endpoint.") var inFlight = 128
    @Option(name: .long, help: "Send to this URL instead of the built-in sink; {n} is the endpoint's number.") var url:
        String?
    @Option(
        name: .long, parsing: .upToNextOption,
        help:
            "Only these phases: loop, producers, drain, steady (these four when none is named); neighbours, flood, recovery, scheduled, flapping, directory, shares."
    )
    var phases: [Benchmark.Phase] = []
    @Option(name: .long, parsing: .upToNextOption, help: "Only these parties of the shares, such as slow or fan_out.")
    var parties: [Party] = []
    @Option(name: .customLong("http2-url"), help: "A receiver that speaks HTTP/2, for the shares.") var http2URL:
        String?
    @Option(name: .customLong("http2-ca"), help: "A file with the authorities to trust for it.") var http2CA: String?

    func validate() throws {
        for (name, value, range) in [
            ("events", events, 1...100_000_000), ("payload", payload, 1...1_000_000),
            ("endpoints", endpoints, 1...1000),
            ("workers", workers, 1...64), ("backlog", backlog, 0...100_000_000), ("rate", rate, 1...100_000),
            ("in-flight", inFlight, 1...10_000),
        ] where !range.contains(value) {
            throw ValidationError("--\(name) must be \(range.lowerBound) to \(range.upperBound)")
        }
        guard (0..<1).contains(failRate) else { throw ValidationError("--fail-rate must be 0 or more and less than 1") }
        if let duration, duration.duration < .seconds(1) || duration.duration > .seconds(3600) {
            throw ValidationError("--duration must be 1s to 1h")
        }
        if url != nil, latency != nil || failRate > 0 {
            throw ValidationError("--latency and --fail-rate are the built-in sink's, and --url replaces it")
        }
        if options.format == .jsonl { throw ValidationError("a report is one document: use -o json") }
    }

    func run() async throws {
        raiseDescriptorLimit()
        var plan = Benchmark.Plan()
        if !phases.isEmpty { plan.phases = Set(phases) }
        plan.events = events
        plan.payload = payload
        plan.endpoints = endpoints
        plan.workers = workers
        plan.latency = latency?.duration ?? .zero
        plan.failRate = failRate
        plan.holdsSnapshot = holdSnapshot
        plan.backlog = backlog
        plan.usesLanes = lanes
        plan.rate = rate
        plan.duration = duration?.duration ?? plan.duration
        plan.inFlight = inFlight
        plan.url = url
        plan.parties = parties.isEmpty ? nil : parties
        plan.http2URL = http2URL
        plan.http2Authorities = try http2CA.map { try String(contentsOfFile: $0, encoding: .utf8) }
        let session = try await Session.open(try Settings(options))
        let benchmark = Benchmark(plan, on: session.target, progress: Progress())
        let result: Result<Report, any Error>
        do {
            result = .success(try await Self.untilInterrupted { try await benchmark.run() })
        } catch { result = .failure(error) }
        let left = Result { try session.cluster?.leave() }
        let report = try result.get()
        try left.get()
        print(options.format == .json ? try report.json : report.table)
    }

    /// Runs the body; Ctrl-C and SIGTERM cancel it, so that it still cleans up.
    private static func untilInterrupted<Value: Sendable>(
        _ body: @escaping @Sendable () async throws -> Value
    ) async throws -> Value {
        let signals = await UnixSignalsSequence(trapping: .sigint, .sigterm)
        return try await withThrowingTaskGroup(of: Value?.self) { group in
            group.addTask { try await body() }
            group.addTask {
                for await _ in signals { break }
                return nil
            }
            defer { group.cancelAll() }
            if let value = try await group.next(), let value { return value }
            // Interrupted: the body notices that it is cancelled, tidies up and throws. Whatever it
            // says then is only that.
            group.cancelAll()
            _ = await group.nextResult()
            throw CancellationError()
        }
    }
}
