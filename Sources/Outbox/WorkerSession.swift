/// How a worker's connections are set up, beside what every connection is.
package enum WorkerSession {
    /// Every statement of a worker finds its rows by an index, a few hundred at a time. Statistics that are older than the
    /// rows (after a bulk insert, a restore, a new partition) make the planner think that a table is empty, and read it
    /// whole for every batch; so the plans that could only be that mistake are ruled out.
    package static let setUp = """
        SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off; SET enable_hashjoin = off; \
        SET enable_mergejoin = off
        """
}
