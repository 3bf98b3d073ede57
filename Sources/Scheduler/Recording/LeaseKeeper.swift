import Logging
import Outbox
import Postgres
import ServiceLifecycle
import Synchronization

/// Prolongs the leases of this process on a connection of its own, three times per lease.
final class LeaseKeeper: Service {
    private let pool: ConnectionPool
    private let duration: Duration
    private let logger: Logger
    private let held = Mutex<[Holder: Lease]>([:])
    private let wakeup = Wakeup()

    init(pool: ConnectionPool, duration: Duration, logger: Logger) {
        self.pool = pool
        self.duration = duration
        self.logger = logger
    }

    /// Renews this lease from now on.
    func keep(_ lease: Lease) {
        held.withLock { $0[lease.holder] = lease }
    }

    /// The batch is deleted or the lane released.
    func forget(_ lease: Lease) {
        held.withLock { $0[lease.holder] = nil }
    }

    /// How many are held here.
    var count: Int { held.withLock { $0.count } }

    /// The endpoints whose lanes are held here.
    var lanes: [EndpointID] {
        held.withLock { held in held.keys.compactMap { if case .lane(let endpoint, _) = $0 { endpoint } else { nil } } }
    }

    func run() async {
        await withGracefulShutdownHandler {
            while !wakeup.isStopped && !Task.isCancelled {
                await wakeup.wait(upTo: duration / 3)
                await renew()
            }
        } onGracefulShutdown: {
            self.wakeup.stop()
        }
    }

    private func renew() async {
        // A lost batch is not kept from its next holder, however much of it is unresolved here.
        let leases = held.withLock { held in
            held = held.filter { $0.key.batch == nil || !$0.value.isLost }
            return held
        }
        if leases.isEmpty { return }
        var wanted = HeldLeases()
        for holder in leases.keys {
            switch holder {
            case .batch(let batch): wanted.batches[batch.lease] = batch.id
            case .lane(let id, let lease): wanted.lanes[id] = lease
            }
        }
        // From before the statement: our trust must end before the database's lease does.
        let asked = ContinuousClock.now
        do {
            let renewed = try await pool.run { [wanted, duration] in try $0.renew(wanted, for: duration) }
            for (holder, lease) in leases {
                switch holder {
                case .batch(let batch): if renewed.lockedBatches.contains(batch.lease) { continue }
                case .lane(let id, _): if renewed.locked.contains(id) { continue }
                }
                let isOurs =
                    switch holder {
                    case .batch(let batch): renewed.batches[batch.lease] != nil
                    case .lane(let id, _): renewed.lanes[id] != nil
                    }
                if isOurs {
                    lease.trust(until: asked + duration)
                } else if held.withLock({ $0[holder] != nil }) {
                    // Not forgotten in the meantime: somebody took it over.
                    lease.lose()
                    held.withLock { $0[holder] = nil }
                    logger.warning("a lease was lost", metadata: ["lease": "\(holder)"])
                }
            }
        } catch {
            logger.warning(
                "leases could not be renewed; nothing is sent once they may have ended", metadata: ["error": "\(error)"]
            )
        }
    }
}
