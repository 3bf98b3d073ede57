import Synchronization

/// Whether commits are still waited for.
///
/// A commit that waits for a standby is done already and cannot be taken back; whoever gives its connection up leaves a session behind
/// that waits on, and would write the same again beside it. So it is waited for until the process ends.
public final class Patience: Sendable {
    private let isOver = Atomic(false)

    /// Patience that lasts until it is ended.
    public init() {}

    /// From now on the deadlines of statements count.
    public func end() { isOver.store(true, ordering: .relaxed) }

    var lasts: Bool { !isOver.load(ordering: .relaxed) }
}
