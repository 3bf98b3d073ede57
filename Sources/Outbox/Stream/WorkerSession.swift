package import Postgres

/// How a worker's connections are set up, in addition to the set-up of every connection.
package enum WorkerSession {
    /// Every statement of a worker finds its rows by an index, a few hundred at a time. Statistics
    /// that are older than the rows (after a bulk insert, a restore, a new partition) make the
    /// planner assume that a table is empty, and read it whole for every batch; so plans that could
    /// only result from that mistake are ruled out. Then one plan is as good as another, and is
    /// made once: planning again for every claim reads the ends of indexes, past all the dead rows
    /// that a held snapshot keeps there (2 ms for each delivery through a lane).
    package static let planning = SessionSetUp(settings: [
        ("enable_seqscan", "off"), ("enable_bitmapscan", "off"), ("enable_sort", "off"), ("enable_hashjoin", "off"),
        ("enable_mergejoin", "off"), ("plan_cache_mode", "force_generic_plan"),
        // A session that holds a lock for longer holds up one endpoint or one table, and not every
        // connection of the worker.
        ("lock_timeout", "2s"),
        // Every statement has a shorter deadline of its own, which the worker keeps by cancelling.
        // This one is for a worker that has died: until PostgreSQL 16 the server does not notice
        // that in the middle of a regular expression.
        ("statement_timeout", "20s"),
    ])

    /// The same set-up, for connections that must lead to this installation at its home. A name in
    /// a connection string may mean another database tomorrow.
    ///
    /// - Parameters:
    ///   - patience: how long commits are waited for.
    ///   - channel: where notifications are waited for; nil for a connection that works.
    package static func setUp(
        instance: String, patience: Patience? = nil, channel: String? = nil
    ) -> SessionSetUp {
        var session = planning
        session.channel = channel
        session.patience = patience
        session.check = { connection throws(PostgresError) in try connection.requireHome(instance: instance) }
        return session
    }
}

/// How an operator's connection is set up, in addition to the set-up of every connection.
package enum OperatorSession {
    /// Each statement is planned with its values, which determine its partitions: merely computing
    /// the cost of a generic plan would lock all partitions.
    package static let planning = SessionSetUp(settings: [("plan_cache_mode", "force_custom_plan")])
}

extension Connection {
    /// Throws a `PostgresError` unless this database is at home: `OB010` in a copy, from which
    /// nothing may be sent, `OB013` in an installation other than the expected one.
    package mutating func requireHome(instance: String?) throws(PostgresError) {
        try query("SELECT outbox.require_home(\(instance))")
    }
}
