import Logging
import ServiceLifecycle
import Synchronization

/// Lets one task sleep until there is something to do: until `signal`, `stop`, cancellation, or the
/// time is up. A signal that comes while nobody sleeps is kept for the next sleep.
final class Wakeup: Sendable {
    private struct State {
        var isSignalled = false
        var isStopped = false
        var sleeper: (number: Int, continuation: CheckedContinuation<Void, Never>)?
        var sleeps = 0
    }

    private let state = Mutex(State())

    /// True after `stop`: the loop that sleeps here should end.
    var isStopped: Bool { state.withLock { $0.isStopped } }

    /// Ends the present sleep, or the next one before it begins.
    func signal() {
        let sleeper = state.withLock { state in
            state.isSignalled = state.sleeper == nil
            defer { state.sleeper = nil }
            return state.sleeper
        }
        sleeper?.continuation.resume()
    }

    /// Ends the present sleep and all later ones at once.
    func stop() {
        state.withLock { $0.isStopped = true }
        signal()
    }

    /// Sleeps. Only one task may sleep at a time.
    func wait(upTo limit: Duration) async {
        await withTaskCancellationHandler {
            let timer = Mutex<Task<Void, Never>?>(nil)
            await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
                let number: Int? = state.withLock { state in
                    precondition(state.sleeper == nil, "only one task may sleep on a Wakeup")
                    guard !state.isSignalled, !state.isStopped, !Task.isCancelled else {
                        state.isSignalled = false
                        return nil
                    }
                    state.sleeps += 1
                    state.sleeper = (state.sleeps, continuation)
                    return state.sleeps
                }
                guard let number else { return continuation.resume() }
                // Ends with this sleep: cancelled below, or by running out.
                timer.withLock {
                    $0 = Task {
                        do { try await Task.sleep(for: limit) } catch { return }
                        self.end(number)
                    }
                }
            }
            timer.withLock { $0?.cancel() }
        } onCancel: {
            signal()
        }
    }

    private func end(_ number: Int) {
        let sleeper = state.withLock { state -> CheckedContinuation<Void, Never>? in
            guard let sleeper = state.sleeper, sleeper.number == number else { return nil }
            state.sleeper = nil
            return sleeper.continuation
        }
        sleeper?.resume()
    }
}

extension Wakeup {
    /// Does the work again and again until the process stops gracefully, asleep in between for as
    /// long as the work says (nil: not at all). A failure is reported when it begins and then now
    /// and then; the pauses grow to two seconds, spread so that many workers do not come back
    /// together.
    func run(
        complaint: Logger.Message, to logger: Logger, _ work: () async throws -> Duration?
    ) async {
        await withGracefulShutdownHandler {
            var failures = 0
            while !isStopped && !Task.isCancelled {
                do {
                    let pause = try await work()
                    failures = 0
                    if let pause { await wait(upTo: pause) }
                } catch {
                    failures += 1
                    if failures == 1 || failures.isMultiple(of: 60) {
                        logger.error(complaint, metadata: ["error": "\(error)"])
                    }
                    await wait(upTo: min(.milliseconds(100 * failures), .seconds(2)) * Double.random(in: 0.5...1))
                }
            }
        } onGracefulShutdown: {
            self.stop()
        }
    }
}
