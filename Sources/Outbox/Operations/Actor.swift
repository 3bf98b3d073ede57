/// Who does something, as the audit log has it: `<kind>:<name>`, as in `token:ana@ops` or `service:host/4711`.
package struct Actor: Sendable, Equatable {
    package enum Kind: String, Sendable {
        /// Whoever has the key of a token of the HTTP API.
        case token
        /// A customer in the portal.
        case portal
        /// A system that calls one of the integrations.
        case integration
        /// A worker, of its own accord.
        case service
    }

    /// Nil for whoever has the database session, whom the database names itself (`database:<role>`).
    let text: String?

    /// The role of the database session.
    package static let session = Actor(text: nil)

    private init(text: String?) { self.text = text }

    package init(_ kind: Kind, _ name: String) { text = "\(kind.rawValue):\(name)" }
}
