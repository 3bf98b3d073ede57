import Glibc
import Synchronization

/// A yes or no that tests and their receivers share.
package final class Flag: Sendable {
    private let value: Mutex<Bool>

    package init(_ value: Bool) { self.value = Mutex(value) }

    package var isSet: Bool {
        get { value.withLock { $0 } }
        set { value.withLock { $0 = newValue } }
    }

    /// Blocks the calling thread, which is a receiver's and not one of the test's.
    package func waitUntilCleared() { while isSet { usleep(2000) } }
}
