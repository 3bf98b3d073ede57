package import Bytewise
import Synchronization

/// The memory that events take in this process, as they lie there: bodies as the producer wrote
/// them, and bodies built from them. What does not fit is not read.
///
/// A customer's share is what is left: it may read more while its events take less than is free, so
/// that however many customers have slow endpoints, as much as each of them has is left for the
/// next (dynamic thresholds: Choudhury and Hahne 1998). Of the last quarter only batches are read,
/// and lanes of which nothing is here; of the last eighth only batches.
///
/// A lane of which nothing is here may read a little while its customer's events take up to three
/// times what is free: the pages of a customer's slow endpoints delay none of its others.
package final class EventMemory: Sendable {
    /// What one customer's events take. Counted down by the last owner of each event.
    package final class Account: Sendable {
        fileprivate let used = Atomic(0)
        private let memory: EventMemory

        fileprivate init(_ memory: EventMemory) { self.memory = memory }

        func take(_ bytes: Int) {
            used.wrappingAdd(bytes, ordering: .relaxed)
            memory.taken.wrappingAdd(bytes, ordering: .relaxed)
        }

        func release(_ bytes: Int) {
            used.wrappingSubtract(bytes, ordering: .relaxed)
            memory.taken.wrappingSubtract(bytes, ordering: .relaxed)
        }
    }

    /// In bytes.
    package let limit: Int
    private let taken = Atomic(0)
    private let accounts = Mutex(Accounts())
    /// Rooms are given one at a time.
    private let rooms = Mutex(())

    private struct Accounts {
        var byCustomer: [ExactText: Account] = [:]
        /// With so many, those of customers whose events are gone are forgotten.
        var most = 1000
    }

    /// - Parameter limit: in bytes.
    package init(limit: Int) { self.limit = limit }

    /// How much events take now, in bytes.
    package var used: Int { taken.load(ordering: .relaxed) }

    /// The account of a customer.
    func account(of customer: ExactText) -> Account {
        accounts.withLock { accounts in
            if let known = accounts.byCustomer[customer] { return known }
            if accounts.byCustomer.count >= accounts.most {
                accounts.byCustomer = accounts.byCustomer.filter { $0.value.used.load(ordering: .relaxed) > 0 }
                accounts.most = max(1000, 2 * accounts.byCustomer.count)
            }
            let made = Account(self)
            accounts.byCustomer[customer] = made
            return made
        }
    }

    /// How much each customer's events take, in bytes.
    package var holders: [ExactText: Int] {
        accounts.withLock { $0.byCustomer.mapValues { $0.used.load(ordering: .relaxed) } }
    }

    /// True while a batch may be read.
    package var hasRoomForBatch: Bool { limit - used >= Self.mostAtATime }

    /// Room for events that are being read. It counts as their customer's until it is let go of:
    /// after the read, when the events count themselves.
    package final class Room: Sendable {
        /// How much may be read.
        package let bytes: Int
        private let account: Account

        fileprivate init(_ bytes: Int, for account: Account) {
            (self.bytes, self.account) = (bytes, account)
            account.take(bytes)
        }

        deinit { account.release(bytes) }
    }

    /// Room for some of a customer's events, to be read for a lane now; nil when there is none.
    ///
    /// - Parameters:
    ///   - needed: the bytes of the first one, where that is known to be large.
    ///   - isFirst: nothing of the lane is here.
    package func room(for customer: ExactText, atLeast needed: Int = 0, isFirst: Bool) -> Room? {
        let account = account(of: customer)
        return rooms.withLock { _ in
            let free = limit - used
            let forLanes = free - (isFirst ? forBatches : max(forBatches, limit / 4))
            let own = account.used.load(ordering: .relaxed)
            let least = max(isFirst ? Self.leastAtFirst : Self.leastAtATime, needed)
            // One that is larger than all that there may be goes alone.
            guard forLanes >= least && own < (isFirst ? Self.timesAtFirst : 1) * forLanes || used == 0 else {
                return nil
            }
            let share = own < forLanes ? min(Self.mostAtATime, forLanes / 16) : 0
            return Room(max(least, share), for: account)
        }
    }

    /// What no lane takes: two batches fit, where there is little, too.
    private var forBatches: Int { max(limit / 8, min(2 * Self.mostAtATime, limit / 2)) }

    /// Customers that have so much more here than is free that none of their batches is read.
    package var greedy: [ExactText] {
        let free = limit - used
        if used <= Self.timesAtFirst * free { return [] }
        return holders.filter { $0.value > Self.timesAtFirst * free }.map(\.key)
    }

    /// A part of what is free, so that something always is.
    package static let mostAtATime = 1 << 20
    private static let leastAtATime = 64 << 10
    /// Some events: so much for each of the lanes of a worker is there.
    private static let leastAtFirst = 16 << 10
    /// So many times what is free a customer may have when nothing else of an endpoint is here.
    private static let timesAtFirst = 3
}
