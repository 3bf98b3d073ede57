import Bytewise
import Outbox
import Postgres
import Synchronization
import TestSupport
import Testing
import Threads

@testable import Scheduler

/// Whose turn it is, without a database.
@Suite(.timeLimit(.minutes(15))) struct FairTurnsTests {
    private let a = ExactText("a")
    private let b = ExactText("b")
    private let c = ExactText("c")

    @Test func `customers take turns, and within a customer the first to come is the first`() {
        var queue = TurnQueue<String>()
        for number in 1...200 { queue.add("a\(number)", of: a) }
        queue.add("b1", of: b)
        queue.add("b2", of: b)
        queue.add("c1", of: c)
        #expect((1...7).compactMap { _ in queue.next() } == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"])
        // Who comes back has no place in front.
        queue.add("b3", of: b)
        #expect((1...3).compactMap { _ in queue.next() } == ["a5", "b3", "a6"])
    }

    @Test func `whoever gives up leaves no place behind`() {
        var queue = TurnQueue<String>()
        for (waiter, customer) in [("a1", a), ("b1", b), ("a2", a), ("c1", c)] { queue.add(waiter, of: customer) }
        #expect(queue.remove { $0.hasPrefix("b") || $0 == "a1" }.sorted() == ["a1", "b1"])
        #expect((1...3).compactMap { _ in queue.next() } == ["a2", "c1"])
        let isEmpty = queue.isEmpty
        #expect(isEmpty)
        queue.add("b2", of: b)
        #expect(queue.next() == "b2")
    }

    @Test func `one at a time, and a cancelled one does not keep the turn`() async throws {
        let turns = FairTurns()
        let log = Log()
        let (began, goOn) = (Flag(false), Flag(false))
        let customer = a
        let first = Task {
            try await turns.run(for: customer) {
                began.isSet = true
                return await eventually { goOn.isSet }
            }
        }
        #expect(await eventually { began.isSet })
        let cancelled = Task { try await turns.run(for: customer) { await log.enter() } }
        cancelled.cancel()
        await #expect(throws: CancellationError.self) { try await cancelled.value }
        let others = (1...20).map { number in
            Task {
                try await turns.run(for: ExactText("\(number % 3)")) {
                    await log.enter()
                    await Task.yield()
                    await log.leave()
                }
            }
        }
        goOn.isSet = true
        #expect(try await first.value)
        for other in others { try await other.value }
        #expect(await log.entered == 20)
        #expect(await log.mostInside == 1)
    }

    private actor Log {
        var entered = 0
        var inside = 0
        var mostInside = 0

        func enter() {
            entered += 1
            inside += 1
            mostInside = max(mostInside, inside)
        }

        func leave() { inside -= 1 }
    }
}

/// How many events a filter is asked about at a time, without a database and without waiting.
@Suite(.timeLimit(.minutes(15))) struct FilterPaceTests {
    private let one = EndpointID(rawValue: .random())
    private let other = EndpointID(rawValue: .random())

    @Test func `a page that takes too long is asked in smaller parts, and only a single event makes a filter slow`() {
        let now = ContinuousClock.now
        var pace = FilterPace()
        #expect(pace.size(for: one, at: now) == .max)
        var sizes: [Int] = []
        var size = 200
        while !pace.wasSlow(one, with: size, at: now) {
            size = pace.size(for: one, at: now) ?? 0
            sizes.append(size)
        }
        #expect(sizes == [25, 3, 1])
        #expect(pace.size(for: one, at: now) == nil)
        #expect(pace.size(for: other, at: now) == .max)
        // For a minute.
        #expect(pace.size(for: one, at: now + FilterPace.memory - .seconds(1)) == nil)
        #expect(pace.size(for: one, at: now + FilterPace.memory) == .max)
    }

    @Test func `parts grow while they are quick`() {
        let now = ContinuousClock.now
        var pace = FilterPace()
        let isSlow = pace.wasSlow(one, with: 200, at: now)
        #expect(!isSlow)
        // A part that was smaller than it might have been says nothing.
        pace.wasQuick(one, with: 5)
        #expect(pace.size(for: one, at: now) == 25)
        pace.wasQuick(one, with: 25)
        #expect(pace.size(for: one, at: now) == 50)
        for _ in 1...10 { pace.wasQuick(one, with: pace.size(for: one, at: now) ?? 0) }
        #expect(pace.size(for: one, at: now) == .max)
    }
}
