/// How many events the next cut may take, so that each fits its deadline whatever an event costs
/// there: next to nothing, or a row for each of 15,000 endpoints that keep order.
///
/// It begins small and doubles while cuts are full and quick; one that takes long halves it, and
/// after one that ran into its deadline it begins anew (slow start and multiplicative decrease:
/// Jacobson 1988).
struct CutBudget {
    /// What the first cut may take.
    static let smallest = 16
    /// Longer than that a cut should not take: others wait for it.
    static let long = Duration.seconds(1)
    private static let quick = Duration.milliseconds(250)

    /// What the configuration allows.
    private let most: Int
    /// What the next cut may take.
    private(set) var events: Int

    init(most: Int) {
        self.most = max(1, most)
        events = min(Self.smallest, self.most)
    }

    /// A cut of so many events took so long.
    mutating func cut(_ count: Int, took time: Duration) {
        if time > Self.long {
            events = max(1, events / 2)
        } else if time < Self.quick, count >= events {
            events = min(most, events * 2)
        }
    }

    /// A cut ran into its deadline, and nothing of it is done.
    mutating func ranOutOfTime() {
        events = max(1, min(Self.smallest, events / 2))
    }
}
