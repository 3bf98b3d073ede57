package import Postgres
package import Transport

/// How one worker process works. The defaults suit one process of a small fleet.
package struct EngineConfiguration: Sendable {
    /// Where the database is.
    package var database: ConnectionTarget
    /// This process in leases, attempts and the list of workers; unique per process.
    package var worker: String
    package var host: String
    package var pid: Int
    /// Which installation the database must be; nil for whichever it is when the process starts.
    package var instance: String?
    /// Which special addresses requests may go to.
    package var policy: AddressPolicy
    /// The proxy that requests leave through; nil for none.
    package var proxy: EgressProxy?
    /// How long a batch or lane is ours without renewal. A crash stalls its work for that long; it
    /// must exceed any endpoint's timeout plus the time to record (docs/architecture/leases.md).
    package var lease: Duration = .seconds(60)
    /// How long a send from a batch may wait to be started before it moves into its lane.
    package var softDeadline: Duration = .seconds(2)
    /// The longest pause between two looks for work.
    package var pollInterval: Duration = .seconds(1)
    /// Events per batch: large enough that its one row costs nothing per event, small enough to be
    /// lost.
    package var batchSize = 500
    /// Events per cut, so that a giant transaction is cut in steps.
    package var cutBudget = 5000
    /// From this claim of a batch on its deliveries go to their lanes, where a lethal payload is
    /// found out alone.
    package var maxBatchClaims = 3
    /// Requests in flight, all endpoints together.
    package var maxInFlight = 4096
    /// Bytes that requests in flight may take, all endpoints together: of their events, and of
    /// their responses where these may be large. One endpoint has at most an eighth of it. Twice as
    /// much may be taken by all events here (`EventMemory`). So what a process takes is a small
    /// multiple of this, however much is waiting.
    package var maxBytes = 64 << 20
    var maxEventBytes: Int { 2 * maxBytes }
    /// Threads that send requests; one sends some ten thousand a second.
    package var transportThreads = 1
    /// Outcomes that may wait to be recorded before no more work is claimed.
    package var maxUnrecorded = 10_000
    /// How long a graceful stop waits for requests in flight.
    package var grace: Duration = .seconds(10)
    /// Connections for cutting and claiming, and for work on lanes, beside one each for recording,
    /// lease renewal, housekeeping and listening.
    package var connections = 2
    package var laneConnections = 2
    /// Listen for producers' notifications; off behind a pooler in transaction mode.
    package var listens = true

    package init(database: ConnectionTarget, worker: String, host: String, pid: Int, policy: AddressPolicy) {
        self.database = database
        self.worker = worker
        self.host = host
        self.pid = pid
        self.policy = policy
    }
}
