package import Postgres
import Synchronization

/// What a response says of its endpoint, on its way into the database.
package struct Said: Sendable {
    package var event: EndpointState.Event
    /// How often anything had been said of the endpoint then (`KnownState`).
    package var times: Int

    package init(event: EndpointState.Event, times: Int) { (self.event, self.times) = (event, times) }

    /// Both of two.
    package func merged(with other: Said) -> Said {
        Said(event: event.merged(with: other.event), times: max(times, other.times))
    }
}

/// An endpoint's state as this process knows it: what the database said last and, on top of that, what responses have said here and
/// nobody has recorded yet. Whichever of the two comes last, neither undoes the other.
///
/// What was said here puts requests off. It never leaves an event out: it may not come to be recorded.
package final class KnownState: Sendable {
    private struct Value {
        var state: EndpointState
        /// What the database said.
        var takesEvents: Bool
        /// What is not recorded, in one, and the time of the last of it.
        var said: (event: EndpointState.Event, at: Timestamp)?
        /// How often something was said.
        var times = 0

        init(_ state: EndpointState) { (self.state, takesEvents) = (state, !state.isDisabled) }
    }

    private let value: Mutex<Value>

    package init(_ state: EndpointState = EndpointState()) { value = Mutex(Value(state)) }

    /// False where new events are not for it: the database says that it is disabled.
    package var takesEvents: Bool { value.withLock(\.takesEvents) }

    /// Reads it without copying it.
    func read<Result>(_ body: (borrowing EndpointState) -> Result) -> Result { value.withLock { body($0.state) } }

    /// This is how it is in the database.
    package func set(_ state: EndpointState) {
        value.withLock { value in
            (value.state, value.takesEvents) = (state, !state.isDisabled)
            if let said = value.said { value.state = state.after(said.event, at: said.at) ?? state }
        }
    }

    /// A response just said so.
    package func say(_ event: EndpointState.Event, at now: Timestamp) -> Said {
        value.withLock { value in
            value.state = value.state.after(event, at: now) ?? value.state
            value.said = (value.said?.event.merged(with: event) ?? event, now)
            value.times += 1
            return Said(event: event, times: value.times)
        }
    }

    /// What was said until then is in the database, or will never be. It holds here until the database is asked.
    package func recorded(upTo times: Int) { value.withLock { if $0.times <= times { $0.said = nil } } }
}
