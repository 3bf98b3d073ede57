/// How a worker's connections are set up, beside what every connection is.
package enum WorkerSession {
    /// Every statement of a worker finds its rows by an index, a few hundred at a time. Statistics that are older than the
    /// rows (after a bulk insert, a restore, a new partition) make the planner think that a table is empty, and read it
    /// whole for every batch; so the plans that could only be that mistake are ruled out. Then one plan is as good as
    /// another, and is made once: to plan anew for every claim reads the ends of indexes, past all the dead rows that
    /// somebody's snapshot keeps there (2 ms of it for each delivery through a lane).
    package static let setUp = """
        SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off; SET enable_hashjoin = off; \
        SET enable_mergejoin = off; SET plan_cache_mode = force_generic_plan
        """
}
