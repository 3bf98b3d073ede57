import Foundation
import Outbox
import Postgres

extension Bench {
    /// Publishes one event of each customer at a time, in one transaction, at fixed times. An event
    /// counts as committed when the server reports it: the time of its disk beside a flood is not
    /// part of the measurement.
    func publish(for customers: [String], times: Int, apart: Duration, title: String) async throws -> [Committed] {
        let pool = try ConnectionPool(scratch.target, size: 1)
        var phase = progress.begin(title, total: times * customers.count)
        var committed: [Committed] = []
        let body = JSONText(Array(benchmark.body.utf8))
        var next = ContinuousClock.now
        do {
            for _ in 1...times {
                next += apart
                committed += try await pool.run { connection in
                    try connection.script("BEGIN")
                    let inserted = try connection.query(
                        """
                        INSERT INTO outbox.event (type, after, customer_id) SELECT 'bench.event', \(body), unnest(\(customers))
                        RETURNING id, clock_timestamp()
                        """
                    ).all(Int64.self, Timestamp.self)
                    let asked = ContinuousClock.now
                    try connection.script("COMMIT")
                    let took = ContinuousClock.now - asked
                    return inserted.map { Committed(event: $0, at: $1 + took) }
                }
                phase.show(committed.count)
                try await Task.sleep(until: next, clock: .continuous)
            }
            await pool.close()
        } catch {
            await pool.close()
            throw error
        }
        phase.end(committed.count)
        return committed
    }

    /// Waits until each of these events has got a success.
    func wait(for committed: [Committed], upTo limit: Duration = .seconds(120)) async throws {
        let deadline = ContinuousClock.now + limit
        while true {
            let answered = try await answers()
            if committed.allSatisfy({ answered[$0.event] != nil }) { return }
            guard .now < deadline else { throw Benchmark.Failure(description: "not everything was delivered") }
            try await Task.sleep(for: .milliseconds(200))
        }
    }

    /// Twenty healthy endpoints with 100 events/s each: alone, and then beside a dead endpoint with
    /// `events` deliveries waiting, one that never responds and one that responds with 429, all of
    /// which get 100 events/s, too.
    func measureNeighbours() async throws -> Report.Comparison {
        guard let sink else { throw Benchmark.Failure(description: "neighbours need the built-in sink") }
        let healthy = (1...20).map { "healthy-\($0)" }
        for (number, customer) in healthy.enumerated() {
            try await createEndpoint(number + 1) { $0.customerID = customer }
        }
        let bad = ["dead", "silent", "refusing"]
        for (number, manner) in [Sink.Manner.fail, .silence, .refuse].enumerated() { sink.treat(101 + number, manner) }
        let times = Int(plan.duration / .milliseconds(10))
        func run(_ customers: [String], title: String) async throws -> ([Committed], Double) {
            let started = ContinuousClock.now
            let all = try await publish(for: customers, times: times, apart: .milliseconds(10), title: title)
            // The first twenty of each transaction are the healthy ones.
            let mine = all.enumerated().filter { $0.offset % customers.count < healthy.count }.map(\.element)
            try await wait(for: mine)
            return (mine, Double(mine.count) / (ContinuousClock.now - started).inSeconds)
        }
        let (alone, _) = try await withWorkers(plan.workers) { _ in
            _ = try await publish(for: healthy, times: 20, apart: .milliseconds(10), title: "warming up")
            return try await run(healthy, title: "alone")
        }
        for (number, customer) in bad.enumerated() {
            let id = try await createEndpoint(101 + number) { $0.customerID = customer }
            if customer == "dead" { try await fillLane(id, customer: customer, plan.events) }
        }
        let (beside, _) = try await withWorkers(plan.workers) { _ in
            _ = try await publish(for: healthy + bad, times: 20, apart: .milliseconds(10), title: "warming up")
            return try await run(healthy + bad, title: "beside the bad ones")
        }
        let answered = try await answers()
        return Report.Comparison(
            waiting: try await count("SELECT count(*) FROM outbox.delivery"),
            alone: percentiles(alone.0, answered), beside: percentiles(beside.0, answered),
            throughputRatio: beside.1 / alone.1)
    }

    /// Fifty customers with ten events each: alone; then while another customer commits `events` in
    /// transactions of ten thousand, as fast as the database allows; and then again while those are
    /// delivered.
    func measureFlood() async throws -> Report.Comparison {
        let few = (1...50).map { "few-\($0)" }
        for (number, customer) in few.enumerated() { try await createEndpoint(number + 1) { $0.customerID = customer } }
        try await createEndpoint(100) { $0.customerID = "flood" }
        let (runs, _) = try await withWorkers(plan.workers) { _ in
            _ = try await publish(for: few, times: 3, apart: .milliseconds(100), title: "warming up")
            try await settle()
            let alone = try await publish(for: few, times: 10, apart: .seconds(1), title: "alone")
            try await wait(for: alone)
            async let flood: Void = fill(plan.events, customer: "flood", title: "flooding")
            try await Task.sleep(for: .seconds(1))
            let during = try await publish(
                for: few, times: 10, apart: .milliseconds(500), title: "while it is committed")
            try await flood
            let beside = try await publish(
                for: few, times: 10, apart: .milliseconds(500), title: "while it is delivered")
            try await wait(for: during + beside, upTo: .seconds(600))
            return (alone: alone, during: during, beside: beside, left: try await floodLeft())
        }
        let answered = try await answers()
        var report = Report.Comparison(
            waiting: runs.left, alone: percentiles(runs.alone, answered), beside: percentiles(runs.beside, answered),
            throughputRatio: nil)
        report.whileCommitted = percentiles(runs.during, answered)
        return report
    }

    /// How many events of the flood are not delivered yet.
    private func floodLeft() async throws -> Int {
        let done = try await count(
            "SELECT count(*) FROM outbox.attempt a JOIN outbox.endpoint n ON n.id = a.endpoint_id WHERE n.customer_id = 'flood'"
        )
        return plan.events - done
    }
}
