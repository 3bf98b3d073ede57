#if FAIL_POINTS
    import Glibc
#endif

/// Places at which a test can kill or stop the process, to prove what is left behind there. Debug
/// builds only.
///
/// `OUTBOX_FAIL_POINT` names them: `record.before=kill`, `send.before/poison=kill` (only for events
/// of type poison), `claim.after@3=stop` (the third time). Several are separated by commas.
enum FailPoint: String {
    /// Before the statement that claims a batch.
    case claimBefore = "claim.before"
    /// After the claim has committed, before anything is dispatched.
    case claimAfter = "claim.after"
    /// Before a request is handed to the transport.
    case sendBefore = "send.before"
    /// After the response has come, before the recorder knows of it.
    case sendAfter = "send.after"
    /// Before the transaction that records.
    case recordBefore = "record.before"
    /// After the recording transaction has committed, before anybody here knows.
    case recordAfter = "record.after"

    /// Does what the environment asks for at this place; nothing in a release build.
    static func reach(_ point: FailPoint, subject: @autoclosure () -> String = "") {
        #if FAIL_POINTS
            guard !wanted.isEmpty else { return }
            for wish in wanted where wish.point == point.rawValue {
                if let wanted = wish.subject, wanted != subject() { continue }
                // To this thread: a stop that is sent to the process is taken by its main thread,
                // when that gets a CPU, and until then this one goes on.
                if wish.count.decrement() == 0 { raise(wish.signal) }
            }
        #endif
    }

    #if FAIL_POINTS
        private struct Wish: Sendable {
            let point: String
            let subject: String?
            let count: Countdown
            let signal: Int32
        }

        private static let wanted: [Wish] = {
            guard let text = getenv("OUTBOX_FAIL_POINT").map({ String(cString: $0) }) else { return [] }
            return text.split(separator: ",").compactMap { wish in
                let parts = wish.split(separator: "=").map(String.init)
                guard parts.count == 2 else { return nil }
                let counted = parts[0].split(separator: "@").map(String.init)
                let named = counted[0].split(separator: "/", maxSplits: 1).map(String.init)
                return Wish(
                    point: named[0], subject: named.count > 1 ? named[1] : nil,
                    count: Countdown(counted.count > 1 ? Int(counted[1]) ?? 1 : 1),
                    signal: parts[1] == "stop" ? SIGSTOP : SIGKILL)
            }
        }()
    #endif
}

#if FAIL_POINTS
    import Synchronization

    private final class Countdown: Sendable {
        private let left: Atomic<Int>
        init(_ count: Int) { left = Atomic(count) }
        func decrement() -> Int { left.subtract(1, ordering: .relaxed).newValue }
    }
#endif
