/// The existing parameters (docs/destinations.md, "Parameters"), by their first component. Code
/// that gives them values has one for each (`EventValues`), or does not compile.
package enum ParameterName: String, CaseIterable, Sendable {
    // Members of the event and of the delivery.
    case eventID = "event_id"
    case webhookID = "webhook_id"
    case type
    case changeType = "change_type"
    case customerID = "customer_id"
    case transactionID = "transaction_id"
    case identity
    case occurredAt = "occurred_at"
    case createdAt = "created_at"
    case date, timestamp
    case orderingKey = "ordering_key"
    case endpoint
    case endpointNumber = "endpoint_number"
    case attempt
    case eventProperties = "event_properties"

    // Data of the event, whole or by a path.
    case before, after

    // The client's data, by a path.
    case context, headers

    // The client's data, from the event's or the evaluation's context (Safous).
    case username
    case internalAddress = "internal_addr"
    case userAgent = "user_agent"
    case remoteIP = "remote_ip"
    case thumbprint = "cert_thumbprint"
    case thumbprintUpper = "cert_thumbprint_upper"
    case thumbprint256 = "cert_thumbprint_256"
    case thumbprint256Upper = "cert_thumbprint_256_upper"
    case certificateName = "cert_name"
    case certificateAlternativeName = "cert_alt_name"
    case deviceID = "device_id"
    case groups
    case groupNames = "group_names"

    /// How a path may continue after it.
    private enum Rest { case none, optional, required }

    private var rest: Rest {
        switch self {
        case .before, .after: .optional
        case .context, .headers: .required
        default: .none
        }
    }

    /// The parameter that a path names. Throws an error that says what is wrong with it.
    static func named(_ path: [String], written: String) throws(Template.ValidationError) -> ParameterName {
        guard let first = path.first else { throw Template.ValidationError(reason: "%\(written)% names nothing") }
        guard let name = ParameterName(rawValue: first), path.count == 1 || name.rest != .none else {
            throw Template.ValidationError(reason: unknown(first, written))
        }
        if name.rest == .required, path.count == 1 {
            throw Template.ValidationError(reason: "%\(first)% needs a name, as in %\(first).name%")
        }
        return name
    }

    private static func unknown(_ first: String, _ written: String) -> String {
        // The unknown word: a known name has no parts, and there is nothing to suggest.
        let close = allCases.map(\.rawValue).filter { $0 != first }.map { ($0, editDistance($0, first)) }
            .filter { $0.1 <= 2 }.min { $0.1 < $1.1 }?.0
        let suggestion =
            ParameterName(rawValue: first) != nil
            ? "%\(first)% has no parts. " : close.map { "Did you mean %\($0)%? " } ?? ""
        return "there is no parameter %\(written.prefix(64))%. \(suggestion)Write %% for a percent sign"
    }
}

/// How many letters must be changed, added or removed to turn one word into the other
/// (Levenshtein).
package func editDistance(_ left: String, _ right: String) -> Int {
    let (left, right) = (Array(left), Array(right))
    var row = Array(0...right.count)
    for (i, a) in left.enumerated() {
        var diagonal = row[0]
        row[0] = i + 1
        for (j, b) in right.enumerated() {
            (diagonal, row[j + 1]) = (row[j + 1], min(row[j + 1] + 1, row[j] + 1, diagonal + (a == b ? 0 : 1)))
        }
    }
    return row[right.count]
}
