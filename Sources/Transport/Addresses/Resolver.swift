import Bytewise
import Glibc
import Synchronization
import Threads

/// Resolves the names of receivers, on few threads: libcurl would start one for each request, and a
/// silent name server keeps it for half a minute. A name has at most one lookup at a time, and one
/// party has at most half of the threads.
///
/// Addresses are kept for half a minute, since `getaddrinfo` does not tell how long they are valid,
/// and for another one while they are looked up again. They are used for longer when that fails or
/// takes long: a dead name server does not affect names that were resolved before (serve-stale: RFC
/// 8767). A name that no longer exists loses its addresses.
final class Resolver: Sendable {
    enum Outcome: Sendable, Equatable {
        case addresses([IPAddress])
        case failure(Failure)
    }

    struct Failure: Error, Equatable {
        let text: String
        /// True when we lacked a resource, and the name may be fine.
        var isOurs = false
        /// True when the name servers say that the name has no address.
        var isFinal = false
    }

    typealias Lookup = @Sendable (String) -> Outcome

    /// How long an address is used without a new lookup.
    static let fresh = Duration.seconds(30)
    /// How long an address is used while lookups fail.
    static let stale = Duration.seconds(3600)
    /// How long a name that does not resolve is not looked up again.
    static let failed = Duration.seconds(5)
    /// How long the first request of an idle name waits for a lookup before the old addresses are
    /// used.
    static let patience = Duration.seconds(1)
    /// The max number of kept names.
    private static let maxNames = 20_000

    private struct Entry {
        var addresses: [IPAddress]?
        var resolvedAt: ContinuousClock.Instant
        var failure: Failure?
        var failedAt: ContinuousClock.Instant?
    }

    private struct Question {
        let name: ExactText
        let party: ExactText
    }

    private struct State: ~Copyable {
        var entries: [ExactText: Entry] = [:]
        var waiting: [ExactText: [@Sendable (Outcome) -> Void]] = [:]
        /// The parties that wait for a name which no thread looks up yet: each may be the next one.
        var asking: [ExactText: Set<ExactText>] = [:]
        var queue = TurnQueue<Question>()
        var lookedUp: Set<ExactText> = []
        var running: [ExactText: Int] = [:]
        var threads = 0
        /// Waiting threads, and questions that no thread has taken.
        var idle = 0
        var queued = 0
        var isClosed = false

        /// True while a lookup of the name is under way, or waits for the party's turn.
        func isAsked(_ name: ExactText, by party: ExactText) -> Bool {
            lookedUp.contains(name) || asking[name]?.contains(party) == true
        }
    }

    private let state = Mutex(State())
    private let signal = ThreadSemaphore()
    private let lookup: Lookup
    private let maxThreads: Int
    private let fresh: Duration

    /// - Parameters:
    ///   - threads: the max number of concurrent lookups.
    ///   - fresh: how long an address is used without a new lookup.
    init(threads: Int = 8, fresh: Duration = Resolver.fresh, lookup: @escaping Lookup = Resolver.ask) {
        (maxThreads, self.fresh, self.lookup) = (max(2, threads), fresh, lookup)
    }

    /// The known result for a name, without waiting; nil when the caller has to wait for it
    /// (`resolve`). A result that is no longer fresh is looked up again meanwhile.
    func known(_ name: ExactText, for party: ExactText, at now: ContinuousClock.Instant = .now) -> Outcome? {
        let (outcome, isToBeAsked) = state.withLock { state -> (Outcome?, Bool) in
            guard let entry = state.entries[name] else { return (nil, false) }
            let failedSince = entry.failedAt.map { now - $0 }
            let hasJustFailed = failedSince.map { $0 < Self.failed } ?? false
            let age = now - entry.resolvedAt
            let isUsable = age < fresh * 2 || (failedSince.map { $0 < fresh * 2 } ?? false)
            if let addresses = entry.addresses, age < Self.stale, isUsable {
                return (
                    .addresses(addresses), age >= fresh && !hasJustFailed && !state.isAsked(name, by: party)
                )
            }
            if hasJustFailed, let failure = entry.failure { return (.failure(failure), false) }
            return (nil, false)
        }
        if isToBeAsked { resolve(name, for: party) { _ in } }
        return outcome
    }

    /// The old addresses of a name whose lookup takes long; nil when there are none. Later requests
    /// do not wait for it.
    func fallBack(_ name: ExactText, at now: ContinuousClock.Instant = .now) -> [IPAddress]? {
        state.withLock { state in
            guard let entry = state.entries[name], let addresses = entry.addresses, now - entry.resolvedAt < Self.stale
            else { return nil }
            state.entries[name]?.failedAt = now
            return addresses
        }
    }

    /// Looks up a name when it is the party's turn; where that fails, its old addresses are the
    /// result. The completion is called once, on any thread.
    func resolve(_ name: ExactText, for party: ExactText, completion: @escaping @Sendable (Outcome) -> Void) {
        let (isClosed, needsThread) = state.withLock { state -> (Bool, Bool) in
            if state.isClosed { return (true, false) }
            state.waiting[name, default: []].append(completion)
            if state.isAsked(name, by: party) { return (false, false) }
            state.asking[name, default: []].insert(party)
            state.queue.add(Question(name: name, party: party), of: party)
            state.queued += 1
            let needsThread = state.queued > state.idle && state.threads < maxThreads
            if needsThread { state.threads += 1 }
            return (false, needsThread)
        }
        if isClosed { return completion(.failure(Failure(text: "the transport is stopped", isOurs: true))) }
        if needsThread { startThread() }
        signal.signal()
    }

    /// Ends the threads after their current lookups. The caller does not wait for that: a name
    /// server may be silent for long.
    func stop() {
        let waiting = state.withLock { state in
            state.isClosed = true
            defer { state.waiting = [:] }
            return state.waiting.values.flatMap(\.self)
        }
        for _ in 0..<maxThreads { signal.signal() }
        for completion in waiting { completion(.failure(Failure(text: "the transport is stopped", isOurs: true))) }
    }

    /// How many threads look up a name, how many there may be, and for which parties questions
    /// wait.
    var taken: (running: Int, limit: Int, waiting: [ExactText: Int]) {
        state.withLock { ($0.lookedUp.count, maxThreads, $0.queue.counts) }
    }

    private func startThread() {
        do {
            try Thread("resolver") {
                while let question = self.next() { self.answer(question, self.lookup(question.name.text)) }
            }
        } catch {
            let unanswered = state.withLock { state -> [@Sendable (Outcome) -> Void] in
                state.threads -= 1
                if state.threads > 0 { return [] }
                defer {
                    (state.waiting, state.asking, state.queued) = ([:], [:], 0)
                    state.queue = TurnQueue()
                }
                return state.waiting.values.flatMap(\.self)
            }
            for completion in unanswered { completion(.failure(Failure(text: error.description, isOurs: true))) }
        }
    }

    /// Waits for a question; nil at the end.
    private func next() -> Question? {
        while true {
            let (question, isClosed) = state.withLock { state -> (Question?, Bool) in
                let question = takeQuestion(&state)
                if question == nil { state.idle += 1 }
                return (question, state.isClosed)
            }
            if isClosed { return nil }
            if let question { return question }
            signal.wait()
            state.withLock { $0.idle -= 1 }
        }
    }

    /// The next question of a party that has threads left, about a name that somebody waits for and
    /// no thread looks up.
    private func takeQuestion(_ state: inout State) -> Question? {
        let running = state.running
        while let question = state.queue.next(without: { running[$0, default: 0] >= maxThreads / 2 }) {
            state.queued -= 1
            guard state.waiting[question.name] != nil, state.lookedUp.insert(question.name).inserted else { continue }
            state.running[question.party, default: 0] += 1
            state.asking[question.name] = nil
            return question
        }
        return nil
    }

    private func answer(_ question: Question, _ outcome: Outcome) {
        let now = ContinuousClock.now
        let (waiting, result) = state.withLock { state -> ([@Sendable (Outcome) -> Void], Outcome) in
            let running = state.running[question.party, default: 1] - 1
            state.running[question.party] = running > 0 ? running : nil
            state.lookedUp.remove(question.name)
            if state.entries[question.name] == nil, state.entries.count >= Self.maxNames { forgetSome(&state, at: now) }
            var result = outcome
            switch outcome {
            case .addresses(let addresses):
                state.entries[question.name] = Entry(addresses: addresses, resolvedAt: now)
            case .failure(let failure):
                var entry = state.entries[question.name] ?? Entry(resolvedAt: now)
                (entry.failure, entry.failedAt) = (failure, failure.isOurs ? nil : now)
                if failure.isFinal { entry.addresses = nil }
                state.entries[question.name] = entry
                if let old = entry.addresses, now - entry.resolvedAt < Self.stale { result = .addresses(old) }
            }
            return (state.waiting.removeValue(forKey: question.name) ?? [], result)
        }
        // The party may have been left out because of this lookup.
        signal.signal()
        for completion in waiting { completion(result) }
    }

    /// Forgets the old names, or half of all names: they are looked up again.
    private func forgetSome(_ state: inout State, at now: ContinuousClock.Instant) {
        state.entries = state.entries.filter { now - $0.value.resolvedAt < fresh }
        if state.entries.count >= Self.maxNames {
            for name in state.entries.keys.prefix(Self.maxNames / 2) { state.entries[name] = nil }
        }
    }

    /// Resolves a name as this machine does; blocks as long as its name servers take.
    static func ask(_ name: String) -> Outcome {
        var hints = unsafe addrinfo()
        unsafe hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var list: UnsafeMutablePointer<addrinfo>?
        let status = unsafe getaddrinfo(name, nil, &hints, &list)
        guard status == 0 else {
            let isOurs = status == EAI_MEMORY || status == EAI_SYSTEM || !TransferEvidence.canOpenFiles()
            let reason = unsafe String(cString: gai_strerror(status))
            // Not a name without addresses: one family may have none while the other's lookup
            // failed.
            let isFinal = status == EAI_NONAME
            return .failure(
                Failure(
                    text: "Could not resolve host: \(name) (\(reason))", isOurs: isOurs, isFinal: isFinal && !isOurs))
        }
        defer { unsafe freeaddrinfo(list) }
        return .addresses(unsafe IPAddress.all(in: list))
    }
}
