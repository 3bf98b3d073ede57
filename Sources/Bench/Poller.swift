import CEpoll
import Glibc

/// Waits until one of many descriptors can be read: one epoll instance, to be waited on by one
/// thread and woken by any.
final class Poller: Sendable {
    private static let maxAtOnce = 256

    private let epoll: Int32
    private let alarm: Int32

    init() {
        epoll = epoll_shim_create()
        alarm = epoll_shim_wakeup_descriptor()
        precondition(epoll >= 0 && alarm >= 0, "the process has no descriptor left to start with")
        watch(alarm)
    }

    deinit {
        close(alarm)
        close(epoll)
    }

    /// Watches a descriptor until it is closed.
    func watch(_ descriptor: Int32) {
        // A refused descriptor is never ready, and its requests time out.
        _ = epoll_shim_watch(epoll, descriptor)
    }

    /// Ends the current wait or the next one.
    func wakeUp() {
        // Full means that a wake-up is already pending.
        _ = eventfd_write(alarm, 1)
    }

    /// Waits until a descriptor is ready, another thread wakes it or the time is up, and passes on
    /// the ready descriptors.
    ///
    /// - Parameter milliseconds: -1 to wait without end.
    func wait(upTo milliseconds: Int32, _ ready: (Int32) -> Void) {
        withUnsafeTemporaryAllocation(of: Int32.self, capacity: Self.maxAtOnce) { descriptors in
            let count = epoll_shim_wait(epoll, descriptors.baseAddress, Int32(Self.maxAtOnce), milliseconds)
            for index in 0..<max(0, Int(count)) {
                if descriptors[index] == alarm {
                    var value: eventfd_t = 0
                    _ = eventfd_read(alarm, &value)
                } else {
                    ready(descriptors[index])
                }
            }
        }
    }
}
