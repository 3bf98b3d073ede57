import Synchronization
import Testing

@testable import Scheduler

@Suite(.timeLimit(.minutes(15))) struct WakeupTests {
    @Test func `a signal before the sleep is kept for it`() async {
        let wakeup = Wakeup()
        wakeup.signal()
        await wakeup.wait(upTo: .seconds(3600))
    }

    @Test func `a signal ends the sleep`() async {
        let wakeup = Wakeup()
        let task = Task { await wakeup.wait(upTo: .seconds(3600)) }
        wakeup.signal()
        await task.value
    }

    @Test func `the time ends the sleep`() async {
        await Wakeup().wait(upTo: .milliseconds(1))
    }

    @Test func `stop ends this sleep and all later ones`() async {
        let wakeup = Wakeup()
        let task = Task { await wakeup.wait(upTo: .seconds(3600)) }
        wakeup.stop()
        await task.value
        for _ in 0..<3 { await wakeup.wait(upTo: .seconds(3600)) }
        #expect(wakeup.isStopped)
    }

    @Test func `cancellation ends the sleep`() async {
        let wakeup = Wakeup()
        let task = Task { await wakeup.wait(upTo: .seconds(3600)) }
        task.cancel()
        await task.value
    }

    @Test func `no signal is lost between many signallers and one sleeper`() async {
        let wakeup = Wakeup()
        let done = Counter()
        await withTaskGroup(of: Void.self) { group in
            for _ in 0..<4 {
                group.addTask {
                    for _ in 0..<500 {
                        done.value.add(1, ordering: .sequentiallyConsistent)
                        wakeup.signal()
                        await Task.yield()
                    }
                }
            }
            group.addTask {
                while done.value.load(ordering: .sequentiallyConsistent) < 2000 {
                    await wakeup.wait(upTo: .seconds(3600))
                }
            }
        }
    }

    private final class Counter: Sendable {
        let value = Atomic(0)
    }
}
