public import Glibc
/// `Synchronization` as the thread sanitizer can follow it. The standard library's `Mutex` is a
/// futex in a library that is not instrumented, so each access under such a lock looks like a race.
/// This one is a pthread mutex, which the sanitizer knows. `scripts/sanitize` builds a copy of the
/// sources against it.
@_exported public import Synchronization

/// A value that one thread at a time has.
public struct Mutex<Value: ~Copyable>: ~Copyable, @unchecked Sendable {
    @usableFromInline final class Storage {
        @usableFromInline let lock = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
        @usableFromInline var value: Value

        @usableFromInline init(_ value: consuming sending Value) {
            self.value = value
            pthread_mutex_init(lock, nil)
        }

        deinit {
            pthread_mutex_destroy(lock)
            lock.deallocate()
        }
    }

    @usableFromInline let storage: Storage

    /// Guards this value.
    public init(_ value: consuming sending Value) { storage = Storage(value) }

    /// Runs the closure while no other one has the value.
    public borrowing func withLock<Result: ~Copyable, Failure: Error>(
        _ body: (inout sending Value) throws(Failure) -> sending Result
    ) throws(Failure) -> sending Result {
        pthread_mutex_lock(storage.lock)
        defer { pthread_mutex_unlock(storage.lock) }
        return try body(&storage.value)
    }
}
