/// Why a use case was not carried out: a stable code, the error and its cause in the user's words,
/// and the next step.
///
/// It names no flag and no command: the command line adds its own (`next`), and so does every other
/// caller.
package struct Problem: Error, Sendable, CustomStringConvertible {
    /// The codes, as in the HTTP API (RFC 9457).
    package enum Code: String, Sendable, CaseIterable {
        case notFound = "not_found"

        // The state does not allow it.
        case nameTaken = "name_taken"
        case ambiguousName = "ambiguous_name"
        case stateConflict = "state_conflict"
        case deliveriesWaiting = "deliveries_waiting"

        // The request is not valid.
        case invalidValue = "invalid_value"
        case malformedJSON = "malformed_json"
        case unknownMember = "unknown_member"
        case invalidCursor = "invalid_cursor"
        case reservedType = "reserved_type"
        case endpointURLNotAllowed = "endpoint_url_not_allowed"
        case headerInvalid = "header_invalid"
        case templateInvalid = "template_invalid"
        case filterInvalid = "filter_invalid"
        case secretInvalid = "secret_invalid"
        case maskedValue = "masked_value"
        case credentialsBoundToOrigin = "credentials_bound_to_origin"
        case filterRequired = "filter_required"

        // Two callers want to change the same.
        case etagMismatch = "etag_mismatch"
        case idempotencyMismatch = "idempotency_mismatch"
        case idempotencyInProgress = "idempotency_in_progress"
    }

    package let code: Code
    package let message: String
    /// The remedy, in words.
    package let hint: String?
    /// The use case that shows more, or fixes the problem.
    package let next: UseCase?
    /// What in the request is wrong.
    package let place: Place?
    /// What is wrong with it.
    package let fault: Fault

    package enum Fault: String, Sendable {
        case required, type, range, format, unknown
    }

    package enum Place: Sendable, Equatable {
        /// A member of the document, by its names and places from the outside in.
        case member([String])
        case parameter(String)
        case header(String)

        package static func member(_ name: String) -> Place { .member([name]) }
    }

    package init(
        _ code: Code, _ message: String, hint: String? = nil, next: UseCase? = nil, at place: Place? = nil,
        _ fault: Fault = .range
    ) {
        (self.code, self.message, self.hint, self.next) = (code, message, hint, next)
        (self.place, self.fault) = (place, fault)
    }

    package var description: String { hint.map { "\(message). \($0)" } ?? message }
}

/// A use case by its single name: `endpoint.update` is `outboxctl endpoint update`, and an action
/// of the audit log.
package struct UseCase: Sendable, Equatable {
    package let name: String
    /// Its object, such as the endpoint's name.
    package let arguments: [String]

    package init(_ name: String, _ arguments: String...) { self.init(name, arguments: arguments) }

    package init(_ name: String, arguments: [String]) { (self.name, self.arguments) = (name, arguments) }

    static func delivery(_ verb: String, _ delivery: DeliveryID) -> UseCase {
        UseCase(verb, "\(delivery.event.id)", "\(delivery.endpoint)")
    }
}
