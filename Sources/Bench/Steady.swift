import Foundation
import Histogram
import Outbox
import Postgres

extension Bench {
    private static let producers = 8

    /// Publishes at a constant rate while workers deliver: the time from a commit to the receiver's
    /// response.
    func measureSteady() async throws -> Report.Steady {
        try await createEndpoints()
        let pool = try ConnectionPool(scratch.target, size: Self.producers)
        do {
            let (committed, _) = try await withWorkers(plan.workers) { _ in
                // The very first event makes the connection to the receiver; it is not measured.
                _ = try await publish(1, apart: .zero, from: pool, title: nil)
                try await settle()
                let idle = try await publish(10, apart: .milliseconds(400), from: pool, title: "waking up")
                try await settle()
                let steady = try await publishSteadily(from: pool)
                try await settle()
                return (idle: idle, steady: steady)
            }
            await pool.close()
            let answered = try await answers()
            var report = Report.Steady(rate: plan.rate, producers: Self.producers)
            report.published = committed.steady.count
            report.commitToResponseMilliseconds = percentiles(committed.steady, answered)
            report.firstAfterIdleMilliseconds = percentiles(committed.idle, answered)
            return report
        } catch {
            await pool.close()
            throw error
        }
    }

    struct Committed: Sendable {
        let event: Int64
        /// The database's time of the commit, or right before it.
        let at: Timestamp
    }

    private func publishSteadily(from pool: ConnectionPool) async throws -> [Committed] {
        let total = max(Self.producers, Int(Double(plan.rate) * plan.duration.inSeconds))
        let each = total / Self.producers
        let apart = plan.duration / each
        return try await withThrowingTaskGroup(of: [Committed].self) { group in
            for number in 0..<Self.producers {
                group.addTask {
                    // Spread evenly, as far as independent producers can be.
                    try await Task.sleep(for: apart * number / Self.producers)
                    return try await publish(each, apart: apart, from: pool, title: number == 0 ? "steady" : nil)
                }
            }
            return try await group.reduce(into: []) { $0 += $1 }
        }
    }

    /// Commits events one by one at fixed times, regardless of how long each takes.
    private func publish(
        _ count: Int, apart: Duration, from pool: ConnectionPool, title: String?
    ) async throws -> [Committed] {
        var phase = title.map { progress.begin($0, total: count) }
        var committed: [Committed] = []
        let body = JSONText(Array(benchmark.body.utf8))
        var next = ContinuousClock.now
        for number in 1...count {
            next += apart
            committed.append(
                try await pool.run { connection in
                    try connection.transaction { connection in
                        let row = try connection.query(
                            """
                            INSERT INTO outbox.event (type, after, customer_id) VALUES ('bench.event', \(body), 'bench')
                            RETURNING id, clock_timestamp()
                            """
                        ).first { row throws(PostgresError) in
                            Committed(event: try row[0] as Int64, at: try row[1] as Timestamp)
                        }
                        return row ?? Committed(event: 0, at: .distantPast)
                    }
                })
            phase?.show(number)
            try await Task.sleep(until: next, clock: .continuous)
        }
        phase?.end(count)
        return committed
    }

    /// Waits until everything published is recorded, and a moment more, so that the workers have
    /// fallen asleep.
    func settle() async throws {
        let deadline = ContinuousClock.now + .seconds(60)
        while !(try await isDrained()) {
            try Task.checkCancellation()
            guard .now < deadline else {
                throw Benchmark.Failure(description: "the workers do not keep up with the rate")
            }
            try await Task.sleep(for: .milliseconds(50))
        }
        try await Task.sleep(for: .seconds(1))
    }

    /// When each event got its first success.
    func answers() async throws -> [Int64: Timestamp] {
        let rows = try await scratch.pool.query(
            """
            SELECT event_id, min(started_at + total_us * interval '1 us') FROM outbox.attempt WHERE outcome = 'success'
             GROUP BY event_id
            """, within: .seconds(60), of: Int64.self, Timestamp.self
        )
        return Dictionary(uniqueKeysWithValues: rows)
    }

    func percentiles(_ committed: [Committed], _ answered: [Int64: Timestamp]) -> Report.Percentiles {
        Report.Percentiles(
            committed.compactMap { committed in
                answered[committed.event].map { (max(0, $0.microseconds - committed.at.microseconds), 1) }
            })
    }
}
