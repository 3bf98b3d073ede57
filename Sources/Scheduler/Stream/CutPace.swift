import Outbox

/// What the cutter does after a cut: how long it pauses, whether it wakes the dispatcher, and when
/// it falls asleep. Pure.
///
///     events ──► short pauses ──(none)──► pauses that double ──(16 ms)──► asleep, until a producer notifies
struct CutPace {
    enum Next: Equatable {
        case again
        case pause(Duration)
        /// Until a notification or a scan that finds something, from pauses of that length on;
        /// where nobody listens, as `pause`.
        case sleep(from: Duration)
    }

    struct Step: Equatable {
        let next: Next
        /// There are batches to claim that the dispatcher does not know of.
        let wakesDispatcher: Bool
    }

    static let shortest = Duration.milliseconds(1)
    /// How soon the events of others are seen while a backlog is delivered.
    static let betweenScans = Duration.milliseconds(8)
    /// Pauses from here on are worth the two statements of falling asleep.
    static let sleepFrom = Duration.milliseconds(16)

    private let longest: Duration
    private var pause = shortest
    private var isAhead = false

    /// - Parameter longest: the poll interval.
    init(longest: Duration) { self.longest = longest }

    /// A cut of at most so many events ended so.
    mutating func cut(_ cut: Cut, most: Int) -> Step {
        switch cut {
        case .events(let count) where count > 0:
            isAhead = false
            pause = Self.shortest * 2
            return Step(next: count >= most ? .again : .pause(Self.gathering(after: count)), wakesDispatcher: true)
        case .enough:
            // Some thousand events ahead: time enough for these, not for what others commit
            // meanwhile.
            defer { isAhead = true }
            pause = Self.shortest
            return Step(next: .pause(Self.betweenScans), wakesDispatcher: !isAhead)
        case .more:
            isAhead = false
            pause = Self.shortest * 2
            return Step(next: .pause(Self.shortest), wakesDispatcher: false)
        case .events, .busy:
            isAhead = false
            defer { pause = min(pause * 2, longest) }
            return Step(next: pause >= Self.sleepFrom ? .sleep(from: pause) : .pause(pause), wakesDispatcher: false)
        }
    }

    /// Something ended a sleep.
    mutating func woke() { pause = Self.shortest }

    /// How long to let events gather after a cut of so many: next to nothing while they are few,
    /// and up to 10 ms in a stream of them, where every cut, claim and record would otherwise be
    /// made for a handful.
    private static func gathering(after count: Int) -> Duration { shortest * min(max(1, count / 4), 10) }
}
