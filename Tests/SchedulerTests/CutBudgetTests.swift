import Testing

@testable import Scheduler

@Suite(.timeLimit(.minutes(15))) struct CutBudgetTests {
    @Test func `it begins small, doubles while cuts are full and quick, and stays within what is allowed`() {
        var budget = CutBudget(most: 100)
        var taken: [Int] = []
        for _ in 0..<5 {
            taken.append(budget.events)
            budget.cut(budget.events, took: .milliseconds(20))
        }
        #expect(taken == [16, 32, 64, 100, 100])
    }

    @Test func `a cut that is not full says nothing, and one that takes long halves it`() {
        var budget = CutBudget(most: 1000)
        budget.cut(3, took: .milliseconds(1))
        #expect(budget.events == 16)
        for _ in 0..<3 { budget.cut(budget.events, took: .milliseconds(20)) }
        budget.cut(128, took: .milliseconds(500))
        #expect(budget.events == 128)
        budget.cut(128, took: .seconds(2))
        #expect(budget.events == 64)
    }

    @Test func `after a deadline it begins anew, and ends at a single event`() {
        var budget = CutBudget(most: 5000)
        for _ in 0..<9 { budget.cut(budget.events, took: .zero) }
        #expect(budget.events == 5000)
        var taken: [Int] = []
        for _ in 0..<6 {
            budget.ranOutOfTime()
            taken.append(budget.events)
        }
        #expect(taken == [16, 8, 4, 2, 1, 1])
    }
}
