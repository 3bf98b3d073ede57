import Outbox
import Postgres

extension Bench {
    private static let crowd = 10_000

    /// Events that no endpoint wants, before and after there are ten thousand endpoints of other
    /// customers that take every type; and the cost of those endpoints while nothing happens, and
    /// while the rest of one of them changes every second.
    func measureDirectory() async throws -> Report.Directory {
        let events = min(plan.events, 5000)
        var report = Report.Directory(endpoints: Self.crowd, events: events)
        (report, _) = try await withWorkers(plan.workers) { workers in
            report.workerMicrosecondsPerEventAlone = try await unwanted(events, workers)
            try await scratch.pool.execute(
                """
                WITH made AS (
                    INSERT INTO outbox.endpoint (name, customer_id, url) SELECT 'crowd-' || n, 'crowd-' || n, 'http://127.0.0.1:9/'
                      FROM generate_series(1, \(Self.crowd)) n RETURNING id)
                INSERT INTO outbox.lane (endpoint_id) SELECT id FROM made
                """, within: .seconds(60))
            // Waits until they are read.
            try await Task.sleep(for: .seconds(3))
            report.idleProcessorShare = try await cost(of: workers, over: plan.duration)
            async let changes: Void = change(for: plan.duration)
            report.changingProcessorShare = try await cost(of: workers, over: plan.duration)
            try await changes
            report.workerMicrosecondsPerEvent = try await unwanted(events, workers)
            return report
        }
        return report
    }

    /// A worker's time per event of a customer without endpoints.
    private func unwanted(_ events: Int, _ workers: [Child]) async throws -> Double {
        let before = workers.map { ServerLoad.processorTime(of: $0.pid) }.reduce(.zero, +)
        try await fill(events, customer: "nobody", title: "nobody wants these")
        try await settle()
        let after = workers.map { ServerLoad.processorTime(of: $0.pid) }.reduce(.zero, +)
        return (after - before).inSeconds * 1_000_000 / Double(events)
    }

    private func change(for time: Duration) async throws {
        let end = ContinuousClock.now + time
        var number = 0
        while .now < end {
            number += 1
            try await scratch.pool.execute(
                """
                UPDATE outbox.lane SET resting_until = clock_timestamp()
                 WHERE endpoint_id = (SELECT id FROM outbox.endpoint WHERE name = \("crowd-\(number)"))
                """)
            try await Task.sleep(for: .seconds(1))
        }
    }
}
