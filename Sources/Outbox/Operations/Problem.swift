/// Why a use case was not carried out: a code that stays, what is wrong and why in the user's words, and what to do next.
///
/// It names no flag and no command: the command line adds its own (`next`), and so does whoever else calls.
package struct Problem: Error, Sendable, CustomStringConvertible {
    /// The codes, as the HTTP API has them (RFC 9457).
    package enum Code: String, Sendable, CaseIterable {
        case notFound = "not_found"

        // The state does not allow it.
        case nameTaken = "name_taken"
        case ambiguousName = "ambiguous_name"
        case stateConflict = "state_conflict"
        case deliveriesWaiting = "deliveries_waiting"

        // What was asked for is not valid.
        case invalidValue = "invalid_value"
        case malformedJSON = "malformed_json"
        case unknownMember = "unknown_member"
        case endpointURLNotAllowed = "endpoint_url_not_allowed"
        case headerInvalid = "header_invalid"
        case templateInvalid = "template_invalid"
        case filterInvalid = "filter_invalid"
        case secretInvalid = "secret_invalid"
        case maskedValue = "masked_value"
        case credentialsBoundToOrigin = "credentials_bound_to_origin"
        case filterRequired = "filter_required"
    }

    package let code: Code
    package let message: String
    /// What to do, in words.
    package let hint: String?
    /// The use case that shows more, or puts it right.
    package let next: UseCase?

    package init(_ code: Code, _ message: String, hint: String? = nil, next: UseCase? = nil) {
        (self.code, self.message, self.hint, self.next) = (code, message, hint, next)
    }

    package var description: String { hint.map { "\(message). \($0)" } ?? message }
}

/// A use case by the one name that it has: `endpoint.update` is `outboxctl endpoint update`, and an action of the audit log.
package struct UseCase: Sendable, Equatable {
    package let name: String
    /// What it is about, such as the endpoint's name.
    package let arguments: [String]

    package init(_ name: String, _ arguments: String...) { (self.name, self.arguments) = (name, arguments) }

    static func delivery(_ verb: String, _ delivery: DeliveryID) -> UseCase {
        UseCase(verb, "\(delivery.event.id)", "\(delivery.endpoint)")
    }
}
