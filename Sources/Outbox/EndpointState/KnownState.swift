package import Postgres
import Synchronization

/// What a response reported about its endpoint, on its way into the database.
package struct Said: Sendable {
    package var event: EndpointState.Event
    /// How many reports the endpoint had had by then (`KnownState`).
    package var times: Int

    package init(event: EndpointState.Event, times: Int) { (self.event, self.times) = (event, times) }

    /// Two reports, merged.
    package func merged(with other: Said) -> Said {
        Said(event: event.merged(with: other.event), times: max(times, other.times))
    }
}

/// An endpoint's state as this process knows it: the state last read from the database, and on top
/// of it the reports of responses that are not recorded yet. Whichever comes last, neither undoes
/// the other.
///
/// A report postpones requests. It never leaves an event out, because it may never be recorded.
package final class KnownState: Sendable {
    private struct Value {
        var state: EndpointState
        /// As last read from the database.
        var takesEvents: Bool
        /// The unrecorded reports, merged into one, and the time of the last of them.
        var said: (event: EndpointState.Event, at: Timestamp)?
        /// The number of reports.
        var times = 0

        init(_ state: EndpointState) { (self.state, takesEvents) = (state, !state.isDisabled) }
    }

    private let value: Mutex<Value>

    package init(_ state: EndpointState = EndpointState()) { value = Mutex(Value(state)) }

    /// False when new events are not for it: the database says that it is disabled.
    package var takesEvents: Bool { value.withLock(\.takesEvents) }

    /// Reads the state without copying it.
    func read<Result>(_ body: (borrowing EndpointState) -> Result) -> Result { value.withLock { body($0.state) } }

    /// Sets the state as read from the database.
    package func set(_ state: EndpointState) {
        value.withLock { value in
            (value.state, value.takesEvents) = (state, !state.isDisabled)
            if let said = value.said { value.state = state.after(said.event, at: said.at) ?? state }
        }
    }

    /// Notes an event that a response just reported.
    package func say(_ event: EndpointState.Event, at now: Timestamp) -> Said {
        value.withLock { value in
            value.state = value.state.after(event, at: now) ?? value.state
            value.said = (value.said?.event.merged(with: event) ?? event, now)
            value.times += 1
            return Said(event: event, times: value.times)
        }
    }

    /// The reports up to this count are in the database, or never will be. They hold here until the
    /// database is read.
    package func recorded(upTo times: Int) { value.withLock { if $0.times <= times { $0.said = nil } } }
}
