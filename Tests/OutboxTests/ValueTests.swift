import Foundation
import Outbox
import Postgres
import Receiver
import Scheduler
import StandardWebhooks
import TestSupport
import Testing

/// One value harms one event, or one endpoint, at most: what a producer, an operator or a receiver
/// says.
@Suite(.timeLimit(.minutes(15))) struct ValueTests {
    private static let trace = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"

    private func traceparent(_ json: String) throws -> String? {
        Event(
            id: EventID(rawValue: 1), createdAt: .distantPast, customerID: "c", type: "t", changeType: "Create",
            transactionID: .random(), identity: nil, before: nil, after: nil, occurredAt: .distantPast,
            context: Array(#"{"traceparent":\#(json)}"#.utf8)
        ).traceparent
    }

    @Test(arguments: ["00-\(trace)-01", "cc-\(trace)-00", "cc-\(trace)-01-what-the-future-brings"])
    func `a trace context is passed on`(value: String) throws {
        #expect(try traceparent("\"\(value)\"") == value)
    }

    @Test(arguments: [
        "foo", "", "00-\(trace)", "00-\(trace)-1", "00-\(trace)-01-more", "ff-\(trace)-01", " 00-\(trace)-01",
        "00-\(trace)-01 ",
        "00-\(trace.uppercased())-01", "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", #"00-a\nX-Evil: 1"#, #"cc-\#(trace)-01-\u007f"#,
        String(repeating: "a", count: 5000),
    ]) func `a malformed trace context is ignored`(value: String) throws {
        #expect(try traceparent("\"\(value)\"") == nil)
    }

    @Test(arguments: ["12", "null", "[]", #"{"a":["b"]}"#]) func `a trace context that is no text is ignored`(
        json: String
    ) throws {
        #expect(try traceparent(json) == nil)
    }

    @Test(arguments: [
        ("2026-11-21T06:03:43Z", "2026-11-21T06:03:43.000000Z"),
        ("2024-02-29t00:00:00.1234567z", "2024-02-29T00:00:00.123456Z"),
        ("2026-01-01T00:30:00.5+02:00", "2025-12-31T22:30:00.500000Z"),
        ("9999-12-31 23:59:59Z", "9999-12-31T23:59:59.000000Z"),
        ("0001-01-01T00:00:00-0130", "0001-01-01T01:30:00.000000Z"),
    ]) func `a time is read as it is written`(text: String, time: String) {
        #expect(Timestamp(rfc3339: text)?.description == time)
    }

    @Test(arguments: [
        "2026-02-30T00:00:00Z", "2025-02-29T00:00:00Z", "2026-13-01T00:00:00Z", "2026-01-01T24:00:00Z",
        "2026-01-01T10:60:00Z",
        "2026-01-01T23:59:60Z", "294276-01-01T00:00:00Z", "0000-01-01T00:00:00Z", "2026-01-01", "2026-01-01T00:00:00",
        "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00Z ", "2026-1-01T00:00:00Z", "2026-01-01T00:00:00+24:00",
        "infinity", "",
    ]) func `what is no time is none`(text: String) { #expect(Timestamp(rfc3339: text) == nil) }

    @Test func `times and durations at the ends of their ranges saturate`() async throws {
        let database = try await TestCluster.database()
        let read = try await database.pool.query(
            "SELECT '294276-12-31 23:59:59.999999+00'::timestamptz, '4713-01-01 BC'::timestamptz, 'infinity'::timestamptz"
        ) { row throws(PostgresError) in [try row[0] as Timestamp, try row[1] as Timestamp, try row[2] as Timestamp] }
        #expect(
            read.first?[0] ?? .distantPast > Timestamp(year: 290_000, month: 1, day: 1, hour: 0, minute: 0, second: 0))
        #expect(read.first?[0] != .distantFuture && read.first?[2] == .distantFuture)
        #expect(Duration.seconds(Int64.max).microseconds == .max)
        #expect(Duration.seconds(Int64.min).microseconds == .min)
        let end = Timestamp(microseconds: .max - 1)
        #expect(end + .seconds(1) == end)
        #expect(.distantPast - Timestamp.distantFuture == .microseconds(Int64.min))
        // Written back, they are still times.
        #expect(
            try await database.pool.query("SELECT \(end) > clock_timestamp()", of: Bool.self) == [true])
    }

    @Test(arguments: [
        "UPDATE outbox.lane SET paused_until = '294276-12-31'", "UPDATE outbox.lane SET resting_until = '294276-12-31'",
        "UPDATE outbox.endpoint SET retry_schedule = '{178000000 years}'",
        "UPDATE outbox.endpoint SET retry_schedule = '{-1 day}'",
        "UPDATE outbox.endpoint SET retry_schedule = '{NULL}'", "UPDATE outbox.endpoint SET rates = '{NULL}'",
        "UPDATE outbox.lane SET claims = 2147483647", "UPDATE outbox.lane SET trips = 2147483647",
        "UPDATE outbox.secret SET expires_at = '294276-12-31'",
        "UPDATE outbox.setting SET event_retention = '178000000 years'",
        "UPDATE outbox.setting SET instance = E'a\\nb'",
    ]) func `a row that no worker could use is refused`(statement: String) async throws {
        let database = try await TestCluster.database()
        try await database.endpoint("e", url: "https://example.com/")
        let error = await #expect(throws: PostgresError.self) { try await database.script(statement) }
        #expect(error?.sqlState == "23514", "\(String(describing: error))")
    }

    @Test func `an endpoint whose row cannot be read is closed, and no other`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        for name in ["bad", "good"] { try await database.endpoint(name, url: "\(ledger.url)/\(name)") }
        try await database.script(
            """
            ALTER TABLE outbox.endpoint DROP CONSTRAINT endpoint_rates_check;
            UPDATE outbox.endpoint SET rates = '{NULL}' WHERE name = 'bad'
            """)
        try await TestWorker.run(database) {
            try await database.publish(3)
            #expect(await eventually { ledger.all.count == 3 })
        }
        #expect(ledger.all.allSatisfy { $0.target == "/good" })
        ledger.receiver.stop()
    }

    @Test func `databases that events cannot be kept in are refused by name`() async throws {
        let server = try await TestCluster.server()
        let maintenance = try ConnectionPool(try ConnectionTarget(server), size: 1)
        for (encoding, locale) in [("SQL_ASCII", "C"), ("LATIN1", "C"), ("EUC_JP", "C")] {
            let name = "encoded_\(encoding.lowercased())"
            try await maintenance.run {
                try $0.script(
                    "CREATE DATABASE \(name) ENCODING '\(encoding)' LOCALE '\(locale)' TEMPLATE template0",
                    within: .seconds(60))
            }
            let pool = try ConnectionPool(try ConnectionTarget(server + " dbname=\(name)"), size: 1)
            for work in [
                { (connection: inout Connection) in _ = try Migrator.migrate(&connection) },
                { try Migrator.check(&$0) },
            ]
                as [@Sendable (inout Connection) throws -> Void]
            {
                let refusal = await #expect(throws: Migrator.SchemaError.self) { try await pool.run { try work(&$0) } }
                #expect(
                    refusal?.description.contains("\(name) has the encoding \(encoding)") == true,
                    "\(String(describing: refusal))")
            }
            await pool.close()
        }
        await maintenance.close()
    }

    @Test func `a trigger on a partitioned table names the table, and not the partition`() async throws {
        let database = try await TestCluster.database()
        try await database.script(
            """
            CREATE TABLE public.ord (id int, at date) PARTITION BY RANGE (at);
            CREATE TABLE public.ord_p1 PARTITION OF public.ord FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') PARTITION BY LIST (id);
            CREATE TABLE public.ord_p1a PARTITION OF public.ord_p1 FOR VALUES IN (1);
            CREATE TRIGGER emit AFTER INSERT OR UPDATE ON public.ord FOR EACH ROW EXECUTE FUNCTION outbox.emit();
            INSERT INTO public.ord VALUES (1, '2026-05-01');
            UPDATE public.ord SET at = '2026-06-01';
            CREATE TABLE public.plain (id int);
            CREATE TRIGGER emit AFTER INSERT ON public.plain FOR EACH ROW EXECUTE FUNCTION outbox_api.emit();
            INSERT INTO public.plain VALUES (1)
            """)
        #expect(
            try await database.column("SELECT type::text FROM outbox.event ORDER BY id") == ["ord", "ord", "plain"])
    }

    @Test func `an identity that is too long is refused where it is said`() async throws {
        let database = try await TestCluster.database()
        let long = String(repeating: "i", count: 257)
        for call in [
            "SELECT outbox.begin_operation(identity => '\(long)')", "SELECT outbox.publish('t', identity => '\(long)')",
            "INSERT INTO outbox.event (type, identity) VALUES ('t', '\(long)')",
        ] {
            let error = await #expect(throws: PostgresError.self) { try await database.script(call) }
            #expect(error?.description.contains("has_at_most_256_bytes") == true, "\(String(describing: error))")
        }
    }

    @Test(arguments: ["REPEATABLE READ", "SERIALIZABLE"]) func `in an older snapshot nothing is cut twice`(
        level: String
    ) async throws {
        let database = try await TestCluster.database()
        let old = try database.newPool()
        try await old.run { try $0.script("BEGIN ISOLATION LEVEL \(level); SELECT 1 FROM outbox.cut") }
        try await database.publish(10)
        _ = try await database.pool.run { try $0.cut(batchSize: 500, budget: 5000) }
        let error = await #expect(throws: PostgresError.self) {
            try await old.run { _ = try $0.cut(batchSize: 500, budget: 5000) }
        }
        #expect(error?.sqlState == "OB014")
        #expect(try await database.number("SELECT sum(size)::int8 FROM outbox.batch") == 10)
        await old.close()
    }

    @Test func `two lines of a header that is one value are refused when they are saved`() async throws {
        let database = try await TestCluster.database()
        func refusal(_ change: (inout EndpointConfiguration) -> Void) async throws -> String? {
            var wish = EndpointConfiguration(
                name: "e\(UniqueID.random().description.prefix(8))", url: "https://example.com/")
            change(&wish)
            let error = await #expect(throws: Problem.self) {
                try await database.pool.run { [wish] in
                    _ = try $0.createEndpoint(wish, secret: .generate(), keyring: TestWorker.keyring)
                }
            }
            return error?.message
        }
        func header(_ name: String) -> EndpointConfiguration.Header {
            EndpointConfiguration.Header(name: name, value: "x")
        }
        var bearer = Authentication()
        bearer.kind = .bearer
        let twice = try await refusal { $0.headers = [header("Authorization"), header("authorization")] }
        #expect(twice?.contains("set twice") == true, "\(twice ?? "")")
        #expect(
            try await refusal { $0.headers = [header("Content-Type"), header("content-type")] }?.contains("set twice")
                == true)
        #expect(
            try await refusal {
                $0.headers = [header("AUTHORIZATION")]
                $0.authentication = bearer
                $0.authentication.secret = "token"
            }?.contains("by the authentication") == true)
        #expect(
            try await refusal {
                $0.headers = [header("ce-type")]
                $0.format = .cloudeventsBinary
            }?.contains("by the format") == true)
    }

    @Test(arguments: [
        "'1 year -360 days 1 s'", "'-1000000 years 360000000 days 1 s'", "'1 mon -30 days 10 s'", "'-1 h 1 h 1 min'",
        "NULL",
    ]) func `a time span of a row is within its bounds however it is counted`(value: String) async throws {
        let database = try await TestCluster.database()
        try await database.endpoint("e", url: "https://example.com/")
        for assignment in [
            "outbox.endpoint SET timeout = \(value)", "outbox.endpoint SET connect_timeout = \(value)",
            "outbox.endpoint SET retry_schedule = ARRAY[\(value)]::interval[]",
            "outbox.setting SET event_retention = interval \(value) + '5000000 years -1799999000 days'",
        ] where !(value == "NULL" && assignment.contains("interval NULL")) {
            await #expect(throws: PostgresError.self, "\(assignment)") {
                try await database.script("UPDATE \(assignment)")
            }
        }
    }

    @Test(arguments: [
        #"[{"name":"X-A","value":"canary","secret":"maybe"}]"#, #"[{"name":"X-A","value":"canary","secret":5}]"#,
        #"[{"name":"X-A","value":"canary","secret":{"a":1}}]"#, #"[null]"#, #"["canary"]"#, "[5]",
    ]) func `headers that somebody wrote by hand harm one endpoint, and show no value`(headers: String) async throws {
        let database = try await TestCluster.database()
        try await database.endpoint("e", url: "https://example.com/")
        try await database.endpoint("other", url: "https://example.com/")
        try await database.script("UPDATE outbox.endpoint SET headers = '\(headers)' WHERE name = 'e'")
        let list = try await database.pool.run { try $0.listEndpoints() }
        #expect(list.rows.count == 2)
        #expect(!list.json.joined().contains("canary"))
    }
}
