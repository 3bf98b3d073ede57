package import Postgres

/// How far a process has read the endpoints: in which snapshot, and on which server, since another
/// server may have gone back. The same server may have gone back too, when it has crashed
/// meanwhile: it reuses the transaction ids of what was never written, and its mark (`outbox.boot`)
/// is gone.
///
/// A change that a snapshot did not see belongs to a transaction that was running in it, or came
/// after it. Both are few, however old a snapshot another session holds; the `xmin` of this
/// snapshot is as old as that.
package struct EndpointsSeen: Sendable, Equatable {
    let server: ServerStart
    let boot: UniqueID
    /// Transaction ids: the first one after the snapshot, and those that were running.
    let next: String
    let running: [String]

    /// For a process that has read nothing.
    package static let nothing = EndpointsSeen(
        server: ServerStart(time: .distantPast), boot: .random(), next: "3", running: [])

    /// The keys of a table's rows that were changed by unseen transactions.
    fileprivate func missed(_ table: StaticString, _ key: StaticString) -> SQL {
        """
        SELECT x.\(raw: "\(key)") AS id FROM outbox.\(raw: "\(table)") x WHERE \(came("x"))
        UNION SELECT x.\(raw: "\(key)") FROM outbox.\(raw: "\(table)") x WHERE \(ran("x"))
        """
    }

    private func came(_ row: String) -> SQL { "\(raw: row).changed_tx >= \(next)::text::xid8" }

    private func ran(_ row: String) -> SQL { "\(raw: row).changed_tx = ANY (\(running)::text[]::xid8[])" }

    /// True when there is such a row. Each transaction is looked up by an index: a worker's plans
    /// have no bitmaps.
    var hasNews: SQL {
        """
        (pg_postmaster_start_time() <> \(server.time) OR NOT EXISTS (SELECT FROM outbox.boot b WHERE b.mark = \(boot))
         OR EXISTS (SELECT FROM outbox.lane x WHERE \(came("x"))) OR EXISTS (SELECT FROM outbox.lane x WHERE \(ran("x")))
         OR EXISTS (SELECT FROM outbox.endpoint x WHERE \(came("x"))) OR EXISTS (SELECT FROM outbox.endpoint x WHERE \(ran("x"))))
        """
    }
}

/// The news of the endpoints.
package struct EndpointNews: Sendable {
    package let seen: EndpointsSeen
    /// True when there are no other endpoints.
    package var isAll = false
    package var endpoints: [Endpoint] = []
    package var states: [(EndpointID, EndpointState)] = []
    package var gone: [EndpointID] = []
}

extension Connection {
    /// The news of the endpoints since they were last read.
    ///
    /// - Parameter some: endpoints whose state is read whether or not it has changed.
    package mutating func endpointNews(
        since seen: EndpointsSeen, also some: Set<EndpointID> = [], keyring: Keyring
    ) throws -> EndpointNews {
        try query("INSERT INTO outbox.boot DEFAULT VALUES ON CONFLICT DO NOTHING")
        return try inOneSnapshot { connection in
            let now = try connection.query(
                """
                SELECT pg_postmaster_start_time(), b.mark, pg_snapshot_xmax(s)::text, ARRAY(SELECT pg_snapshot_xip(s)::text)
                  FROM pg_current_snapshot() s, outbox.boot b
                """
            ).first { row throws(PostgresError) in
                EndpointsSeen(
                    server: ServerStart(time: try row[0]), boot: try row[1], next: try row[2], running: try row[3])
            }
            guard let now, now.server == seen.server, now.boot == seen.boot else {
                return EndpointNews(
                    seen: now ?? .nothing, isAll: true, endpoints: try connection.readEndpoints(nil, keyring: keyring))
            }
            var news = EndpointNews(seen: now)
            let changed = try connection.query(
                """
                SELECT n.id, n.deleted_at IS NOT NULL FROM (\(seen.missed("endpoint", "id"))) m
                 CROSS JOIN LATERAL (SELECT * FROM outbox.endpoint n WHERE n.id = m.id OFFSET 0) n
                """
            ).all(EndpointID.self, Bool.self)
            news.gone = changed.filter(\.1).map(\.0)
            let ids = changed.filter { !$0.1 }.map(\.0)
            if !ids.isEmpty { news.endpoints = try connection.readEndpoints(ids, keyring: keyring) }
            news.states = try connection.query(
                """
                SELECT l.endpoint_id, \(raw: "\(EndpointState.columns)")
                  FROM (\(seen.missed("lane", "endpoint_id")) UNION SELECT unnest(\(Array(some)))) m
                  JOIN outbox.lane l ON l.endpoint_id = m.id JOIN outbox.endpoint n ON n.id = l.endpoint_id
                """
            ).map { row throws(PostgresError) in (try row[0] as EndpointID, try EndpointState(row, from: 1)) }
            return news
        }
    }

    /// True when there is news of the endpoints.
    package mutating func hasEndpointNews(since seen: EndpointsSeen) throws -> Bool {
        try query("SELECT \(seen.hasNews)").one(Bool.self)
    }
}
