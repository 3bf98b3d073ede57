import Bytewise
import Synchronization
import Testing
import Threads

@testable import Scheduler

@Suite(.timeLimit(.minutes(15))) struct ComputePoolTests {
    @Test func `however much one customer has posted, another is next`() async throws {
        let pool = try ComputePool(threads: 1)
        let (began, goOn) = (ThreadSemaphore(), ThreadSemaphore())
        let order = Order()
        pool.post(for: "a") {
            began.signal()
            goOn.wait()
        }
        began.wait()
        for number in 1...50 { pool.post(for: "a") { order.add("a\(number)") } }
        pool.post(for: "b") { order.add("b1") }
        pool.post(for: "b") { order.add("b2") }
        goOn.signal()
        await pool.stop()
        #expect(order.lines.prefix(4) == ["a1", "b1", "a2", "b2"])
        #expect(order.lines.count == 52)
    }

    @Test func `what is posted before the end runs, and what comes after it runs at once`() async throws {
        let pool = try ComputePool()
        let order = Order()
        for number in 1...20 { pool.post(for: "a") { order.add("\(number)") } }
        await pool.stop()
        #expect(order.lines.count == 20)
        pool.post(for: "a") { order.add("late") }
        #expect(order.lines.last == "late")
    }

    private final class Order: Sendable {
        private let all = Mutex<[String]>([])
        var lines: [String] { all.withLock(\.self) }
        func add(_ line: String) { all.withLock { $0.append(line) } }
    }
}
