import Foundation
import Postgres
package import Receiver
import Synchronization

/// A receiver's view of ordering keys: bodies are `{"key":…,"n":…}`, where `n` counts the events of
/// a key from 0 in the order in which they were committed. It notes everything that must not
/// happen.
package final class Lines: Sendable {
    private struct Line {
        var inFlight = 0
        /// The place that came last, and whether it was answered with success.
        var place = -1
        var isDone = true
        var requests = 0
    }

    private struct Body: Decodable {
        let key: String
        let n: Int
    }

    private struct State {
        var lines: [String: Line] = [:]
        var wrong: [String] = []
        var delivered = 0
    }

    private let state = Mutex(State())

    package init() {}

    /// What was out of order so far.
    package var wrong: [String] { state.withLock { $0.wrong } }
    /// How many events were answered with success, each counted once.
    package var delivered: Int { state.withLock { $0.delivered } }

    /// Takes a request, spends some time with it, and responses what the closure says: it gets key,
    /// place and how many requests of the key came before.
    package func take(
        _ request: Receiver.Request,
        _ answer: (String, Int, Int) -> Receiver.Response = { _, _, _ in Receiver.Response() }
    ) -> Receiver.Response {
        guard let body = try? JSONDecoder().decode(Body.self, from: Data(request.body)) else {
            return Receiver.Response(400)
        }
        let (key, place) = (body.key, body.n)
        let before = state.withLock { state in
            var line = state.lines[key] ?? Line()
            if line.inFlight > 0 { state.wrong.append("\(key): \(place) while \(line.place) was in flight") }
            if place < line.place { state.wrong.append("\(key): \(place) after \(line.place)") }
            if place > line.place, !line.isDone || place != line.place + 1 {
                state.wrong.append("\(key): \(place) before \(line.place) was done")
            }
            if place > line.place { (line.place, line.isDone) = (place, false) }
            line.inFlight += 1
            line.requests += 1
            state.lines[key] = line
            return line.requests - 1
        }
        let answer = answer(key, place, before)
        // Long enough to meet a second one, if there were one.
        usleep(2000)
        state.withLock { state in
            guard var line = state.lines[key] else { return }
            line.inFlight -= 1
            if (200..<300).contains(answer.status), !line.isDone {
                line.isDone = true
                state.delivered += 1
            }
            state.lines[key] = line
        }
        return answer
    }
}

extension TestDatabase {
    /// Publishes `rounds` events of each key, one transaction each, several producers at a time
    /// that own different keys.
    package func publishLines(keys: Int, rounds: Int, producers: Int = 4) async throws {
        try await withThrowingTaskGroup(of: Void.self) { group in
            for producer in 0..<producers {
                let pool = try newPool()
                group.addTask {
                    for round in 0..<rounds {
                        for key in stride(from: producer, to: keys, by: producers) {
                            try await pool.run {
                                try $0.script(
                                    """
                                    SELECT outbox.publish('test', '{"key":"k\(key)","n":\(round)}', ordering_key => 'k\(key)')
                                    """)
                            }
                        }
                    }
                    await pool.close()
                }
            }
            try await group.waitForAll()
        }
    }
}
