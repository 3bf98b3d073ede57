import Foundation
import Outbox
package import Postgres
import StandardWebhooks
import Transport

/// Measures the service on a database of the user's own, with real worker processes and real
/// requests.
///
/// Every phase makes a scratch database, fills it, runs `outboxctl run` on it and drops it. Phases
/// run one after the other; each reports its measurements in its own part of the report.
package struct Benchmark: Sendable {
    package enum Phase: String, Sendable, CaseIterable {
        /// A bare libcurl loop against the same sink: the cost of sending alone.
        case loop
        /// Producers' transactions per second with and without the outbox.
        case producers
        /// Delivering events that were committed before.
        case drain
        /// Events at a constant rate: from commit to response.
        case steady
        /// Healthy endpoints beside a dead one, a silent one and one that refuses.
        case neighbours
        /// Many customers with few events beside one with very many.
        case flood
        /// A receiver that recovers with a full lane, and a lane whose owner is killed.
        case recovery
        /// Scheduled deliveries: whether they go out on time, and their cost until then.
        case scheduled
        /// Endpoints that fail and recover all the time while a session holds a snapshot: the cost
        /// of lanes before and after.
        case flapping
        /// Ten thousand endpoints of other customers: their cost while idle, while one of them
        /// changes every second, and per event.
        case directory
        /// A healthy endpoint beside each kind of party that takes what it can within every limit.
        case shares

        /// The phases that run by default; the others take minutes.
        package static let usual: Set<Phase> = [.loop, .producers, .drain, .steady]
    }

    package struct Plan: Sendable {
        package var phases = Phase.usual
        /// Events to deliver in the drain.
        package var events = 100_000
        /// Bytes of JSON in each event.
        package var payload = 600
        package var endpoints = 1
        package var workers = 1
        /// How long the sink takes to respond.
        package var latency = Duration.zero
        /// The share of requests to which the sink responds with status 500.
        package var failRate = 0.0
        /// Keep a snapshot open from before the first delivery to after the last.
        package var holdsSnapshot = false
        /// Events that wait beside the measured ones.
        package var backlog = 0
        /// Send everything through the endpoints' lanes.
        package var usesLanes = false
        /// Events per second in the steady phase.
        package var rate = 500
        /// How long the steady phase takes, or the flapping.
        package var duration = Duration.seconds(10)
        /// Requests in flight per endpoint.
        package var inFlight = 128
        /// The user's own sink in place of the built-in one; `{n}` is the endpoint's number.
        package var url: String?
        /// Only these parties of the shares; nil for all that can be had.
        package var parties: [Party]?
        /// A receiver that speaks HTTP/2, and the authorities to trust for it, for the shares.
        package var http2URL: String?
        package var http2Authorities: String?

        package init() {}
    }

    /// A worker that did not start or end properly, with its last output; or no place for the key
    /// file.
    package struct Failure: Error, CustomStringConvertible {
        package let description: String
    }

    let plan: Plan
    let target: ConnectionTarget
    let progress: Progress

    /// - Parameter target: a database on the server to be measured, whose user may create others
    ///   there.
    package init(_ plan: Plan, on target: ConnectionTarget, progress: Progress) {
        self.plan = plan
        self.target = target
        self.progress = progress
    }

    /// Runs the phases. Throws the error of the database or a worker; everything is cleaned up
    /// before.
    package func run() async throws -> Report {
        var report = Report(plan: plan)
        let server = try ConnectionPool(target, size: 1)
        let version = try await server.query("SELECT current_setting('server_version')", of: String.self)
        await server.close()
        report.machine.postgresql = version.first ?? ""

        let sink = plan.url == nil ? try Sink(delay: plan.latency, failRate: plan.failRate) : nil
        defer { sink?.stop() }
        if plan.phases.contains(.loop) { report.loop = try await measureLoop(sink) }
        for phase in Phase.allCases where phase != .loop && plan.phases.contains(phase) {
            try Task.checkCancellation()
            if phase == .shares {
                report.shares = try await measureShares(sink)
                continue
            }
            try await Scratch.with(beside: target) { scratch in
                let bench = try Bench(benchmark: self, scratch: scratch, sink: sink)
                defer { bench.removeKey() }
                switch phase {
                case .loop, .shares: break
                case .producers: report.producers = try await bench.measureProducers()
                case .drain: report.drain = try await bench.measureDrain()
                case .steady: report.steady = try await bench.measureSteady()
                case .neighbours: report.neighbours = try await bench.measureNeighbours()
                case .flood: report.flood = try await bench.measureFlood()
                case .recovery: report.recovery = try await bench.measureRecovery()
                case .scheduled: report.scheduled = try await bench.measureScheduled()
                case .flapping: report.flapping = try await bench.measureFlapping()
                case .directory: report.directory = try await bench.measureDirectory()
                }
            }
        }
        if let loop = report.loop, let drain = report.drain {
            report.drain?.shareOfLoop = drain.deliveriesPerSecond / loop.requestsPerSecond
        }
        return report
    }

    /// Each party in a database of its own; its receivers are on a thread of their own.
    private func measureShares(_ sink: Sink?) async throws -> [Report.Share] {
        var shares: [Report.Share] = []
        for party in Party.allCases
        where plan.parties?.contains(party) ?? (party != .http2 || plan.http2URL != nil) {
            try Task.checkCancellation()
            let hostile = try Sink(delay: .zero, failRate: 0)
            defer { hostile.stop() }
            try await Scratch.with(beside: target) { scratch in
                let bench = try Bench(benchmark: self, scratch: scratch, sink: sink)
                defer { bench.removeKey() }
                shares.append(try await bench.measureShare(party, hostile: hostile))
            }
        }
        return shares
    }

    func url(endpoint: Int, sink: Sink?) -> String {
        sink.map { "\($0.url)/e/\(endpoint)" } ?? (plan.url ?? "").replacing("{n}", with: "\(endpoint)")
    }

    /// JSON of exactly the planned size, or the smallest possible.
    var body: String {
        let frame = #"{"event":"bench","filler":""}"#
        let filler = String(repeating: "x", count: max(0, plan.payload - frame.utf8.count))
        return #"{"event":"bench","filler":"\#(filler)"}"#
    }

    private func measureLoop(_ sink: Sink?) async throws -> Report.Loop {
        // Long enough to be measured, even when responses take long.
        let requests = plan.latency > .zero ? max(plan.inFlight * 20, 1000) : 50_000
        var phase = progress.begin("libcurl alone", total: requests)
        let headers = HTTPHeaders(
            try [
                ("Content-Type", "application/json"), ("webhook-id", "evt_bench_1"),
                ("webhook-timestamp", "1700000000"),
                ("webhook-signature", "v1,47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="),
                ("User-Agent", "outbox-bench"),
            ].map { try HTTPHeader(own: $0.0, value: $0.1) })
        let (time, failures) = try await RawLoop.run(
            url: url(endpoint: 1, sink: sink), headers: headers, body: Array(body.utf8), requests: requests,
            inFlight: plan.latency > .zero ? plan.inFlight : min(64, plan.inFlight))
        phase.end(requests)
        _ = sink?.takeStock()
        return Report.Loop(requestsPerSecond: Double(requests) / time.inSeconds, failures: failures)
    }
}

extension Duration {
    var inSeconds: Double { self / .seconds(1) }
}

/// One phase's scratch database, with the settings that workers need to run on it.
struct Bench: Sendable {
    let benchmark: Benchmark
    let scratch: Scratch
    let sink: Sink?
    private let keyFile: String
    private let keyring: Keyring

    var plan: Benchmark.Plan { benchmark.plan }
    var progress: Progress { benchmark.progress }

    init(benchmark: Benchmark, scratch: Scratch, sink: Sink?) throws {
        self.benchmark = benchmark
        self.scratch = scratch
        self.sink = sink
        let line = Keyring.newKeyLine()
        keyring = try Keyring(text: line)
        keyFile = FileManager.default.temporaryDirectory.path + "/outbox-bench-\(UUID().uuidString).key"
        guard
            FileManager.default.createFile(
                atPath: keyFile, contents: Data(line.utf8), attributes: [.posixPermissions: 0o600])
        else { throw Benchmark.Failure(description: "cannot write \(keyFile)") }
    }

    func removeKey() {
        // A leftover key file would open nothing: the secrets that it sealed are dropped with the
        // scratch database.
        try? FileManager.default.removeItem(atPath: keyFile)
    }

    /// Creates the planned endpoints; each gets every event, signed.
    func createEndpoints() async throws {
        for number in 1...plan.endpoints {
            try await createEndpoint(number) {
                if plan.usesLanes { $0.maxConcurrency = plan.inFlight }
                // Deliveries that --fail-rate fails are retried soon: the last ones would otherwise
                // take hours.
                $0.retrySchedule = Array(repeating: .seconds(1), count: 20)
            }
        }
    }

    /// Creates the endpoint that the sink knows by this number.
    @discardableResult
    func createEndpoint(
        _ number: Int, _ body: (inout EndpointConfiguration) throws -> Void = { _ in }
    ) async throws -> EndpointID {
        var configuration = EndpointConfiguration(
            name: "bench-\(number)", url: benchmark.url(endpoint: number, sink: sink))
        configuration.maxInFlight = plan.inFlight
        try body(&configuration)
        return try await scratch.pool.run { [configuration, keyring] in
            try $0.createEndpoint(configuration, secret: .generate(), keyring: keyring)
        }
    }

    /// Adds waiting deliveries to an endpoint's lane, as if the stream had put them there; due at
    /// the given time. No worker runs.
    func fillLane(_ endpoint: EndpointID, customer: String, _ count: Int, due: Timestamp = .distantPast) async throws {
        try await fill(count, customer: customer, title: "filling a lane")
        let body: SQL = """
            INSERT INTO outbox.delivery (event_id, endpoint_id, event_at, due_at, trigger)
            SELECT id, \(endpoint), created_at, greatest(\(due), created_at), 'first' FROM outbox.event WHERE customer_id = \(customer)
            """
        try await scratch.pool.execute(
            "INSERT INTO outbox.cut (done, turn, last_turn) SELECT pg_current_snapshot(), turn, last_turn FROM outbox.cut ORDER BY id DESC LIMIT 1"
        )
        try await scratch.pool.execute(body, within: .seconds(600))
        try await scratch.pool.execute(
            "UPDATE outbox.lane SET due_at = least(due_at, (SELECT min(due_at) FROM outbox.delivery WHERE endpoint_id = \(endpoint))) WHERE endpoint_id = \(endpoint)",
            within: .seconds(60))
        try await scratch.pool.execute("VACUUM ANALYZE outbox.delivery", within: .seconds(600))
        try await checkpoint()
    }

    /// Commits the events, 10,000 per transaction, and lets the server tidy up before anything is
    /// measured.
    func fill(_ count: Int, customer: String = "bench", title: String = "filling") async throws {
        var phase = progress.begin(title, total: count)
        var filled = 0
        while filled < count {
            try Task.checkCancellation()
            let part = min(10_000, count - filled)
            let body = JSONText(Array(benchmark.body.utf8))
            try await scratch.pool.execute(
                """
                INSERT INTO outbox.event (type, after, customer_id, identity)
                SELECT 'bench.event', \(body), \(customer), 'bench' FROM generate_series(1, \(part))
                """, within: .seconds(120))
            filled += part
            phase.show(filled)
        }
        phase.end(filled)
        try await scratch.pool.execute("VACUUM ANALYZE outbox.event", within: .seconds(600))
        try await checkpoint()
    }

    /// The filled tables have to reach the disk before anything is measured. Not every role may
    /// request that.
    private func checkpoint() async throws {
        do { try await scratch.pool.execute("CHECKPOINT", within: .seconds(600)) } catch let error as PostgresError {
            guard error.sqlState == "42501" else { throw error }
        }
    }

    /// Runs the body beside worker processes; returns what it returns and how many statements the
    /// workers sent.
    func withWorkers<Value>(
        _ count: Int, lease: String = "60s", _ body: ([Child]) async throws -> Value
    ) async throws -> (Value, statements: Int) {
        var environment = [
            "DATABASE_URL": scratch.target.conninfo, "OUTBOX_SECRET_KEY_FILE": keyFile, "OUTBOX_LOG_FORMAT": "json",
            "OUTBOX_LOG_LEVEL": "info", "OUTBOX_LEASE": lease, "OUTBOX_MAX_IN_FLIGHT": "\(max(4096, plan.inFlight))",
        ]
        if sink != nil { environment["OUTBOX_ALLOW_NETWORKS"] = "127.0.0.0/8" }
        var workers: [Child] = []
        do {
            for _ in 0..<count {
                workers.append(try Child(["run", "--grace", "2s"], environment: environment))
            }
            for worker in workers { try await worker.waitUntilReady() }
            let value = try await body(workers)
            var statements = 0
            for worker in workers where worker.isRunning { statements += try await worker.stop() }
            return (value, statements)
        } catch {
            for worker in workers { worker.kill() }
            throw error
        }
    }

    /// How many attempts have been recorded, according to the server's statistics; some tenths of a
    /// second late.
    func recordedAttempts() async throws -> Int {
        try await scratch.pool.query(
            "SELECT coalesce(sum(n_tup_ins), 0)::int8 FROM pg_stat_user_tables WHERE schemaname = 'outbox' AND relname LIKE 'attempt%'",
            of: Int.self
        ).first ?? 0
    }

    /// True when nothing is outstanding: everything is cut, every batch is finished, no delivery
    /// waits.
    func isDrained() async throws -> Bool {
        try await scratch.pool.query(
            """
            SELECT NOT EXISTS (SELECT FROM outbox.batch) AND NOT EXISTS (SELECT FROM outbox.delivery)
               AND NOT EXISTS (SELECT FROM outbox.backlog WHERE stage = 'stream' AND waiting > 0)
            """, of: Bool.self
        ).first ?? false
    }
}
