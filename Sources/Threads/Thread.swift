import Glibc

/// An operating-system thread for blocking calls into C. Signals stay with the process's other threads.
@safe
package struct Thread: Sendable {
    private let id: pthread_t

    /// Starts a thread that runs the closure; it must be joined.
    ///
    /// - Parameter name: what `top -H`, `perf` and debuggers show; Linux keeps its first 15 bytes.
    package init(_ name: String, _ body: @escaping @Sendable () -> Void) {
        id = Thread.start {
            // Only a convenience for whoever looks: a system without it is no reason to fail.
            let descriptor = unsafe open("/proc/thread-self/comm", O_WRONLY | O_CLOEXEC)
            if descriptor >= 0 {
                unsafe _ = write(descriptor, name, min(name.utf8.count, 15))
                close(descriptor)
            }
            body()
        }
    }

    /// Starts a thread that frees itself when the closure returns.
    package static func detach(_ body: @escaping @Sendable () -> Void) {
        pthread_detach(start(body))
    }

    /// Waits until the closure has returned.
    package func join() {
        pthread_join(id, nil)
    }

    /// Blocks the calling thread for so long.
    package static func pause(_ duration: Duration) {
        let (seconds, attoseconds) = duration.components
        var time = timespec(tv_sec: Int(seconds), tv_nsec: Int(attoseconds / 1_000_000_000))
        var left = timespec()
        while unsafe nanosleep(&time, &left) != 0, errno == EINTR { time = left }
    }

    private static func start(_ body: @escaping @Sendable () -> Void) -> pthread_t {
        let box = unsafe Unmanaged.passRetained(Body(run: body)).toOpaque()
        var all = sigset_t()
        var previous = sigset_t()
        unsafe sigfillset(&all)
        unsafe pthread_sigmask(SIG_SETMASK, &all, &previous)
        defer { unsafe pthread_sigmask(SIG_SETMASK, &previous, nil) }
        var id = pthread_t()
        let status = unsafe pthread_create(
            &id, nil,
            { box in
                guard let box = unsafe box else { return nil }
                unsafe Unmanaged<Body>.fromOpaque(box).takeRetainedValue().run()
                return nil
            }, box)
        precondition(status == 0, "the system has no thread left (error \(status))")
        return id
    }

    private final class Body: Sendable {
        let run: @Sendable () -> Void
        init(run: @escaping @Sendable () -> Void) { self.run = run }
    }
}

/// A counting semaphore for threads that may block.
@safe
package final class ThreadSemaphore: Sendable {
    // POSIX wants the semaphore at an address that does not move; its functions are safe from any thread.
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
}
