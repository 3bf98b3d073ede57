import Outbox
import Postgres
import Testing

@testable import Scheduler

/// How an endpoint gets its requests after an outage, without one.
@Suite(.timeLimit(.minutes(15))) struct LaneRampTests {
    private let now = Timestamp(microseconds: 1_800_000_000_000_000)

    private func state(_ events: EndpointState.Event...) -> EndpointState {
        var (state, at) = (EndpointState(), now)
        for event in events {
            state = state.after(event, at: at) ?? state
            at = at + .seconds(10)
        }
        return state
    }

    @Test func `a healthy endpoint gets as many as it takes`() {
        var ramp = LaneRamp(EndpointState(), hasJustRested: false)
        #expect(ramp.size == nil && ramp.isOver && ramp.triedBefore == nil)
        #expect(ramp.roundEnded(hasResponse: false, cap: 10) == .goOn)
    }

    @Test func `after a rest requests begin with one, and no response is waited for`() {
        var ramp = LaneRamp(EndpointState(), hasJustRested: true)
        var sizes: [Int?] = [ramp.size]
        for _ in 0..<4 {
            #expect(ramp.roundEnded(hasResponse: false, cap: 10) == .goOn)
            sizes.append(ramp.size)
        }
        #expect(sizes == [1, 2, 4, 8, nil])
        #expect(ramp.isOver)
    }

    @Test func `a failing one is probed until it answers, then gets more and more, and is closed at its cap`() {
        var ramp = LaneRamp(state(.trip(atLeast: .zero)), hasJustRested: false)
        #expect(ramp.stage == .probing && ramp.size == 1 && ramp.triedBefore == .distantFuture)
        #expect(ramp.roundEnded(hasResponse: false, cap: 5) == .tryAgain)
        #expect(ramp.roundEnded(hasResponse: true, cap: 5) == .tell(.probeAnswered))
        let recovering = state(.trip(atLeast: .zero), .probeAnswered)
        #expect(ramp.told(.probeAnswered, recovering, cap: 5) == .goOn)
        #expect(ramp.stage == .growing(2) && ramp.triedBefore == recovering.breaker.recoveredAt)
        // Requests that could not be made say nothing.
        #expect(ramp.roundEnded(hasResponse: false, cap: 5) == .tryAgain)
        #expect(ramp.size == 2)
        #expect(ramp.roundEnded(hasResponse: true, cap: 5) == .goOn)
        #expect(ramp.size == 4)
        #expect(ramp.roundEnded(hasResponse: true, cap: 5) == .tell(.rampedUp))
        #expect(ramp.told(.rampedUp, state(.trip(atLeast: .zero), .probeAnswered, .rampedUp), cap: 5) == .goOn)
        #expect(ramp.stage == .full && ramp.recoveredAt != nil && !ramp.isOver)
    }

    @Test func `one that takes one request at a time is closed with its first response`() {
        var ramp = LaneRamp(state(.trip(atLeast: .zero)), hasJustRested: false)
        #expect(ramp.roundEnded(hasResponse: true, cap: 1) == .tell(.probeAnswered))
        #expect(ramp.told(.probeAnswered, state(.trip(atLeast: .zero), .probeAnswered), cap: 1) == .tell(.rampedUp))
    }

    @Test func `whoever takes over a recovery goes on with one at a time, and with what was tried before`() {
        let recovering = state(.trip(atLeast: .zero), .probeAnswered)
        let ramp = LaneRamp(recovering, hasJustRested: false)
        #expect(ramp.stage == .growing(1) && ramp.triedBefore == recovering.breaker.recoveredAt)
    }

    @Test func `when the lane is lost, or somebody finds the endpoint failing again, another goes on`() {
        let failing = state(.trip(atLeast: .zero))
        var ramp = LaneRamp(failing, hasJustRested: false)
        #expect(ramp.told(.probeAnswered, nil, cap: 5) == nil)
        #expect(ramp.told(.probeAnswered, failing, cap: 5) == nil)
        ramp = LaneRamp(state(.trip(atLeast: .zero), .probeAnswered), hasJustRested: false)
        #expect(ramp.told(.rampedUp, failing, cap: 5) == nil)
    }
}
