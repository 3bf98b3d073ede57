import Bytewise
import Glibc
import Logging
import Metrics
import MetricsTestKit
import Outbox
import Postgres
import Receiver
import Synchronization
import TestSupport
import Testing

@testable import Scheduler

/// What is used up is seen: by a gauge, a line in the log, and what `problems` says.
@Suite(.timeLimit(.minutes(15))) struct BudgetTests {
    /// Keeps what is logged.
    private final class Lines: LogHandler, Sendable {
        let all = Mutex<[(level: Logger.Level, text: String)]>([])
        var metadata: Logger.Metadata {
            get { [:] }
            set {}
        }
        var logLevel: Logger.Level {
            get { .debug }
            set {}
        }
        subscript(metadataKey _: String) -> Logger.Metadata.Value? {
            get { nil }
            set {}
        }

        func log(event: LogEvent) {
            let pairs = (event.metadata ?? [:]).map { "\($0)=\($1)" }.sorted()
            all.withLock { $0.append((event.level, "\(event.message) " + pairs.joined(separator: " "))) }
        }
    }

    /// The process has one metrics system.
    private static let metrics: TestMetrics = {
        let metrics = TestMetrics()
        MetricsSystem.bootstrap(metrics)
        return metrics
    }()

    @Test func `what is used up for a while is said once a minute with who holds it, and when it is over`() throws {
        let metrics = Self.metrics
        let used = Atomic(1)
        let lines = Lines()
        let budgets = Budgets(
            [
                Budget(
                    .names,
                    reading: {
                        let used = used.load(ordering: .relaxed)
                        return Budget.Reading(used: used, limit: 8, isFull: used == 8)
                    }, holders: { ["customer a: 200 names"] })
            ], logger: Logger(label: "test") { _ in lines })
        let start = ContinuousClock.now
        budgets.look(at: start)
        used.store(8, ordering: .relaxed)
        budgets.look(at: start + .seconds(1))
        budgets.look(at: start + .seconds(10))
        #expect(lines.all.withLock(\.isEmpty) && budgets.complaints(at: start + .seconds(10)).isEmpty)
        for second in 12...70 { budgets.look(at: start + .seconds(second)) }
        let warnings = lines.all.withLock(\.self)
        #expect(warnings.count == 1 && warnings.first?.level == .warning)
        #expect(warnings.first?.text.contains("budget=names") == true)
        #expect(warnings.first?.text.contains("customer a: 200 names") == true)
        let complaint = try #require(budgets.complaints(at: start + .seconds(70)).first)
        #expect(complaint.problem == "names_full" && complaint.age == .seconds(69))
        #expect(complaint.detail == "uses 8 of 8 threads that look up names; most of that: customer a: 200 names")
        let gauge = try metrics.expectGauge("outbox_budget_used", [("budget", "names")])
        #expect(gauge.lastValue == 8)
        #expect(try metrics.expectGauge("outbox_budget_limit", [("budget", "names")]).lastValue == 8)

        used.store(0, ordering: .relaxed)
        budgets.look(at: start + .seconds(71))
        budgets.look(at: start + .seconds(72))
        #expect(lines.all.withLock { $0.map(\.level) } == [.warning, .notice])
        #expect(budgets.complaints(at: start + .seconds(72)).isEmpty && gauge.lastValue == 0)
    }

    @Test func `a worker tells how much of each budget is taken`() async throws {
        let database = try await TestCluster.database()
        let mayAnswer = Flag(false)
        let ledger = try Ledger { _, _ in
            while !mayAnswer.isSet { usleep(20_000) }
            return Receiver.Response()
        }
        try await database.endpoint("e", url: ledger.url) { $0.timeout = .seconds(300) }
        try await TestWorker.run(database, configure: { $0.maxInFlight = 8 }) {
            try await database.publish(3)
            @Sendable func budget(_ name: String, _ part: String) async throws -> Int {
                try await database.number(
                    "SELECT coalesce(max((budgets -> '\(raw: name)' ->> '\(raw: part)')::int8), -1) FROM outbox.worker")
            }
            let isTold = try await eventually { try await budget("requests", "used") == 3 }
            #expect(isTold)
            #expect(try await budget("requests", "limit") == 8)
            for kind in Budget.Kind.allCases {
                #expect(try await budget(kind.rawValue, "limit") > 0, "\(kind)")
                #expect(try await budget(kind.rawValue, "used") >= 0, "\(kind)")
            }
            #expect(try await budget("event_bytes", "used") > 0)
            #expect(try await budget("descriptors", "used") > 10)
            mayAnswer.isSet = true
            #expect(await eventually { ledger.all.count == 3 })
        }
        ledger.receiver.stop()
    }

    @Test func `jobs that wait for a thread are seen, with whose they are`() async throws {
        let pool = try ComputePool(threads: 2)
        let gate = Flag(false)
        for customer in ["a", "b", "b", "b"] as [ExactText] {
            pool.post(for: customer) { while !gate.isSet { usleep(1000) } }
        }
        #expect(await eventually { pool.reading.used == 2 && pool.reading.isFull })
        #expect(pool.waiting["b"].map { $0 >= 1 } == true)
        gate.isSet = true
        #expect(await eventually { pool.reading.used == 0 && !pool.reading.isFull })
        await pool.stop()
    }
}
