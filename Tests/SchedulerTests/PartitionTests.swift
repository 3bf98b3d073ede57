import Outbox
import Postgres
import Receiver
import Scheduler
import TestSupport
import Testing

/// Partitions come and go while producers and workers are at work.
@Suite(.timeLimit(.minutes(15))) struct PartitionTests {
    @Test func `made, rolled over, missing and dropped under load: no producer fails and no event is lost`()
        async throws
    {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        try await database.endpoint("e", url: ledger.url)
        // Yesterday's and older partitions are due to go as soon as nothing in them is outstanding.
        try await database.script(
            """
            UPDATE outbox.setting SET event_retention = '1 hour', attempt_retention = '1 hour';
            DO $$ BEGIN FOR d IN 1..20 LOOP
                EXECUTE format('CREATE TABLE outbox.event_old_%s PARTITION OF outbox.event FOR VALUES FROM (%L) TO (%L)',
                               d, timestamptz '2020-01-01Z' + d * interval '1 day', timestamptz '2020-01-01Z' + (d + 1) * interval '1 day');
            END LOOP; END $$
            """)
        let isProducing = Flag(true)
        let (producers, each) = (4, 150)
        // No lease ends, however busy the machine is.
        try await TestWorker.run(database, configure: { $0.lease = .seconds(120) }) {
            try await withThrowingTaskGroup(of: Void.self) { group in
                let upkeep = try database.newPool(size: 2)
                for _ in 0..<2 {
                    group.addTask {
                        while isProducing.isSet, !Task.isCancelled { _ = try await upkeep.run { $0.keepHouse() } }
                    }
                }
                try await withThrowingTaskGroup(of: Void.self) { inserting in
                    for producer in 0..<producers {
                        let pool = try database.newPool()
                        inserting.addTask {
                            for number in 0..<each {
                                // Old partitions while they last and what nobody prepared for;
                                // across the next days' bounds.
                                let place =
                                    switch number % 4 {
                                    case 0: "timestamptz '2020-01-01Z' + interval '\(1 + number % 20) days 1 hour'"
                                    case 1: "timestamptz '2031-01-01Z'"
                                    case 2: "date_trunc('day', now()) + interval '\(producer % 3) days'"
                                    default: "clock_timestamp()"
                                    }
                                try await pool.run {
                                    try $0.script(
                                        "INSERT INTO outbox.event (type, created_at) VALUES ('test', \(place))")
                                }
                            }
                            await pool.close()
                        }
                    }
                    try await inserting.waitForAll()
                }
                #expect(await eventually { ledger.counts.count == producers * each })
                #expect(try await eventually { try await database.isDrained() })
                // With nothing outstanding any more they all go.
                #expect(
                    try await eventually {
                        try await database.number(
                            "SELECT count(*) FROM outbox.partitions WHERE upper < now() - interval '1 day'") == 0
                    })
                isProducing.isSet = false
                try await group.waitForAll()
                await upkeep.close()
            }
        }
        #expect(ledger.all.count == producers * each)
        ledger.receiver.stop()
    }

    @Test func `partitions are made one a statement, and only one log is locked for it`() async throws {
        let database = try await TestCluster.database()
        try await database.script(
            """
            DO $$ DECLARE p record; BEGIN
                FOR p IN SELECT oid::regclass AS name FROM pg_class
                          WHERE relnamespace = 'outbox'::regnamespace AND relispartition AND relkind = 'r' AND relname NOT LIKE '%default' LOOP
                    EXECUTE format('DROP TABLE %s', p.name);
                END LOOP;
            END $$
            """)
        let upkeep = try database.newPool()
        var made: [String] = []
        while true {
            let (name, locked): (String?, [String]) = try await upkeep.run { connection in
                try connection.script("BEGIN")
                let name =
                    try connection.query("SELECT outbox.make_next_partition()", asText: true)
                    .one(String?.self)
                let locked = try connection.query(
                    """
                    SELECT DISTINCT relation::regclass::text FROM pg_locks
                     WHERE pid = pg_backend_pid() AND relation IN ('outbox.event'::regclass, 'outbox.attempt'::regclass)
                       AND mode = 'ShareRowExclusiveLock'
                    """, asText: true
                ).all(String.self)
                try connection.script("COMMIT")
                return (name, locked)
            }
            guard let name else { break }
            made.append(name)
            #expect(locked == ["outbox." + (name.hasPrefix("event") ? "event" : "attempt")])
        }
        #expect(made.count == 8 && Set(made).count == 8)
        await upkeep.close()
    }

    @Test(arguments: [
        ("2031-01-01Z", "SELECT outbox.move_default_rows('event')"),
        ("2021-01-01Z", "SELECT outbox.move_default_rows('event')"),
        ("clock_timestamp()", "SELECT outbox.make_partitions()"),
    ])
    func `whoever writes into the default partition while its rows get one of their own writes into that`(
        time: String, attach: String
    ) async throws {
        let database = try await TestCluster.database()
        let place = time.hasPrefix("2") ? "timestamptz '\(time)'" : time
        let insert = "INSERT INTO outbox.event (type, created_at) VALUES ('test', \(place))"
        if time.hasPrefix("2") {
            try await database.script(insert)
            #expect(try await database.pool.run { try $0.cut(batchSize: 100, budget: 100) } == .events(1))
            try await database.script("DELETE FROM outbox.batch")
        } else {
            let bounds = "outbox.partition_bounds(clock_timestamp())"
            try await database.script(
                "DO $$ BEGIN EXECUTE (SELECT 'DROP TABLE outbox.event_' || suffix FROM \(bounds)); END $$")
        }
        let (attaching, writing) = (try database.newPool(), try database.newPool())
        let attached = try await attaching.run { connection in
            try connection.script("BEGIN")
            return try connection.query("\(raw: attach)", asText: true).one(String?.self)
        }
        #expect(attached.flatMap(\.self) != nil && attached != "0")
        let writer = Task { try await writing.run { try $0.script(insert) } }
        let isWaiting = try await database.someoneWaitsForALock()
        #expect(isWaiting)
        try await attaching.run { try $0.script("COMMIT") }
        try await writer.value
        #expect(try await database.number("SELECT count(*) FROM outbox.event_default") == 0)
        #expect(try await database.pool.run { try $0.cut(batchSize: 100, budget: 100) } == .events(1))
        await attaching.close()
        await writing.close()
    }

    @Test func `a worker starts, and delivers, whatever is in the way of housekeeping`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        try await database.endpoint("e", url: ledger.url)
        try await database.script(
            """
            CREATE OR REPLACE FUNCTION outbox.empty_expired_partition() RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS
            $$ BEGIN RAISE EXCEPTION 'in the way'; END $$
            """)
        try await TestWorker.run(database) {
            try await database.publish(3)
            #expect(await eventually { ledger.all.count == 3 })
        }
        ledger.receiver.stop()
    }
}
