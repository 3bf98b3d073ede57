import Foundation
import Outbox
import Postgres
import Templates

/// A party that takes what it can within every limit, beside a healthy endpoint.
package enum Party: String, CaseIterable, Sendable {
    /// Eight silent endpoints with a timeout of five minutes, ten events of 1 MB.
    case silent
    /// Two hundred endpoints that answer after 13.5 s, two events a second.
    case slow
    /// Three endpoints that ask for a rest of one second again and again, beside ten thousand idle
    /// ones.
    case resting
    /// Thirty-two rules with globs, and responses of 250 kB.
    case rules
    /// A template that names one value 29,000 times, and events of 980 kB.
    case template
    /// Two hundred hosts that do not resolve.
    case names
    /// An HTTP/2 receiver that sends empty frames for ever; `--http2-url` says where it is.
    case http2
    /// Three events for ten thousand endpoints of one customer, again and again.
    case fanOut = "fan_out"
    /// Twenty slow lanes, each with 90 events of 1 MiB that compress well.
    case memory
    /// A thousand endpoints that answer with 250 kB, slowly.
    case responses
    /// A thousand endpoints of two hundred customers: a fifth of the requests fails, a tenth is
    /// slow, events have 200 B to 200 kB.
    case life

    /// So many events a second of the healthy endpoint's.
    static let offered = 50
}

extension Bench {
    private static let healthy = "healthy"

    /// One party beside a healthy endpoint that gets 50 events/s, before and after it comes.
    func measureShare(_ party: Party, hostile: Sink) async throws -> Report.Share {
        let id = try await createEndpoint(1) { $0.customerID = Self.healthy }
        let times = Int(plan.duration.inSeconds) * Party.offered
        let apart = Duration.seconds(1) / Party.offered
        var report = Report.Share(party: party.rawValue)
        (report, _) = try await withWorkers(plan.workers, lease: "20s") { workers in
            _ = try await publish(for: [Self.healthy], times: 50, apart: apart, title: "warming up")
            let alone = try await publish(for: [Self.healthy], times: times, apart: apart, title: "alone")
            try await settle()
            report.workerMemoryBytes = workers.map(\.peakMemory).max() ?? 0
            try await prepare(party, hostile)
            let beside = try await withThrowingTaskGroup(of: [Committed].self) { group in
                group.addTask {
                    try await act(party, hostile)
                    return []
                }
                // Until what it does is in effect.
                try await Task.sleep(for: party == .slow ? .seconds(20) : .seconds(4))
                let beside = try await publish(
                    for: [Self.healthy], times: times, apart: apart, title: "beside \(party.rawValue)")
                // What comes later than that is not kept up with.
                try await Task.sleep(for: .seconds(2))
                report.partyResponses = hostile.served
                group.cancelAll()
                // A party that could not act would make a fine figure.
                while let _ = try await group.next() {}
                return beside
            }
            let answered = try await answers(of: id)
            report.alone = percentiles(alone, answered)
            report.beside = percentiles(beside, answered)
            if report.partyResponses == 0, ![.silent, .names, .http2].contains(party) {
                throw Benchmark.Failure(description: "the party \(party.rawValue) got no request")
            }
            report.deliveredShare = Double(beside.count { answered[$0.event] != nil }) / Double(beside.count)
            report.workerMemoryBytesBeside = workers.map(\.peakMemory).max() ?? 0
            for worker in workers { worker.kill() }
            return report
        }
        report.p95Ratio = (report.beside?.p95 ?? 0) / (report.alone?.p95 ?? 1)
        return report
    }

    /// When each event got its first success at this endpoint.
    private func answers(of endpoint: EndpointID) async throws -> [Int64: Timestamp] {
        let rows = try await scratch.pool.query(
            """
            SELECT event_id, min(started_at + total_us * interval '1 us') FROM outbox.attempt
             WHERE endpoint_id = \(endpoint) AND outcome = 'success' GROUP BY event_id
            """, within: .seconds(60), of: Int64.self, Timestamp.self)
        return Dictionary(uniqueKeysWithValues: rows)
    }

    /// The party's endpoints, by the sink's numbers.
    private func prepare(_ party: Party, _ hostile: Sink) async throws {
        switch party {
        case .silent:
            try await endpoints(1...8, hostile, .silence) { $0.timeout = .seconds(300) }
        case .slow:
            try await endpoints(1...200, hostile, .slow(.milliseconds(13_500))) { $0.timeout = .seconds(15) }
        case .resting:
            try await endpoints(1...3, hostile, .refuse)
            try await endpoints(4...10_003, hostile, nil) { $0.customerID = "idle" }
        case .rules:
            try await endpoints(1...4, hostile, .large(250_000)) { configuration in
                configuration.rules.checks = try (1...32).map {
                    try Check("deny glob filler *a*b*c*d*e*f*g*h*\($0)*j")
                }
            }
        case .template:
            try await endpoints(1...4, hostile, nil) {
                $0.format = .template
                $0.template = try Template(
                    #"{"v":""# + String(repeating: "%after.z%", count: 29_000) + #""}"#, kind: .json)
            }
        case .names:
            for number in 1...200 {
                try await createEndpoint(1000 + number) {
                    $0.customerID = "names"
                    $0.url = "http://host-\(number).invalid/"
                }
            }
        case .http2:
            guard let url = plan.http2URL else { throw Benchmark.Failure(description: "this needs --http2-url") }
            for number in 1...10 {
                try await createEndpoint(1000 + number) {
                    $0.customerID = party.rawValue
                    $0.url = url
                    $0.allowsHTTP2 = true
                    $0.tls.caCertificates = plan.http2Authorities
                    $0.timeout = .seconds(15)
                }
            }
        case .fanOut:
            try await endpoints(1...10_000, hostile, nil)
        case .memory:
            try await endpoints(1...20, hostile, .slow(.seconds(5))) {
                $0.maxConcurrency = 2
                $0.timeout = .seconds(15)
            }
        case .responses:
            try await endpoints(1...1000, hostile, .slowLarge(250_000, .seconds(5))) {
                $0.rules.form = .json
                $0.timeout = .seconds(15)
            }
        case .life:
            for number in 1...1000 {
                try await createEndpoint(1000 + number) {
                    $0.customerID = "life-\(number % 200)"
                    $0.url = "\(hostile.url)/e/\(number)"
                    $0.retrySchedule = Array(repeating: .seconds(5), count: 20)
                }
                hostile.treat(number, number % 10 == 0 ? .slow(.seconds(5)) : .failSometimes(0.2))
            }
        }
        // Workers read them.
        try await Task.sleep(for: .seconds(2))
    }

    private func endpoints(
        _ numbers: ClosedRange<Int>, _ hostile: Sink, _ manner: Sink.Manner?,
        _ body: @escaping @Sendable (inout EndpointConfiguration) throws -> Void = { _ in }
    ) async throws {
        for number in numbers {
            if let manner { hostile.treat(number, manner) }
            try await createEndpoint(1000 + number) {
                $0.customerID = "party"
                $0.url = "\(hostile.url)/e/\(number)"
                try body(&$0)
            }
        }
    }

    /// What the party does until it is cancelled.
    private func act(_ party: Party, _ hostile: Sink) async throws {
        let pool = try ConnectionPool(scratch.target, size: 1)
        let result: Result<Void, any Error>
        do { result = .success(try await act(party, with: pool)) } catch { result = .failure(error) }
        await pool.close()
        // Cancelled is how it ends.
        if !Task.isCancelled { try result.get() }
    }

    private func act(_ party: Party, with pool: ConnectionPool) async throws {
        func again(every period: Duration, _ body: () async throws -> Void) async throws {
            while true {
                try await body()
                try await Task.sleep(for: period)
            }
        }
        func publish(_ count: Int, of customer: String = "party", bytes: Int = 100, compresses: Bool = false)
            async throws
        {
            let filler: SQL =
                compresses
                ? "repeat('x', \(Int32(bytes)))"
                : "(SELECT string_agg(md5(random()::text || n::text), '') FROM generate_series(1, \(Int32(bytes / 32 + 1))) n)"
            try await pool.execute(
                """
                INSERT INTO outbox.event (type, after, customer_id)
                SELECT 'bench.event', json_build_object('z', 'z', 'filler', \(filler)), \(customer) FROM generate_series(1, \(Int32(count))) i
                """, within: .seconds(60))
        }
        switch party {
        case .silent: try await publish(10, bytes: 980_000)
        case .memory: try await publish(90, bytes: 1_000_000, compresses: true)
        case .responses: try await again(every: .seconds(2)) { try await publish(1) }
        case .slow, .rules: try await again(every: .milliseconds(500)) { try await publish(1) }
        case .names, .http2: try await again(every: .milliseconds(500)) { try await publish(1, of: party.rawValue) }
        case .resting: try await again(every: .milliseconds(100)) { try await publish(1) }
        case .template: try await again(every: .seconds(1)) { try await publish(1, bytes: 980_000) }
        case .fanOut: try await again(every: .seconds(8)) { try await publish(3) }
        case .life:
            try await again(every: .milliseconds(500)) {
                for (count, bytes) in [(8, 200), (3, 5_000), (1, 200_000)] {
                    try await publish(count, of: "life-\(Int.random(in: 0...199))", bytes: bytes)
                }
            }
        }
        // What was published once goes on by itself.
        try await Task.sleep(for: .seconds(3600))
    }
}
