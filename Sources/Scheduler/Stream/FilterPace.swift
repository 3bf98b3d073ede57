import Outbox

/// How many events a filter is asked about at a time, by what it took before. Pure: the time is
/// passed in.
struct FilterPace: Sendable {
    private enum Pace {
        /// So many events were too many; an eighth of them is tried next.
        case careful(size: Int)
        /// A single event took too long: it is looked at alone until then.
        case slow(until: ContinuousClock.Instant)
    }

    private var paces: [EndpointID: Pace] = [:]

    /// For how long one is called slow.
    static let memory = Duration.seconds(60)

    /// At most how many events to ask about at once; nil for an endpoint whose filter is slow.
    func size(for endpoint: EndpointID, at now: ContinuousClock.Instant) -> Int? {
        switch paces[endpoint] {
        case .slow(let end) where end > now: nil
        case .careful(let size): size
        case .slow, nil: .max
        }
    }

    /// Some were answered in time.
    mutating func wasQuick(_ endpoint: EndpointID, with count: Int) {
        guard case .careful(let size) = paces[endpoint], count >= size else { return }
        paces[endpoint] = size > 1000 ? nil : .careful(size: size * 2)
    }

    /// So many took too long; true when it is slow now.
    mutating func wasSlow(_ endpoint: EndpointID, with count: Int, at now: ContinuousClock.Instant) -> Bool {
        // Those that nobody asks any more.
        paces = paces.filter { if case .slow(let end) = $0.value { end > now } else { true } }
        paces[endpoint] = count > 1 ? .careful(size: max(1, count / 8)) : .slow(until: now + Self.memory)
        return count <= 1
    }
}
