import Bytewise

/// Finds any number of values in one document: the members of a large object are read once, and
/// looked up afterwards.
package final class JSONFinder {
    private let document: JSON
    /// The members of large objects, by the place where the objects begin.
    private var members: [Int: [ExactText: JSON]] = [:]

    package init(_ document: JSON) { self.document = document }

    /// The value at a path of member names and array places, as `JSON.value(at:)` finds it; nil
    /// when there is none.
    package func value(at path: some Collection<String>) -> JSON? {
        var value = document
        for step in path {
            let child: JSON? =
                if case .object(let own) = value.kind, own.count > 8 {
                    index(of: own, at: value.source.startIndex)[ExactText(step)]
                } else {
                    value.value(at: CollectionOfOne(step))
                }
            guard let child else { return nil }
            value = child
        }
        return value
    }

    private func index(of own: [(name: ExactText, value: JSON)], at place: Int) -> [ExactText: JSON] {
        if let known = members[place] { return known }
        // Of members with the same name the last one counts.
        let index = Dictionary(own.map { ($0.name, $0.value) }, uniquingKeysWith: { $1 })
        members[place] = index
        return index
    }
}
