import Foundation
import Outbox
import Postgres

extension Bench {
    /// A receiver fails while `events` wait for it, and recovers: when the first is through, how
    /// the requests grow, how fast the lane drains; and how long it takes until another worker
    /// continues when the lane's owner is killed half-way.
    func measureRecovery() async throws -> Report.Recovery {
        guard let sink else { throw Benchmark.Failure(description: "recovery needs the built-in sink") }
        let endpoint = try await createEndpoint(1) { $0.customerID = "bench" }
        sink.treat(1, .fail)
        try await fillLane(endpoint, customer: "bench", plan.events)
        let lease = Duration.seconds(5)
        let (report, _) = try await withWorkers(2, lease: "5s") { workers in
            var report = Report.Recovery(events: plan.events, leaseSeconds: lease.inSeconds)
            // Open, and at its third probe or so.
            try await wait("failing", "SELECT trips >= 3 FROM outbox.lane")
            report.attemptsWhileFailing = try await count("SELECT count(*) FROM outbox.attempt")
            report.failingProcessorShare = try await cost(of: workers, over: .seconds(8))
            sink.treat(1, nil)
            let returned = try await now()
            let probe =
                try await scratch.pool.query("SELECT resting_until FROM outbox.lane", of: Timestamp.self).first
                ?? returned
            report.nextProbeAfterSeconds = Double(max(0, probe.microseconds - returned.microseconds)) / 1e6
            try await wait(
                "half", "SELECT count(*) >= \(plan.events / 2) FROM outbox.attempt WHERE outcome = 'success'")
            // The lane's owner is killed.
            let owner = try await scratch.pool.query(
                "SELECT pid FROM outbox.worker w JOIN outbox.lane l ON l.worker = w.id", of: Int.self
            ).first
            let killed = try await now()
            guard let victim = workers.first(where: { Int($0.pid) == owner }) else {
                throw Benchmark.Failure(description: "the lane has no owner half-way")
            }
            victim.kill()
            try await wait("drained", "SELECT NOT EXISTS (SELECT FROM outbox.delivery)")
            let starts = try await scratch.pool.query(
                """
                SELECT (SELECT min(started_at + total_us * interval '1 us') FROM outbox.attempt WHERE outcome = 'success'),
                       (SELECT min(started_at) FROM outbox.attempt WHERE started_at > \(killed) AND worker <> \(try await workerID(owner))),
                       (SELECT max(started_at + total_us * interval '1 us') FROM outbox.attempt)
                """, within: .seconds(60), of: Timestamp.self, Timestamp.self, Timestamp.self
            )
            if let (first, takeover, last) = starts.first {
                func seconds(_ from: Timestamp, _ to: Timestamp) -> Double {
                    Double(to.microseconds - from.microseconds) / 1e6
                }
                report.firstAfterSeconds = seconds(returned, first)
                report.takeoverAfterSeconds = seconds(killed, takeover)
                report.deliveriesPerSecond =
                    Double(plan.events) / (seconds(first, last) - report.takeoverAfterSeconds)
            }
            report.firstRounds = try await rounds()
            // Requests that got a 500 are retried, and a retry is not a duplicate.
            let failures = try await count("SELECT count(*) FROM outbox.attempt WHERE outcome = 'failure'")
            report.duplicates = sink.takeStock().requests - plan.events - failures
            return report
        }
        return report
    }

    /// One thousand events scheduled some seconds later, beside `events` scheduled a day later.
    func measureScheduled() async throws -> Report.Scheduled {
        let endpoint = try await createEndpoint(1) { $0.customerID = "soon" }
        let later = try await createEndpoint(2) { $0.customerID = "later" }
        var report = Report.Scheduled(waiting: plan.events)
        let (idle, _) = try await withWorkers(plan.workers) { workers in
            try await Task.sleep(for: .seconds(2))
            return try await cost(of: workers, over: .seconds(8))
        }
        try await fillLane(later, customer: "later", plan.events, due: try await now() + .seconds(86_400))
        let (waiting, _) = try await withWorkers(plan.workers) { workers in
            try await Task.sleep(for: .seconds(2))
            let waiting = try await cost(of: workers, over: .seconds(8))
            let body = JSONText(Array(benchmark.body.utf8))
            try await scratch.pool.execute(
                """
                INSERT INTO outbox.event (type, after, customer_id, deliver_at)
                SELECT 'bench.event', \(body), 'soon', clock_timestamp() + interval '3 s' + n * interval '10 ms' FROM generate_series(1, 1000) n
                """)
            try await wait("on time", "SELECT count(*) = 1000 FROM outbox.attempt")
            return waiting
        }
        (report.idleProcessorShare, report.waitingProcessorShare) = (idle, waiting)
        report.lateMilliseconds = Report.Percentiles(
            try await scratch.pool.query(
                """
                SELECT (extract(epoch FROM a.started_at - e.deliver_at) * 1000000)::int8 FROM outbox.attempt a
                  JOIN outbox.event e ON e.id = a.event_id WHERE a.endpoint_id = \(endpoint)
                """, within: .seconds(60)
            ) { row throws(PostgresError) in (try row[0] as Int64, 1) })
        return report
    }

    /// The share of one processor that the workers and the whole server use.
    func cost(of workers: [Child], over time: Duration) async throws -> Report.ProcessorShare {
        func read() async throws -> (workers: Duration, server: Duration?) {
            let load = try await scratch.pool.run { try ServerLoad.read(&$0) }
            return (workers.map { ServerLoad.processorTime(of: $0.pid) }.reduce(.zero, +), load.processorTime)
        }
        let before = try await read()
        try await Task.sleep(for: time)
        let after = try await read()
        return Report.ProcessorShare(
            workers: (after.workers - before.workers) / time,
            database: after.server.flatMap { end in before.server.map { (end - $0) / time } })
    }

    func count(_ query: SQL) async throws -> Int {
        try await scratch.pool.query(query, within: .seconds(60), of: Int.self)
            .first ?? 0
    }

    private func workerID(_ pid: Int?) async throws -> String {
        try await scratch.pool.query(
            "SELECT id FROM outbox.worker WHERE pid = \(pid.map { Int32($0) })", of: String.self
        ).first ?? ""
    }

    /// Repeats the check until it is true.
    private func wait(_ title: String, _ query: SQL) async throws {
        var phase = progress.begin(title, total: 1)
        let deadline = ContinuousClock.now + .seconds(600)
        while true {
            let isSo = try await scratch.pool.query(query, within: .seconds(60), of: Bool.self).first
            if isSo == true { return phase.end(1) }
            guard .now < deadline else { throw Benchmark.Failure(description: "never \(title)") }
            try await Task.sleep(for: .milliseconds(100))
        }
    }

    /// How many requests went out together: those that started before the first of them had ended
    /// are one round.
    private func rounds() async throws -> [Int] {
        let requests = try await scratch.pool.query(
            """
            SELECT (extract(epoch FROM started_at) * 1000000)::int8, total_us FROM outbox.attempt
             WHERE started_at >= (SELECT min(started_at) FROM outbox.attempt WHERE outcome = 'success') ORDER BY started_at LIMIT 2000
            """, within: .seconds(60)
        ) { row throws(PostgresError) in (start: try row[0] as Int64, took: Int64(try row[1] as Int)) }
        var rounds: [Int] = []
        var end = Int64.min
        for request in requests {
            if request.start > end {
                rounds.append(0)
                end = request.start + request.took
            }
            rounds[rounds.count - 1] += 1
            end = max(end, request.start + request.took)
        }
        return Array(rounds.prefix(8))
    }
}
