package import Receiver
import Synchronization

/// A receiver that writes down every request, and the checker that compares it with what was
/// published.
package final class Ledger: Sendable {
    private let log: Log
    package let receiver: Receiver

    private final class Log: Sendable {
        let requests = Mutex<[Receiver.Request]>([])
    }

    /// Starts the receiver; the closure gets each request and how many came before it.
    package init(
        holdsBack: Bool = false,
        answer: @escaping @Sendable (Receiver.Request, Int) -> Receiver.Response = { _, _ in Receiver.Response() }
    )
        throws
    {
        let log = Log()
        self.log = log
        receiver = try Receiver(holdsBack: holdsBack) { request in
            let before = log.requests.withLock { requests in
                requests.append(request)
                return requests.count - 1
            }
            return answer(request, before)
        }
    }

    package var url: String { receiver.url }

    /// Every request so far.
    package var all: [Receiver.Request] { log.requests.withLock { $0 } }

    /// The event numbers of all requests, in order of arrival.
    package var eventIDs: [Int64] {
        all.compactMap { $0["webhook-id"]?.split(separator: "_").last.flatMap { Int64($0) } }
    }

    /// How often each event came.
    package var counts: [Int64: Int] { Dictionary(eventIDs.map { ($0, 1) }, uniquingKeysWith: +) }
}
