import Synchronization

/// Whether commits are still waited for.
///
/// A commit that waits for a standby is already done and cannot be taken back; a worker that gives
/// up its connection leaves a session behind that keeps waiting, and would write the same rows
/// again beside it. So the commit is waited for until the process ends.
public final class Patience: Sendable {
    private let isOver = Atomic(false)

    /// Patience that lasts until it is ended.
    public init() {}

    /// From now on the deadlines of statements apply.
    public func end() { isOver.store(true, ordering: .relaxed) }

    var lasts: Bool { !isOver.load(ordering: .relaxed) }
}
