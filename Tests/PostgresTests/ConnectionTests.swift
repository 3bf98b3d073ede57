import Postgres
import TestSupport
import Testing

@Suite(.timeLimit(.minutes(15))) struct ConnectionTests {
    @Test func `values come back as they were sent`() async throws {
        let database = try await TestCluster.database(migrated: false)
        let id = UniqueID.random()
        let time = Timestamp(year: 2026, month: 11, day: 21, hour: 6, minute: 3, second: 43) + .microseconds(123_456)
        let texts = ["plain", "", "quo\"te", "back\\slash", "NULL", "a,b", "{x}", "héllo ☃"]
        let row = try await database.pool.query(
            """
            SELECT \(Int64.min), \(Int64.max), \(texts), \(Bytes([0, 255, 10])), \(id), \(time), \(JSONText(#"{ "b":1,"a" : 2 }"#)),
                   \(true), \(nil as String?), \([1, nil, 3] as [Int?]), \(Duration.milliseconds(1500)) = interval '1.5 s', int8multirange(int8range(1, 3))::text
            """
        ) { row throws(PostgresError) in
            #expect(try row[0] == Int64.min)
            #expect(try row[1] == Int64.max)
            #expect(try row[2] == texts)
            #expect(try row[3] == Bytes([0, 255, 10]))
            #expect(try row[4] == id)
            #expect(try row[5] == time)
            #expect(try row[6] == JSONText(#"{ "b":1,"a" : 2 }"#))
            #expect(try row[7] == true)
            #expect(try row[8] == nil as String?)
            #expect(try row[9] == [1, nil, 3] as [Int?])
            #expect(try row[10] == true)
            #expect(try row[11] == "{[1,3)}")
            return 1
        }
        #expect(row == [1])
    }

    @Test(arguments: [
        ("1970-01-01T00:00:00.000000Z", 0), ("2000-02-29T23:59:59.999999Z", 951_868_799_999_999),
        ("1969-12-31T23:59:59.500000Z", -500_000), ("0001-01-01T00:00:00.000000Z", -62_135_596_800_000_000),
        ("9999-12-31T23:59:59.000000Z", 253_402_300_799_000_000), ("infinity", Int64.max), ("-infinity", Int64.min),
    ])
    func `timestamps are written in RFC 3339 and read back from the server`(text: String, microseconds: Int64)
        async throws
    {
        let time = Timestamp(microseconds: microseconds)
        #expect(time.description == text)
        let database = try await TestCluster.database(migrated: false)
        let echoed = try await database.pool.query("SELECT \(time)", of: Timestamp.self)
        #expect(echoed == [time])
    }

    @Test func `milliseconds are cut off, not rounded`() {
        #expect(Timestamp(microseconds: 1_524_582_949_493_999).rfc3339(fractionDigits: 3) == "2018-04-24T15:15:49.493Z")
    }

    @Test func `a statement past its deadline is cancelled and the connection stays usable`() async throws {
        let database = try await TestCluster.database(migrated: false)
        let pool = try database.newPool()
        let error = await #expect(throws: PostgresError.self) {
            try await pool.execute("SELECT pg_sleep(30)", within: .milliseconds(100))
        }
        #expect(error?.kind == .deadline)
        #expect(error?.isOutcomeUnknown == false)
        #expect(try await pool.query("SELECT 1", of: Int.self) == [1])
        await pool.close()
    }

    @Test func `a lost connection is an unknown outcome, and the next statement gets a new connection`() async throws {
        let database = try await TestCluster.database(migrated: false)
        let pool = try database.newPool()
        let pid = try await pool.query("SELECT pg_backend_pid()", of: Int.self)[0]
        async let lost: Int = pool.execute("SELECT pg_sleep(30)")
        #expect(
            try await eventually {
                try await database.number(
                    "SELECT count(*) FROM pg_stat_activity WHERE pid = \(pid) AND state = 'active'") == 1
            })
        try await database.pool.execute("SELECT pg_terminate_backend(\(Int32(pid)))")
        do {
            _ = try await lost
            Issue.record("the statement cannot succeed")
        } catch let error as PostgresError {
            // The server said that it ended the statement: that is a response.
            #expect(error.sqlState == "57P01")
            #expect(error.isTransient)
        }
        #expect(try await pool.query("SELECT 1", of: Int.self) == [1])
        await pool.close()
    }

    @Test func `a transaction that fails says which step failed and leaves nothing behind`() async throws {
        let database = try await TestCluster.database(migrated: false)
        try await database.script("CREATE TABLE public.t (n int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)")
        let error = await #expect(throws: PostgresError.self) {
            try await database.pool.run { connection in
                try connection.transaction { connection in
                    try connection.query("INSERT INTO public.t VALUES (1)")
                    try connection.query("INSERT INTO public.t VALUES (1)")
                }
            }
        }
        #expect(error?.step == .commit)
        #expect(error?.sqlState == "23505")
        #expect(error?.constraint == "t_pkey")
        #expect(try await database.number("SELECT count(*) FROM public.t") == 0)
    }

    @Test func `an error never shows the values of the statement`() async throws {
        let database = try await TestCluster.database(migrated: false)
        try await database.script("CREATE TABLE public.t (secret text UNIQUE)")
        try await database.pool.execute("INSERT INTO public.t VALUES (\("canary-7d1"))")
        for statement in ["INSERT INTO public.t VALUES (\("canary-7d1"))", "SELECT \("canary-7d1")::int"] as [SQL] {
            let error = await #expect(throws: PostgresError.self) { try await database.pool.execute(statement) }
            #expect(error?.description.contains("canary") == false)
        }
    }

    @Test func `text with a NUL byte is refused before it is sent`() async throws {
        let database = try await TestCluster.database(migrated: false)
        let error = await #expect(throws: PostgresError.self) { try await database.pool.execute("SELECT \("a\0b")") }
        #expect(error?.kind == .value)
    }

    @Test func `a statement that a pooler forgot is prepared again`() async throws {
        let database = try await TestCluster.database(migrated: false)
        let pool = try database.newPool()
        for _ in 0..<2 {
            #expect(try await pool.query("SELECT \(41) + 1", of: Int.self) == [42])
            try await pool.run { try $0.script("DEALLOCATE ALL") }
        }
        await pool.close()
    }

    @Test func `a connection string that cannot be read is not repeated`() {
        let error = #expect(throws: PostgresError.self) { try ConnectionTarget("postgres://u:canary@[::1/x") }
        #expect(error?.kind == .configuration)
        #expect(error?.description.contains("canary") == false)
    }

    @Test func `a closed pool finishes what was posted and refuses what comes later`() async throws {
        let database = try await TestCluster.database(migrated: false)
        let pool = try database.newPool(size: 2)
        async let last = pool.query("SELECT 7", of: Int.self)
        #expect(try await last == [7])
        await pool.close()
        await #expect(throws: PostgresError.self) { try await pool.execute("SELECT 1") }
    }

    @Test func `a notification ends the wait of a listening connection`() async throws {
        let database = try await TestCluster.database(migrated: false)
        let pool = try database.newPool(session: SessionSetUp(channel: "outbox"))
        #expect(try await pool.run { try $0.waitForNotification(upTo: .milliseconds(20)) } == false)
        async let woken = pool.run { try $0.waitForNotification(upTo: .seconds(30)) }
        try await database.script("NOTIFY outbox")
        #expect(try await woken)
        await pool.close()
    }
}
