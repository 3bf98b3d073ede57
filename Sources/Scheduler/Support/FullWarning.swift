/// When it is to be said that nothing is free: after ten seconds of it, and then every minute. Time
/// is a parameter.
struct FullWarning {
    /// Shorter than that is a burst.
    static let patience = Duration.seconds(10)
    static let period = Duration.seconds(60)

    private var fullSince: ContinuousClock.Instant?
    private var toldAt: ContinuousClock.Instant?

    /// Takes note of how it is now; true when it is to be said.
    mutating func isDue(isFull: Bool, at now: ContinuousClock.Instant) -> Bool {
        guard isFull else {
            fullSince = nil
            return false
        }
        let since = fullSince ?? now
        fullSince = since
        guard now - since > Self.patience, toldAt.map({ now - $0 > Self.period }) ?? true else { return false }
        toldAt = now
        return true
    }

    /// For how long nothing has been free, when that is no burst.
    func age(at now: ContinuousClock.Instant) -> Duration? {
        fullSince.map { now - $0 }.flatMap { $0 > Self.patience ? $0 : nil }
    }
}
