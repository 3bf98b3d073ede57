package import Bytewise
import DequeModule

/// The next waiter for a resource with one user at a time: customers take turns, and within a
/// customer the first waiter comes first. However many waiters one customer has, another customer's
/// next waiter waits for at most one turn of each customer.
package struct TurnQueue<Waiter: Sendable>: Sendable {
    private var waiting: [ExactText: Deque<Waiter>] = [:]
    private var turns: Deque<ExactText> = []

    package init() {}

    package var isEmpty: Bool { turns.isEmpty }

    /// How many waiters each customer has.
    package var counts: [ExactText: Int] { waiting.mapValues(\.count) }

    /// Adds a waiter behind the others of its customer.
    package mutating func add(_ waiter: Waiter, of customer: ExactText) {
        if waiting[customer] == nil { turns.append(customer) }
        waiting[customer, default: []].append(waiter)
    }

    /// Removes and returns the next waiter; nil when there is none, or all waiters are of customers
    /// that are left out for now.
    package mutating func next(without isLeftOut: (ExactText) -> Bool = { _ in false }) -> Waiter? {
        for _ in turns.indices {
            guard let customer = turns.popFirst() else { return nil }
            if isLeftOut(customer) {
                turns.append(customer)
                continue
            }
            guard var own = waiting.removeValue(forKey: customer) else { continue }
            let waiter = own.popFirst()
            if !own.isEmpty {
                waiting[customer] = own
                turns.append(customer)
            }
            return waiter
        }
        return nil
    }

    /// Removes and returns the waiters for which the closure is true.
    package mutating func remove(where isWanted: (Waiter) -> Bool) -> [Waiter] {
        var removed: [Waiter] = []
        for (customer, own) in waiting {
            removed += own.filter(isWanted)
            let left = own.filter { !isWanted($0) }
            waiting[customer] = left.isEmpty ? nil : left
        }
        turns.removeAll { waiting[$0] == nil }
        return removed
    }
}
