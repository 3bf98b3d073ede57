import Foundation
import Outbox
import Postgres

extension Bench {
    /// Delivers events that were committed before the workers started.
    func measureDrain() async throws -> Report.Drain {
        try await createEndpoints()
        try await fill(plan.events + plan.backlog)
        let snapshot = plan.holdsSnapshot ? try await holdSnapshot() : nil
        defer { snapshot?.finish() }

        let deliveries = plan.events * plan.endpoints
        _ = sink?.takeStock()
        let before = try await scratch.pool.run { try ServerLoad.read(&$0) }
        let (measured, statements) = try await withWorkers(plan.workers) { workers in
            let started = try await now()
            let processorBefore = workers.map { ServerLoad.processorTime(of: $0.pid) }
            try await watch(deliveries)
            let load = try await scratch.pool.run { try ServerLoad.read(&$0) }
            let processor = zip(workers, processorBefore).map { ServerLoad.processorTime(of: $0.pid) - $1 }
            return (
                started: started, load: load, memory: workers.map(\.peakMemory).max() ?? 0,
                processor: processor.reduce(.zero, +)
            )
        }

        var drain = Report.Drain(events: plan.events, endpoints: plan.endpoints, workers: plan.workers)
        let slices = try await finishTimes(deliveries)
        let counts = try await counts()
        drain.attempts = counts.attempts
        drain.failures = counts.failures
        if let last = slices.last {
            drain.seconds = Double(last.at - measured.started.microseconds) / 1e6
            drain.deliveriesPerSecond = Double(last.count) / drain.seconds
        }
        var (count, at) = (0, measured.started.microseconds)
        for slice in slices {
            drain.tenthsPerSecond.append(Double(slice.count - count) / (Double(max(1, slice.at - at)) / 1e6))
            (count, at) = (slice.count, slice.at)
        }
        if let sink {
            let stock = sink.takeStock()
            drain.requests = stock.requests
            drain.duplicates = plan.failRate > 0 ? nil : stock.requests - stock.deliveries
        }
        let done = Double(max(1, counts.attempts))
        if let end = measured.load.processorTime, let start = before.processorTime {
            drain.databaseMicrosecondsPerDelivery = (end - start).inSeconds * 1e6 / done
        }
        drain.workerMicrosecondsPerDelivery = measured.processor.inSeconds * 1e6 / done
        drain.walBytesPerDelivery = Double(measured.load.walBytes - before.walBytes) / done
        drain.statementsPerDelivery = Double(statements) / done
        drain.workerMemoryBytes = measured.memory
        drain.deadTuples = counts.deadTuples
        drain.requestMilliseconds = try await requestTimes()
        drain.attemptsPerWorker = try await attemptsPerWorker()
        return drain
    }

    /// The database's time.
    func now() async throws -> Timestamp {
        try await scratch.pool.query("SELECT clock_timestamp()", of: Timestamp.self).first ?? .distantPast
    }

    /// Waits until this number of deliveries is recorded; all of them when nothing else waits.
    private func watch(_ deliveries: Int) async throws {
        var phase = progress.begin("delivering", total: deliveries)
        // The server's statistics come late, so the sink's count is read first; its responses are
        // recorded a moment later.
        while true {
            try Task.checkCancellation()
            let done = if let sink { sink.served } else { try await recordedAttempts() }
            phase.show(done)
            if plan.backlog > 0 {
                if done >= deliveries, try await countAttempts(upTo: deliveries) { break }
            } else if done >= deliveries || sink == nil, try await isDrained() {
                break
            }
            try await Task.sleep(for: .milliseconds(50))
        }
        phase.end(deliveries)
    }

    private func countAttempts(upTo most: Int) async throws -> Bool {
        try await scratch.pool.query(
            "SELECT count(*) >= \(most) FROM (SELECT FROM outbox.attempt WHERE outcome = 'success' LIMIT \(most)) s",
            within: .seconds(600), of: Bool.self
        ).first ?? false
    }

    /// When each tenth of the deliveries got its response, in microseconds of the database's clock.
    private func finishTimes(_ deliveries: Int) async throws -> [(count: Int, at: Int64)] {
        let size = max(1, (deliveries + 9) / 10)
        return try await scratch.pool.query(
            """
            SELECT max(number), (extract(epoch FROM max(at)) * 1000000)::int8
              FROM (SELECT at, row_number() OVER (ORDER BY at) AS number
                      FROM (SELECT started_at + total_us * interval '1 us' AS at FROM outbox.attempt WHERE outcome = 'success') s) n
             WHERE number <= \(deliveries) GROUP BY (number - 1) / \(size) ORDER BY 1
            """, within: .seconds(600), of: Int.self, Int64.self
        )
    }

    private func counts() async throws -> (attempts: Int, failures: Int, deadTuples: Int) {
        try await scratch.pool.query(
            """
            SELECT count(*), count(*) FILTER (WHERE outcome <> 'success'),
                   (SELECT coalesce(sum(n_dead_tup), 0)::int8 FROM pg_stat_user_tables WHERE schemaname = 'outbox')
              FROM outbox.attempt
            """, within: .seconds(600), of: Int.self, Int.self, Int.self
        ).first ?? (0, 0, 0)
    }

    private func requestTimes() async throws -> Report.Percentiles {
        let times = try await scratch.pool.query(
            "SELECT total_us, count(*) FROM outbox.attempt GROUP BY total_us", within: .seconds(600)
        ) { row throws(PostgresError) in (microseconds: Int64(try row[0] as Int), count: try row[1] as Int) }
        return Report.Percentiles(times)
    }

    private func attemptsPerWorker() async throws -> [Int] {
        try await scratch.pool.query(
            "SELECT count(*) FROM outbox.attempt GROUP BY worker ORDER BY 1", within: .seconds(600), of: Int.self
        )
    }

    /// Opens a transaction whose snapshot stays until the stream is finished.
    func holdSnapshot() async throws -> AsyncStream<Void>.Continuation {
        let pool = try ConnectionPool(scratch.target, size: 1)
        let (release, continuation) = AsyncStream<Void>.makeStream()
        try await pool.run { connection in
            try connection.script(
                "SET idle_in_transaction_session_timeout = 0; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.setting; SAVEPOINT held"
            )
        }
        // Ends when the caller releases it; the connection, and with it the snapshot, lives that
        // long.
        Task {
            for await _ in release {}
            await pool.close()
        }
        return continuation
    }
}
