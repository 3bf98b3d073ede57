/// When it is to be said that nothing is free: after ten seconds of it, and then every minute. Time is a parameter.
struct FullWarning {
    /// Shorter than that is a burst.
    static let patience = Duration.seconds(10)
    static let period = Duration.seconds(60)

    private var fullSince: ContinuousClock.Instant?
    private var toldAt: ContinuousClock.Instant?
    /// Nothing has been free for that long.
    private(set) var lasts = false

    /// Takes note of how it is now; true when it is to be said.
    mutating func isDue(isFull: Bool, at now: ContinuousClock.Instant) -> Bool {
        guard isFull else {
            (fullSince, lasts) = (nil, false)
            return false
        }
        let since = fullSince ?? now
        fullSince = since
        lasts = now - since > Self.patience
        guard lasts, toldAt.map({ now - $0 > Self.period }) ?? true else { return false }
        toldAt = now
        return true
    }
}
