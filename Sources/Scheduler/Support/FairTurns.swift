import Bytewise
import Synchronization
import Threads

/// Lets one task at a time do something, in the order of a `TurnQueue`.
final class FairTurns: Sendable {
    private struct Waiter: Sendable {
        let number: Int
        let continuation: CheckedContinuation<Bool, Never>
    }

    private struct State: ~Copyable {
        var isTaken = false
        var queue = TurnQueue<Waiter>()
        var numbers = 0
        var cancelled: Set<Int> = []
    }

    private let state = Mutex(State())

    /// Runs the body when it is the customer's turn. Throws a `CancellationError` when the task is
    /// cancelled before.
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
