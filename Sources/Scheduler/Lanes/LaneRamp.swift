import Outbox
import Postgres

/// How many requests at a time the owner of a lane makes to an endpoint that is failing, or has
/// just asked for a rest.
///
///     failing, no response yet ──► probing ──(a response)──► growing(1)
///     recovering, or rested  ──► growing(n) ──(a round that went well)──► growing(2n) ──(more than its cap)──► full
///
/// What it does about its endpoint it asks for (`Step`), and is told what became of that. Pure: the
/// answers and the cap are passed in.
struct LaneRamp: Equatable {
    enum Stage: Equatable {
        /// As many as the endpoint takes.
        case full
        /// One: nobody knows whether it answers.
        case probing
        /// So many.
        case growing(Int)
    }

    private(set) var stage: Stage
    /// It was failing when the lane was claimed: what goes out are probes, and only responses
    /// count.
    let isFailing: Bool
    /// Since when it answers again; nil while it does not, and when it never failed.
    private(set) var recoveredAt: Timestamp?

    init(_ state: EndpointState, hasJustRested: Bool) {
        isFailing = state.breaker.failing != nil
        recoveredAt = state.breaker.recoveredAt
        stage = isFailing && recoveredAt == nil ? .probing : isFailing || hasJustRested ? .growing(1) : .full
    }

    /// How many; nil for as many as the endpoint takes.
    var size: Int? {
        switch stage {
        case .full: nil
        case .probing: 1
        case .growing(let size): size
        }
    }

    /// What was tried before then is due, whatever its own time is: all of it while it is probed.
    var triedBefore: Timestamp? { stage == .probing ? .distantFuture : recoveredAt }

    /// True when the lane is as any other.
    var isOver: Bool { !isFailing && stage == .full && recoveredAt == nil }

    enum Step: Equatable {
        case goOn
        /// A request that could not be made is no sign of life: try again in a moment.
        case tryAgain
        /// Let this happen to the endpoint, and say what became of it (`told`).
        case tell(EndpointState.Event)
    }

    /// All of a round has ended, and nothing has closed the endpoint.
    ///
    /// - Parameters:
    ///   - hasResponse: the receiver dealt with at least one of them.
    ///   - cap: how many requests the endpoint takes at a time.
    mutating func roundEnded(hasResponse: Bool, cap: Int) -> Step {
        switch stage {
        case .full: .goOn
        case _ where isFailing && !hasResponse: .tryAgain
        case .probing: .tell(.probeAnswered)
        case .growing(let size): grow(size * 2, cap: cap)
        }
    }

    private mutating func grow(_ size: Int, cap: Int) -> Step {
        if size > cap, isFailing { return .tell(.rampedUp) }
        stage = size > cap ? .full : .growing(size)
        return .goOn
    }

    /// What became of what it asked for: what the endpoint is now, nil when the lane is not ours
    /// any more. Returns what is next; nil when somebody else has to go on, because somebody has
    /// just found the endpoint failing.
    mutating func told(_ event: EndpointState.Event, _ state: EndpointState?, cap: Int) -> Step? {
        guard let state else { return nil }
        switch event {
        case .probeAnswered:
            guard let since = state.breaker.recoveredAt else { return nil }
            recoveredAt = since
            return grow(2, cap: cap)
        default:
            stage = .full
            return state.breaker.failing == nil ? .goOn : nil
        }
    }
}
