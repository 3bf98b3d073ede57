import Testing

@testable import Scheduler

@Suite(.timeLimit(.minutes(15))) struct FullWarningTests {
    private let begin = ContinuousClock.now
    private var warning = FullWarning()

    private mutating func isDue(_ isFull: Bool, after seconds: Int) -> Bool {
        warning.isDue(isFull: isFull, at: begin + .seconds(seconds))
    }

    @Test mutating func `a burst is not said, and what lasts is said once a minute`() {
        let told = (0...140).filter { isDue(true, after: $0) }
        #expect(told == [11, 72, 133])
    }

    @Test mutating func `what was free in between begins anew, and is not said more often for it`() {
        #expect((0...9).allSatisfy { !isDue(true, after: $0) })
        #expect(!isDue(false, after: 10))
        #expect((11...21).allSatisfy { !isDue(true, after: $0) })
        #expect(isDue(true, after: 22))
        #expect(!isDue(false, after: 23))
        #expect((24...80).allSatisfy { !isDue(true, after: $0) })
        #expect(isDue(true, after: 83))
    }
}
