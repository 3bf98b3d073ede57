/// The parameters that exist (docs/destinations.md, "Parameters").
package enum ParameterNames {
    /// Members of the event and of the delivery.
    package static let plain = [
        "event_id", "webhook_id", "type", "change_type", "customer_id", "transaction_id", "identity", "occurred_at",
        "created_at", "date", "timestamp", "ordering_key", "endpoint", "endpoint_number", "attempt", "event_properties",
    ]

    /// What the client said of itself, from the event's or the evaluation's context (Safous).
    package static let context = [
        "username", "internal_addr", "user_agent", "remote_ip", "cert_thumbprint", "cert_thumbprint_upper",
        "cert_thumbprint_256", "cert_thumbprint_256_upper", "cert_name", "cert_alt_name", "device_id", "groups",
        "group_names",
    ]

    /// Names that begin a path.
    package static let roots = ["before", "after", "context", "headers"]

    /// What is wrong with a parameter; nil when it exists.
    static func problem(with path: [String], written: String) -> String? {
        guard let first = path.first else { return "%\(written)% names nothing" }
        if path.count == 1 ? plain.contains(first) || context.contains(first) : false { return nil }
        if first == "before" || first == "after" { return nil }
        if first == "context" || first == "headers" {
            return path.count > 1 ? nil : "%\(first)% needs a name, as in %\(first).name%"
        }
        // The whole written name first: a wrong root is more often a wrong word than a wrong path.
        let known = plain + context + roots
        let close = known.map { ($0, editDistance($0, first)) }.filter { $0.1 <= 2 }.min { $0.1 < $1.1 }?.0
        return "there is no parameter %\(written.prefix(64))%. "
            + (close.map { "Did you mean %\($0)\(path.count > 1 ? ".…" : "")%? " } ?? "")
            + "Write %% for a percent sign"
    }
}

/// How many letters must be changed, added or removed to make one word of the other (Levenshtein).
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
