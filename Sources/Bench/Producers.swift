import Outbox
import Postgres
import Synchronization

extension Bench {
    /// Transactions per second that insert one event, beside the same insert into a bare table with
    /// the same indexes: once while a worker sleeps, once while it is busy delivering.
    func measureProducers() async throws -> [Report.Producers] {
        try await scratch.pool.run { connection in
            try connection.script(
                """
                CREATE TABLE public.bare (
                    id bigint GENERATED ALWAYS AS IDENTITY, tx xid8 NOT NULL DEFAULT pg_current_xact_id(),
                    created_at timestamptz NOT NULL DEFAULT clock_timestamp(), customer_id text NOT NULL DEFAULT 'default',
                    type text NOT NULL, change_type text NOT NULL DEFAULT 'Create',
                    transaction_id uuid NOT NULL DEFAULT gen_random_uuid(), identity text DEFAULT session_user,
                    before json, after json, occurred_at timestamptz, ordering_key text, deliver_at timestamptz,
                    headers jsonb NOT NULL DEFAULT '{}');
                CREATE INDEX ON public.bare (id); CREATE INDEX ON public.bare (tx, id);
                CREATE INDEX ON public.bare (transaction_id)
                """)
        }
        var results: [Report.Producers] = []
        for clients in [1, 16, 64] {
            // No endpoint wants the events, so that the worker only wakes up, scans and sleeps
            // again.
            let (result, _) = try await withWorkers(1) { _ in try await compare(clients, worker: "asleep") }
            results.append(result)
        }
        try await createEndpoints()
        for clients in [1, 16, 64] {
            try await fill(300_000)
            let (result, _) = try await withWorkers(1) { _ in try await compare(clients, worker: "busy") }
            results.append(result)
        }
        return results
    }

    /// Alternates between the two tables, so that both get the same share of other load.
    private func compare(_ clients: Int, worker: String) async throws -> Report.Producers {
        let pool = try ConnectionPool(scratch.target, size: clients)
        let turns = 4
        var phase = progress.begin("\(clients) producers, \(worker)", total: turns * 2)
        var rates: (bare: [Double], outbox: [Double]) = ([], [])
        do {
            for turn in 0..<turns {
                rates.bare.append(try await insert("public.bare", clients, pool))
                phase.show(turn * 2 + 1)
                rates.outbox.append(try await insert("outbox.event", clients, pool))
                phase.show(turn * 2 + 2)
            }
            await pool.close()
        } catch {
            await pool.close()
            throw error
        }
        phase.end(turns * 2)
        // The first turn makes the connections and warms both tables.
        func mean(_ values: [Double]) -> Double { values.dropFirst().reduce(0, +) / Double(values.count - 1) }
        let (bare, outbox) = (mean(rates.bare), mean(rates.outbox))
        return Report.Producers(
            clients: clients, worker: worker, barePerSecond: bare, outboxPerSecond: outbox, ratio: outbox / bare)
    }

    /// Inserts from all clients for a while; returns transactions per second.
    private func insert(_ table: String, _ clients: Int, _ pool: ConnectionPool) async throws -> Double {
        let body = JSONText(Array(benchmark.body.utf8))
        let started = ContinuousClock.now
        let end = started + .milliseconds(1500)
        let total = try await withThrowingTaskGroup(of: Int.self) { group in
            for _ in 0..<clients {
                group.addTask {
                    try await pool.run { connection in
                        var count = 0
                        while .now < end {
                            try connection.query(
                                "INSERT INTO \(raw: table) (type, after, customer_id) VALUES ('bench.event', \(body), 'bench')"
                            )
                            count += 1
                        }
                        return count
                    }
                }
            }
            return try await group.reduce(0, +)
        }
        return Double(total) / (ContinuousClock.now - started).inSeconds
    }
}
