/// Who performs an action, as written in the audit log: `<kind>:<name>`, as in `token:ana@ops` or
/// `service:host/4711`.
package struct Actor: Sendable, Equatable {
    package enum Kind: String, Sendable {
        /// The holder of a token's key, in the HTTP API.
        case token
        /// A customer in the portal.
        case portal
        /// A system that calls one of the integrations.
        case integration
        /// A worker, without a request by an operator.
        case service
    }

    /// Nil for the role of the database session, which the database names itself
    /// (`database:<role>`).
    let text: String?

    /// The role of the database session.
    package static let session = Actor(text: nil)

    private init(text: String?) { self.text = text }

    package init(_ kind: Kind, _ name: String) { text = "\(kind.rawValue):\(name)" }
}
