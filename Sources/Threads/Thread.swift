import Glibc
import Synchronization

/// An operating-system thread for blocking calls into C. Signals stay with the process's other
/// threads.
package struct Thread: Sendable {
    /// Why there is no thread: a limit of the user, of the unit or of the container.
    package struct StartError: Error, CustomStringConvertible {
        package let description: String
    }

    private let body: Body

    /// Starts a thread that runs the closure, and frees itself when that returns.
    ///
    /// - Parameter name: shown by `top -H`, `perf` and debuggers; Linux keeps its first 15 bytes.
    @discardableResult
    package init(_ name: String, _ run: @escaping @Sendable () -> Void) throws(StartError) {
        body = Body {
            // Only a convenience for operators: a system without it is no reason to fail.
            let descriptor = unsafe open("/proc/thread-self/comm", O_WRONLY | O_CLOEXEC)
            if descriptor >= 0 {
                unsafe _ = write(descriptor, name, min(name.utf8.count, 15))
                close(descriptor)
            }
            run()
        }
        try body.start()
    }

    /// Waits until the closure has returned.
    package func end() async { await withCheckedContinuation { body.atEnd($0.resume) } }

    /// Lets other threads of the process go before the calling one, as `nice` does: on Linux the
    /// value is the thread's own.
    package static func lowerPriority() { setpriority(__priority_which_t(PRIO_PROCESS.rawValue), 0, 10) }

    /// Blocks the calling thread for a duration.
    package static func pause(_ duration: Duration) {
        let (seconds, attoseconds) = duration.components
        var time = timespec(tv_sec: Int(seconds), tv_nsec: Int(attoseconds / 1_000_000_000))
        var left = timespec()
        while unsafe nanosleep(&time, &left) != 0, errno == EINTR { time = left }
    }

    private final class Body: Sendable {
        private let run: @Sendable () -> Void
        /// The waiter for the end; nil after the end.
        private let waiting = Mutex<[@Sendable () -> Void]?>([])

        init(_ run: @escaping @Sendable () -> Void) { self.run = run }

        func start() throws(StartError) {
            let own = unsafe Unmanaged.passRetained(self)
            var all = sigset_t()
            var previous = sigset_t()
            unsafe sigfillset(&all)
            unsafe pthread_sigmask(SIG_SETMASK, &all, &previous)
            defer { unsafe pthread_sigmask(SIG_SETMASK, &previous, nil) }
            var id = pthread_t()
            let status = unsafe pthread_create(
                &id, nil,
                { own in
                    guard let own = unsafe own else { return nil }
                    let body = unsafe Unmanaged<Body>.fromOpaque(own).takeRetainedValue()
                    body.run()
                    body.end()
                    return nil
                }, own.toOpaque())
            guard status == 0 else {
                unsafe own.release()
                let reason = unsafe String(cString: strerror(status))
                throw StartError(
                    description: "the system gives this process no more threads (\(reason)); raise what limits them: "
                        + "ulimit -u, TasksMax= of a systemd unit, or pids of a container")
            }
            pthread_detach(id)
        }

        func atEnd(_ report: @escaping @Sendable () -> Void) {
            let hasEnded = waiting.withLock { waiting in
                waiting?.append(report)
                return waiting == nil
            }
            if hasEnded { report() }
        }

        private func end() {
            let reports = waiting.withLock { waiting in
                defer { waiting = nil }
                return waiting ?? []
            }
            for report in reports { report() }
        }
    }
}

/// A counting semaphore for threads that may block.
@safe
package final class ThreadSemaphore: Sendable {
    // POSIX requires a semaphore at a fixed address; its functions are safe from any thread.
    private nonisolated(unsafe) let semaphore: UnsafeMutablePointer<sem_t>

    package init() {
        unsafe semaphore = .allocate(capacity: 1)
        unsafe semaphore.initialize(to: sem_t())
        unsafe sem_init(semaphore, 0, 0)
    }

    deinit {
        unsafe sem_destroy(semaphore)
        unsafe semaphore.deallocate()
    }

    package func signal() { unsafe sem_post(semaphore) }

    package func wait() { while unsafe sem_wait(semaphore) != 0 {} }

    /// Waits at most for the duration; false when there was no signal.
    package func wait(upTo limit: Duration) -> Bool {
        // The timed waits of POSIX use a clock that may be set.
        let end = ContinuousClock.now + limit
        while unsafe sem_trywait(semaphore) != 0 {
            if .now >= end { return false }
            Thread.pause(.milliseconds(5))
        }
        return true
    }
}
