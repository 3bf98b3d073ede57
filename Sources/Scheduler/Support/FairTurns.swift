import Bytewise
import DequeModule
import Synchronization

/// Who is next to use something that one may use at a time: customers take turns, and within a customer the first to come is the
/// first. However many of one customer wait, another customer's next one waits for one turn of each customer at most.
struct TurnQueue<Waiter: Sendable>: Sendable {
    private var waiting: [ExactText: Deque<Waiter>] = [:]
    private var turns: Deque<ExactText> = []

    var isEmpty: Bool { turns.isEmpty }

    /// Puts it behind those of its customer.
    mutating func add(_ waiter: Waiter, of customer: ExactText) {
        if waiting[customer] == nil { turns.append(customer) }
        waiting[customer, default: []].append(waiter)
    }

    /// Takes out who is next; nil when nobody waits.
    mutating func next() -> Waiter? {
        guard let customer = turns.popFirst(), var own = waiting.removeValue(forKey: customer) else { return nil }
        let waiter = own.popFirst()
        if !own.isEmpty {
            waiting[customer] = own
            turns.append(customer)
        }
        return waiter
    }

    /// Takes out those for which it is so.
    mutating func remove(where isWanted: (Waiter) -> Bool) -> [Waiter] {
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

/// Lets one task at a time do something, in the order of a `TurnQueue`.
final class FairTurns: Sendable {
    private struct Waiter: Sendable {
        let number: Int
        let continuation: CheckedContinuation<Bool, Never>
    }

    private struct State {
        var isTaken = false
        var queue = TurnQueue<Waiter>()
        var numbers = 0
        var cancelled: Set<Int> = []
    }

    private let state = Mutex(State())

    /// Runs the body when it is the customer's turn. Throws a `CancellationError` when the task is cancelled before.
    func run<Value: Sendable>(for customer: ExactText, _ body: () async throws -> Value) async throws -> Value {
        try await wait(for: customer)
        defer { pass() }
        return try await body()
    }

    private func wait(for customer: ExactText) async throws {
        let number = state.withLock { state in
            state.numbers += 1
            return state.numbers
        }
        let isOurs = await withTaskCancellationHandler {
            await withCheckedContinuation { (continuation: CheckedContinuation<Bool, Never>) in
                let answer: Bool? = state.withLock { state in
                    if state.cancelled.remove(number) != nil { return false }
                    if !state.isTaken {
                        state.isTaken = true
                        return true
                    }
                    state.queue.add(Waiter(number: number, continuation: continuation), of: customer)
                    return nil
                }
                if let answer { continuation.resume(returning: answer) }
            }
        } onCancel: {
            let waiter = state.withLock { state in
                let waiter = state.queue.remove { $0.number == number }.first
                if waiter == nil { state.cancelled.insert(number) }
                return waiter
            }
            waiter?.continuation.resume(returning: false)
        }
        // Cancelled after it had its turn, or never: nobody asks again.
        state.withLock { _ = $0.cancelled.remove(number) }
        if !isOurs { throw CancellationError() }
    }

    private func pass() {
        let next = state.withLock { state in
            let next = state.queue.next()
            state.isTaken = next != nil
            return next
        }
        next?.continuation.resume(returning: true)
    }
}
