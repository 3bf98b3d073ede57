import Outbox
import Postgres

extension Bench {
    private static let steadyOnes = (1...20).map { "steady-\($0)" }
    private static let flappingOnes = (1...40).map { "flapping-\($0)" }

    /// Forty endpoints fail and recover every six seconds, as often as a breaker's first rest lets
    /// them, and twenty others get their events through lanes, too, all under one held snapshot:
    /// how fast those twenty lanes are before and after.
    func measureFlapping() async throws -> Report.Flapping {
        guard let sink else { throw Benchmark.Failure(description: "flapping needs the built-in sink") }
        for (number, customer) in Self.steadyOnes.enumerated() {
            try await createEndpoint(number + 1) {
                $0.customerID = customer
                $0.maxConcurrency = 10
            }
        }
        for (number, customer) in Self.flappingOnes.enumerated() {
            try await createEndpoint(number + 101) {
                $0.customerID = customer
                $0.retrySchedule = Array(repeating: .seconds(1), count: 20)
            }
        }
        let snapshot = try await holdSnapshot()
        defer { snapshot.finish() }
        var report = Report.Flapping(endpoints: Self.flappingOnes.count)
        (report, _) = try await withWorkers(plan.workers) { _ in
            let time = min(plan.duration, .seconds(10))
            _ = try await rounds(for: time / 5, title: "warming up")
            report.before = try await rounds(for: time, title: "before")
            async let openings = flap(sink)
            let times = Int(plan.duration / .milliseconds(100))
            _ = try await publish(
                for: Self.steadyOnes + Self.flappingOnes, times: times, apart: .milliseconds(100), title: "flapping")
            report.opens = try await openings
            // The benchmark does not wait for the next probes.
            try await scratch.pool.execute("UPDATE outbox.lane SET resting_until = clock_timestamp() WHERE trips > 0")
            try await settle()
            report.after = try await rounds(for: time, title: "after")
            return report
        }
        report.ratio = report.after.perSecond / report.before.perSecond
        report.laneUpdates = try await count(
            "SELECT n_tup_upd FROM pg_stat_user_tables WHERE schemaname = 'outbox' AND relname = 'lane'")
        return report
    }

    /// They fail half of the time, and not all at once. Returns how often breakers opened.
    private func flap(_ sink: Sink) async throws -> Int {
        var openings: Set<String> = []
        let end = ContinuousClock.now + plan.duration
        var step = 0
        // On a slow machine until at least one opening has been seen, since openings are measured.
        while .now < end || openings.isEmpty && .now < end + .seconds(60) {
            for number in Self.flappingOnes.indices {
                sink.treat(number + 101, (number + step) % 6 < 3 ? .fail : nil)
            }
            step += 1
            // A breaker stays open for five seconds at least, so that every opening is seen.
            openings.formUnion(
                try await scratch.pool.query(
                    "SELECT concat(endpoint_id, failing_since) FROM outbox.lane WHERE trips > 0", of: String.self
                ))
            try await Task.sleep(for: .seconds(1))
        }
        for number in Self.flappingOnes.indices { sink.treat(number + 101, nil) }
        return openings.count
    }

    /// One event for each of the twenty in one transaction, and the next one when all have got
    /// their responses.
    private func rounds(for time: Duration, title: String) async throws -> Report.Rounds {
        guard let sink else { return Report.Rounds() }
        var phase = progress.begin(title, total: Int(time.inSeconds))
        _ = sink.takeStock()
        let body = JSONText(Array(benchmark.body.utf8))
        let (before, blocksBefore) = try await load()
        let started = ContinuousClock.now
        var times: [(microseconds: Int64, count: Int)] = []
        while .now - started < time {
            let begun = ContinuousClock.now
            try await scratch.pool.execute(
                "INSERT INTO outbox.event (type, after, customer_id) SELECT 'bench.event', \(body), unnest(\(Self.steadyOnes))"
            )
            while sink.served < Self.steadyOnes.count * (times.count + 1) {
                try Task.checkCancellation()
                guard .now - begun < .seconds(60) else {
                    throw Benchmark.Failure(description: "a round was not answered")
                }
                try await Task.sleep(for: .microseconds(200))
            }
            times.append((Int64((ContinuousClock.now - begun) / .microseconds(1)), 1))
            phase.show(Int((ContinuousClock.now - started).inSeconds))
        }
        let took = ContinuousClock.now - started
        phase.end(Int(time.inSeconds))
        let (after, blocksAfter) = try await load()
        return Report.Rounds(
            perSecond: Double(times.count) / took.inSeconds, milliseconds: Report.Percentiles(times),
            blocks: (blocksAfter - blocksBefore) / times.count,
            databaseMilliseconds: after.processorTime.flatMap { end in
                before.processorTime.map { (end - $0).inSeconds * 1000 / Double(times.count) }
            })
    }

    /// The load of the server so far, and how many blocks its sessions have read in this database.
    /// Sessions report that once a second, so the next step waits for it.
    private func load() async throws -> (ServerLoad, blocks: Int) {
        let load = try await scratch.pool.run { try ServerLoad.read(&$0) }
        try await Task.sleep(for: .milliseconds(1500))
        let blocks = try await count(
            "SELECT blks_hit + blks_read FROM pg_stat_database WHERE datname = current_database()")
        return (load, blocks)
    }
}
