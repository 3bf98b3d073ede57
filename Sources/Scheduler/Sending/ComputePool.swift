import Bytewise
import Synchronization
import Threads

/// Runs what takes long for its size, such as a template of a large event or rules on a large
/// response, on threads of its own: the transport's thread serves everybody. Customers take turns,
/// so that one that fills the pool delays itself.
final class ComputePool: Sendable {
    private struct State: ~Copyable {
        var queue = TurnQueue<@Sendable () -> Void>()
        var running = 0
        var isClosed = false
    }

    private let state = Mutex(State())
    private let count: Int
    private let signal = ThreadSemaphore()
    private let threads = Mutex<[Thread]>([])

    /// Starts the threads. Throws when the system has none left.
    ///
    /// - Parameter threads: two by default: one job that takes long still leaves one for others.
    ///   They have a lower priority than the transport's thread.
    init(threads count: Int = 2) throws {
        self.count = count
        do {
            for number in 1...count {
                let thread = try Thread("compute \(number)") {
                    Thread.lowerPriority()
                    while let job = self.next() { job() }
                }
                threads.withLock { $0.append(thread) }
            }
        } catch {
            // Those that started would wait for ever.
            state.withLock { $0.isClosed = true }
            for _ in 1...count { signal.signal() }
            throw error
        }
    }

    /// Runs the job when it is its customer's turn; at once, on the calling thread, when the pool
    /// is stopped.
    func post(for customer: ExactText, _ job: @escaping @Sendable () -> Void) {
        let isTaken = state.withLock { state in
            if !state.isClosed { state.queue.add(job, of: customer) }
            return !state.isClosed
        }
        if isTaken { signal.signal() } else { job() }
    }

    /// How many threads run a job; full is a pool for which jobs wait.
    var reading: Budget.Reading {
        state.withLock { Budget.Reading(used: $0.running, limit: count, isFull: !$0.queue.isEmpty) }
    }

    /// How many jobs of each customer wait.
    var waiting: [ExactText: Int] { state.withLock { $0.queue.counts } }

    /// Runs what was posted, and ends the threads.
    func stop() async {
        state.withLock { $0.isClosed = true }
        let threads = threads.withLock(\.self)
        for _ in threads { signal.signal() }
        for thread in threads { await thread.end() }
    }

    /// Waits for a job; nil when the pool is stopped and nothing is left.
    private func next() -> (@Sendable () -> Void)? {
        while true {
            let (job, isClosed) = state.withLock { state in
                let job = state.queue.next()
                if job != nil { state.running += 1 }
                return (job, state.isClosed)
            }
            if let job {
                return {
                    job()
                    self.state.withLock { $0.running -= 1 }
                }
            }
            if isClosed { return nil }
            signal.wait()
        }
    }
}
