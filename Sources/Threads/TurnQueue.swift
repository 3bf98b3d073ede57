public import Bytewise
public import DequeModule

/// The next waiter for a resource with one user at a time: customers take turns, and within a
/// customer the first waiter comes first. However many waiters one customer has, another customer's
/// next waiter waits for at most one turn of each customer.
///
/// Inlinable, so that it is compiled for its waiters: one is added and taken for each request.
public struct TurnQueue<Waiter: Sendable>: ~Copyable {
    /// One customer's waiters. A class, so that it is looked up once for as long as there are any.
    @usableFromInline final class Line {
        @usableFromInline let customer: ExactText
        @usableFromInline var waiters: Deque<Waiter> = []
        @usableFromInline var isInTurn = false

        @inlinable init(_ customer: ExactText) { self.customer = customer }
    }

    @usableFromInline var lines: [ExactText: Line] = [:]
    @usableFromInline var turns: Deque<Line> = []
    /// So many lines are kept that nobody stands in: a customer comes again and again.
    @usableFromInline static var maxIdle: Int { 64 }

    /// Empty.
    @inlinable public init() {}

    /// True when nobody waits.
    @inlinable public var isEmpty: Bool { turns.isEmpty }

    /// How many waiters each customer has.
    @inlinable public var counts: [ExactText: Int] {
        lines.compactMapValues { $0.waiters.isEmpty ? nil : $0.waiters.count }
    }

    /// Adds a waiter behind the others of its customer.
    @inlinable public mutating func add(_ waiter: Waiter, of customer: ExactText) {
        let line = line(of: customer)
        line.waiters.append(waiter)
        if line.isInTurn { return }
        line.isInTurn = true
        turns.append(line)
    }

    @usableFromInline mutating func line(of customer: ExactText) -> Line {
        if let known = lines[customer] { return known }
        if lines.count >= Self.maxIdle, lines.count > 2 * turns.count { lines = lines.filter { $0.value.isInTurn } }
        let line = Line(customer)
        lines[customer] = line
        return line
    }

    /// Removes and returns the next waiter; nil when there is none.
    @inlinable public mutating func next() -> Waiter? {
        guard let line = turns.popFirst() else { return nil }
        let waiter = line.waiters.popFirst()
        if line.waiters.isEmpty { line.isInTurn = false } else { turns.append(line) }
        return waiter
    }

    /// Removes and returns the next waiter; nil when there is none, or all waiters are of customers
    /// that are left out for now.
    @inlinable public mutating func next(without isLeftOut: (ExactText) -> Bool) -> Waiter? {
        for _ in turns.indices {
            guard let line = turns.first, isLeftOut(line.customer) else { return next() }
            turns.append(turns.removeFirst())
        }
        return nil
    }

    /// Removes and returns the waiters for which the closure is true.
    @inlinable public mutating func remove(where isWanted: (Waiter) -> Bool) -> [Waiter] {
        var removed: [Waiter] = []
        for line in lines.values {
            removed += line.waiters.filter(isWanted)
            line.waiters.removeAll(where: isWanted)
        }
        turns.removeAll { line in
            line.isInTurn = !line.waiters.isEmpty
            return !line.isInTurn
        }
        return removed
    }
}
