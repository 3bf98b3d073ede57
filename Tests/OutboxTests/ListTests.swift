import Outbox
import Postgres
import TestSupport
import Testing

/// Lists say the same as the views, and read no more than they show.
@Suite(.timeLimit(.minutes(15))) struct ListTests {
    /// Some endpoints and transactions, and deliveries in every state: by the number of the event.
    private func filled(_ events: Int, isAnalyzed: Bool = true) async throws -> TestDatabase {
        let database = try await TestCluster.untendedDatabase()
        for name in ["a", "b", "paused", "off"] { try await database.endpoint(name, url: "https://example.com/") }
        try await database.script(
            """
            INSERT INTO outbox.event (type, change_type, customer_id, transaction_id)
            SELECT 't' || n % 3, CASE n % 2 WHEN 0 THEN 'Create' ELSE 'Update' END, 'c' || n % 5,
                   ('00000000-0000-7000-8000-' || lpad((n / 3)::text, 12, '0'))::uuid FROM generate_series(1, \(events)) n;
            UPDATE outbox.endpoint SET disabled_at = clock_timestamp() WHERE name = 'off';
            UPDATE outbox.lane SET paused_until = 'infinity', pause_reason = 'r', paused_by = 'x'
             WHERE endpoint_id = (SELECT id FROM outbox.endpoint WHERE name = 'paused');
            INSERT INTO outbox.attempt (event_id, event_at, endpoint_id, number, trigger, lease_id, worker, started_at, total_us, outcome, status)
            SELECT e.id, e.created_at, n.id, k, 'first', gen_random_uuid(), 'w', clock_timestamp(), 1000,
                   CASE WHEN (e.id + k) % 7 = 0 THEN 'failure' ELSE 'success' END, 200
              FROM outbox.event e, outbox.endpoint n, generate_series(1, 2) k WHERE n.name IN ('a', 'b');
            INSERT INTO outbox.delivery (event_id, endpoint_id, event_at, due_at, trigger, attempts)
            SELECT e.id, n.id, e.created_at, clock_timestamp(), 'retry', 1 FROM outbox.event e, outbox.endpoint n
             WHERE e.id % 11 = 0 OR n.name = 'paused' AND e.id % 5 = 0 OR n.name = 'off' AND e.id % 6 = 0;
            INSERT INTO outbox.dead_letter (event_id, endpoint_id, event_at, reason, attempts, fingerprint)
            SELECT e.id, n.id, e.created_at, CASE e.id % 2 WHEN 0 THEN 'exhausted' ELSE 'cancelled' END, 3, 'f'
              FROM outbox.event e, outbox.endpoint n WHERE e.id % 13 = 0 AND n.name = 'a' AND e.id % 11 <> 0;
            INSERT INTO outbox.unrouted (event_id, endpoint_id, event_at, scan)
            SELECT e.id, n.id, e.created_at, 1 FROM outbox.event e, outbox.endpoint n
             WHERE e.id % 17 = 0 AND n.name = 'paused' AND e.id % 5 <> 0 AND e.id % 11 <> 0;
            \(isAnalyzed ? "ANALYZE" : "")
            """)
        return database
    }

    private struct Case: Sendable, CustomStringConvertible {
        let description: String
        let filter: ListFilter
        let condition: SQL
    }

    private func cases(_ database: TestDatabase) async throws -> [Case] {
        let ids = try await database.pool.query(
            "SELECT name, id FROM outbox.endpoint", of: String.self, EndpointID.self)
        let middle = try await database.pool.query(
            "SELECT created_at FROM outbox.event WHERE id = 200", of: Timestamp.self)[0]
        let transaction = try #require(UniqueID("00000000-0000-7000-8000-000000000022"))
        let event = try await database.pool.run { try $0.eventReference("66") }
        var cases = [Case(description: "all", filter: ListFilter(), condition: "true")]
        func add(_ name: String, _ condition: SQL, _ change: (inout ListFilter) -> Void) {
            var filter = ListFilter()
            change(&filter)
            cases.append(Case(description: name, filter: filter, condition: condition))
            for state in ["delivered", "waiting", "paused", "dead", "cancelled"] {
                filter.state = state
                cases.append(
                    Case(
                        description: "\(name) \(state)", filter: filter,
                        condition: "\(condition) AND d.state = \(state)"))
            }
        }
        add("", "true") { _ in }
        for (name, id) in ids { add(name, "d.endpoint_id = \(id)") { $0.endpoint = id } }
        add("type", "d.event_type = 't1'") { $0.eventType = "t1" }
        add("no type", "d.event_type = 'none'") { $0.eventType = "none" }
        add("change", "d.change_type = 'Update'") { $0.changeType = "Update" }
        add("customer", "d.customer_id = 'c4'") { $0.customerID = "c4" }
        add("transaction", "d.transaction_id = \(transaction)") { $0.transactionID = transaction }
        add("event", "d.event_id = 66") { $0.event = event }
        add("since", "d.created_at >= \(middle)") { $0.since = middle }
        add("until", "d.created_at < \(middle)") { $0.until = middle }
        add("both", "d.endpoint_id = \(ids[0].1) AND d.customer_id = 'c1'") {
            $0.endpoint = ids[0].1
            $0.customerID = "c1"
        }
        return cases
    }

    @Test(.heavy) func `deliveries are those of the view, newest first, whatever they are narrowed by`() async throws {
        let database = try await filled(400)
        for one in try await cases(database) {
            for limit in [7, 100_000] {
                var filter = one.filter
                filter.limit = limit
                let found = try await database.pool.run { [filter] in try $0.listDeliveries(filter) }
                let expected = try await database.pool.run { [one] in
                    try $0.listing(
                        "SELECT d.* FROM outbox.deliveries d WHERE \(one.condition) ORDER BY d.event_id DESC, d.endpoint_id DESC LIMIT \(limit)"
                    )
                }
                #expect(found.columns == expected.columns)
                #expect(found.rows == expected.rows, "\(one) \(limit)")
            }
        }
    }

    @Test func `attempts and dead letters are those of the views`() async throws {
        let database = try await filled(400)
        for one in try await cases(database) where one.filter.state == nil {
            var filter = one.filter
            filter.limit = 1000
            let dead = try await database.pool.run { [filter] in try $0.listDeadLetters(filter) }
            let time = "\(one)" == "since" || "\(one)" == "until"
            if time { continue }
            let expected = try await database.pool.run { [one] in
                try $0.listing(
                    "SELECT * FROM (SELECT x.*, 'dead' AS state FROM outbox.dead_letters x) d WHERE \(one.condition) ORDER BY d.dead_at DESC, d.event_id DESC, d.endpoint_id DESC"
                )
            }
            #expect(dead.rows == expected.rows.map { Array($0.dropLast()) }, "\(one)")
            let attempts = try await database.pool.run { [filter] in try $0.listAttempts(filter) }
            let all = try await database.number(
                """
                SELECT count(*) FROM (SELECT a.*, e.customer_id, e.type AS event_type, e.change_type, e.transaction_id FROM outbox.attempts a
                                        JOIN outbox.event e ON e.id = a.event_id) d WHERE \(one.condition)
                """)
            #expect(attempts.rows.count == min(all, 1000), "\(one)")
        }
    }

    @Test(.heavy) func `pages have every row once, also those of the same time, whatever is added meanwhile`()
        async throws
    {
        let database = try await filled(210)
        // All of one time: only the numbers and the endpoints tell them apart.
        try await database.script(
            """
            UPDATE outbox.attempt SET started_at = '2026-11-27 10:00Z'; UPDATE outbox.dead_letter SET dead_at = '2026-11-27 10:00Z';
            """)
        let lists: [(String, @Sendable (inout Connection, ListFilter) throws -> Listing)] = [
            ("events", { try $0.listEvents($1) }), ("deliveries", { try $0.listDeliveries($1) }),
            ("attempts", { try $0.listAttempts($1) }), ("dead", { try $0.listDeadLetters($1) }),
        ]
        for (name, list) in lists {
            for one in try await cases(database) where one.filter.state == nil || name == "deliveries" {
                var filter = one.filter
                filter.limit = 10_000
                let all = try await database.pool.run { [filter] in try list(&$0, filter) }
                #expect(all.next == nil)
                filter.limit = 53
                var pages: [[String?]] = []
                repeat {
                    let page = try await database.pool.run { [filter] in try list(&$0, filter) }
                    #expect(page.rows.count == 53 || page.next == nil)
                    pages += page.rows
                    filter.after = page.next
                    if pages.count == 53 { try await database.script("INSERT INTO outbox.event (type) VALUES ('t1')") }
                    // As a caller hands it back.
                    #expect(filter.after.flatMap { ListCursor("\($0)") } == filter.after)
                } while filter.after != nil
                let isSame = pages.map(\.description) == all.rows.map(\.description)
                #expect(isSame, "\(name) \(one): \(pages.count) of \(all.rows.count)")
                try await database.script("DELETE FROM outbox.event WHERE id > 210")
            }
        }
    }

    @Test func `pages of events hold those that a producer numbered and dated against each other`() async throws {
        let database = try await TestCluster.database()
        try await database.script(
            """
            INSERT INTO outbox.event (type) SELECT 'new' FROM generate_series(1, 10);
            INSERT INTO outbox.event (type, created_at) SELECT 'old', clock_timestamp() - interval '3 days' FROM generate_series(1, 10);
            """)
        var filter = ListFilter()
        let all = try await database.pool.run { [filter] in try $0.listEvents(filter) }.rows
        filter.limit = 4
        var pages: [[String?]] = []
        repeat {
            let page = try await database.pool.run { [filter] in try $0.listEvents(filter) }
            pages += page.rows
            filter.after = page.next
        } while filter.after != nil
        #expect(pages == all && all.count == 20)
    }

    @Test func `a trace holds everything that one operation caused`() async throws {
        let database = try await filled(400)
        let transaction = try #require(UniqueID("00000000-0000-7000-8000-000000000022"))
        let trace = try await database.pool.run { try $0.trace(transaction) }
        #expect(trace.events.rows.count == 3 && trace.cut == [])
        let counted = try await database.column(
            """
            SELECT concat_ws(' ', x ->> 'id', jsonb_array_length(x -> 'deliveries'),
                             (SELECT sum(jsonb_array_length(d -> 'attempts_made')) FROM jsonb_array_elements(x -> 'deliveries') d))
              FROM jsonb_array_elements(\(trace.json)::text::jsonb -> 'events') x
            """)
        #expect(counted == ["66 4 4", "67 2 4", "68 3 4"])
    }

    @Test func `what was written with a time or a number of its own is found, and nothing for it that is another's`()
        async throws
    {
        let database = try await TestCluster.database()
        let endpoint = try await database.endpoint("e", url: "https://example.com/").id
        try await database.script(
            """
            INSERT INTO outbox.event (id, type, created_at) OVERRIDING SYSTEM VALUE VALUES
                (8, 'A', '2026-11-27 10:00Z'), (8, 'B', '2026-11-27 09:00Z'), (9, 'A', '2026-11-27 09:00Z'),
                (10, 'future', now() + interval '3 days'), (11, 'skew', now() - interval '10 min');
            INSERT INTO outbox.dead_letter (event_id, endpoint_id, event_at, reason, attempts, fingerprint)
            VALUES (8, '\(endpoint)', '2026-11-27 09:00Z', 'exhausted', 1, 'f');
            INSERT INTO outbox.attempt (event_id, event_at, endpoint_id, number, trigger, lease_id, worker, started_at, total_us, outcome, status)
            SELECT id, created_at, '\(endpoint)', 1, 'first', gen_random_uuid(), 'w', CASE id WHEN 10 THEN now() - interval '2 days' ELSE now() - interval '15 min' END,
                   1000, 'success', 200 FROM outbox.event WHERE id IN (10, 11);
            INSERT INTO outbox.event (id, type) OVERRIDING SYSTEM VALUE SELECT n, 'b' FROM generate_series(100, 20100) n;
            INSERT INTO outbox.event (id, type, created_at) OVERRIDING SYSTEM VALUE VALUES (30000, 'back', now() - interval '30 min');
            INSERT INTO outbox.event (id, type, transaction_id) OVERRIDING SYSTEM VALUE
            SELECT n, 'z', '00000000-0000-7000-8000-000000000009' FROM generate_series(40000, 40199) n;
            -- The oldest one is tried again last.
            INSERT INTO outbox.attempt (event_id, event_at, endpoint_id, number, trigger, lease_id, worker, started_at, total_us, outcome, status)
            SELECT id, created_at, '\(endpoint)', 1, 'first', gen_random_uuid(), 'w', CASE id WHEN 40000 THEN now() + interval '5 min' ELSE now() END,
                   1000, 'failure', 500 FROM outbox.event WHERE type = 'z';
            """)
        func filter(_ change: (inout ListFilter) -> Void) -> ListFilter {
            var filter = ListFilter()
            change(&filter)
            return filter
        }
        let typeA = filter { $0.eventType = "A" }
        let dead = try await database.pool.run { try $0.listDeadLetters(typeA) }
        let deliveries = try await database.pool.run { try $0.listDeliveries(typeA) }
        #expect(dead.rows.isEmpty && deliveries.rows.isEmpty)
        let pairs = try await database.pool.run { connection in
            let event = try connection.eventKey("10")
            return try connection.delivery(DeliveryID(event: event, endpoint: endpoint)).rows.count
        }
        #expect(pairs == 1)
        let times = try await database.pool.query(
            "SELECT now() - interval '12 min', now() - interval '20 min'", of: Timestamp.self, Timestamp.self)[0]
        let skewed = filter {
            $0.eventType = "skew"
            $0.until = times.0
        }
        #expect(try await database.pool.run { try $0.listAttempts(skewed) }.rows.count == 1)
        let back = filter {
            $0.eventType = "back"
            $0.until = times.1
        }
        #expect(try await database.pool.run { try $0.listEvents(back) }.rows.count == 1)
        let transaction = try #require(UniqueID("00000000-0000-7000-8000-000000000009"))
        let newest = filter {
            $0.transactionID = transaction
            $0.limit = 2
        }
        let attempts = try await database.pool.run { try $0.listAttempts(newest) }
        #expect(attempts.rows.count == 2 && attempts.rows[0][0] == "40000")
        // Where no index has them, the list says which were looked at.
        let byType = filter {
            $0.eventType = "z"
            $0.limit = 2
        }
        #expect(try await database.pool.run { try $0.listAttempts(byType) }.note != nil)
    }

    @Test(.heavy, arguments: [true, false]) func `a list reads what it shows, and not what there is`(isAnalyzed: Bool)
        async throws
    {
        let database = try await filled(30_000, isAnalyzed: isAnalyzed)
        let pool = try database.newPool(session: OperatorSession.planning)
        func read() async throws -> Int {
            try await pool.run { connection in
                try connection.query("SELECT pg_stat_force_next_flush()")
                return try connection.query(
                    """
                    SELECT coalesce(sum(seq_tup_read) + sum(idx_tup_fetch), 0)::int8 FROM pg_stat_user_tables
                     WHERE schemaname = 'outbox' AND (relname LIKE 'attempt%' OR relname LIKE 'event%' OR relname = 'delivery')
                    """
                ).one(Int.self)
            }
        }
        // By endpoint, a day of attempts is looked at, which is all of them here.
        let named = [
            "all", " delivered", " waiting", " paused", " dead", "customer", "type", "transaction", "event", "since",
        ]
        for one in try await cases(database) where named.contains(one.description) {
            let before = try await read()
            _ = try await pool.run { [one] in try $0.listDeliveries(one.filter) }
            let count = try await read() - before
            // Of 30,000 events, 120,000 attempts and 21,000 deliveries.
            if count >= 5000 { Issue.record("\(one): \(count) rows") }
        }
        await pool.close()
    }

    @Test func `what no index has is looked for back from the newest event, and the list says how far`() async throws {
        let database = try await TestCluster.database()
        let endpoint = try await database.endpoint("e", url: "https://example.com/").id
        try await database.script(
            """
            INSERT INTO outbox.event (type) VALUES ('rare');
            INSERT INTO outbox.dead_letter (event_id, event_at, endpoint_id, reason, attempts, fingerprint)
            SELECT id, created_at, '\(endpoint)', 'exhausted', 1, 'x' FROM outbox.event;
            INSERT INTO outbox.attempt (event_id, event_at, endpoint_id, number, trigger, lease_id, worker, started_at, total_us, outcome, status)
            SELECT id, created_at, '\(endpoint)', 1, 'first', '\(UniqueID.random())', 'w', clock_timestamp(), 1000, 'failure', 500 FROM outbox.event;
            """)
        let middle = try #require(
            try await database.pool.query("SELECT clock_timestamp()", of: Timestamp.self).first)
        try await database.script("INSERT INTO outbox.event (type) SELECT 'common' FROM generate_series(1, 25000)")
        let lists: [@Sendable (inout Connection, ListFilter) throws -> Listing] = [
            { try $0.listEvents($1) }, { try $0.listDeliveries($1) }, { try $0.listAttempts($1) },
            { try $0.listDeadLetters($1) },
        ]
        for list in lists {
            var filter = ListFilter()
            filter.eventType = "rare"
            // However busy the machine is.
            filter.patience = .seconds(60)
            let whole = try await database.pool.run { [filter] in try list(&$0, filter) }
            #expect(whole.rows.count == 1 && whole.note == nil)
            filter.patience = .zero
            let part = try await database.pool.run { [filter] in try list(&$0, filter) }
            #expect(part.rows.isEmpty && part.note?.contains("newest 20000 events") == true)
            // From a time on that is asked for.
            filter.until = middle
            filter.patience = .seconds(60)
            let older = try await database.pool.run { [filter] in try list(&$0, filter) }
            #expect(older.rows.count == 1)
        }
    }
}
