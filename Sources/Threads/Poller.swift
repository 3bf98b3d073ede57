import CEpoll
import Glibc

/// Waits for many descriptors at once: one epoll instance, to be waited on by one thread and woken by any.
@safe
package final class Poller: Sendable {
    /// What a descriptor is watched for, or ready for.
    package struct Readiness: OptionSet, Sendable {
        package let rawValue: Int32
        package init(rawValue: Int32) { self.rawValue = rawValue }
        package static let read = Readiness(rawValue: 1)
        package static let write = Readiness(rawValue: 2)
        package static let error = Readiness(rawValue: 4)
    }

    private static let mostAtOnce = 256

    private let epoll: Int32
    private let alarm: Int32
    // Only the waiting thread touches them.
    private nonisolated(unsafe) let descriptors: UnsafeMutablePointer<Int32>
    private nonisolated(unsafe) let readiness: UnsafeMutablePointer<Int32>

    package init() {
        epoll = epoll_shim_create()
        alarm = epoll_shim_wakeup_descriptor()
        precondition(epoll >= 0 && alarm >= 0, "the process has no descriptor left to start with")
        unsafe descriptors = .allocate(capacity: Self.mostAtOnce)
        unsafe readiness = .allocate(capacity: Self.mostAtOnce)
        _ = epoll_shim_watch(epoll, alarm, Readiness.read.rawValue)
    }

    deinit {
        close(alarm)
        close(epoll)
        unsafe descriptors.deallocate()
        unsafe readiness.deallocate()
    }

    /// Watches a descriptor for this and nothing else; false when the system refuses.
    @discardableResult
    package func watch(_ descriptor: Int32, for what: Readiness) -> Bool {
        epoll_shim_watch(epoll, descriptor, what.rawValue) == 0
    }

    /// Stops watching a descriptor; one that was closed was forgotten then.
    package func forget(_ descriptor: Int32) {
        epoll_shim_forget(epoll, descriptor)
    }

    /// Ends the wait under way or the next one.
    package func wakeUp() {
        // Full means that a wake-up is pending already.
        _ = eventfd_write(alarm, 1)
    }

    /// Waits until something is ready, somebody wakes it or the time is up, and hands over what is ready.
    ///
    /// - Parameter milliseconds: -1 to wait without end.
    package func wait(upTo milliseconds: Int32, _ ready: (Int32, Readiness) -> Void) {
        let count = unsafe epoll_shim_wait(epoll, descriptors, readiness, Int32(Self.mostAtOnce), milliseconds)
        var index = 0
        while index < count {
            let descriptor = unsafe descriptors[index]
            if descriptor == alarm {
                var value: eventfd_t = 0
                unsafe _ = eventfd_read(alarm, &value)
            } else {
                ready(descriptor, Readiness(rawValue: unsafe readiness[index]))
            }
            index += 1
        }
    }
}
