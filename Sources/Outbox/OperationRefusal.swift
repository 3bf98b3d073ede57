/// Why an operator's wish was not carried out: what, why, and what to do next.
package struct OperationRefusal: Error, Sendable, CustomStringConvertible {
    package enum Kind: String, Sendable {
        /// The thing does not exist.
        case notFound = "not_found"
        /// The thing is not in a state that allows it.
        case conflict = "state_conflict"
        /// The wish itself cannot be understood.
        case invalid = "invalid_value"
    }

    package let kind: Kind
    package let message: String
    package let hint: String?

    package init(_ kind: Kind, _ message: String, hint: String? = nil) {
        self.kind = kind
        self.message = message
        self.hint = hint
    }

    package var description: String { hint.map { "\(message). \($0)" } ?? message }
}
