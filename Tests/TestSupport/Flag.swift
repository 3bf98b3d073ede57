import Synchronization

/// A yes or no that tests and their receivers share.
package final class Flag: Sendable {
    private let value: Mutex<Bool>

    package init(_ value: Bool) { self.value = Mutex(value) }

    package var isSet: Bool {
        get { value.withLock { $0 } }
        set { value.withLock { $0 = newValue } }
    }
}
