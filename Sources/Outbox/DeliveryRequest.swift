package import Postgres
package import Transport

/// The version that this build reports, in `User-Agent` and everywhere else.
public let outboxVersion = "0.1.0"

extension HTTPRequest {
    /// The request that delivers one event to one endpoint for the n-th time (design.md 7.3).
    ///
    /// - Parameters:
    ///   - webhookID: constant across retries and replays, so that receivers can tell duplicates.
    ///   - now: the database's time; receivers refuse signatures whose timestamp is far from theirs.
    /// - Throws: an `HTTPHeader.Refusal` when something of the event cannot be put into a header.
    package static func delivery(
        of event: Event, to endpoint: Endpoint, number: Int, webhookID: String, at now: Timestamp
    ) throws(HTTPHeader.Refusal) -> HTTPRequest {
        let body = endpoint.method == .get ? [] : event.body(endpoint.format)
        let timestamp = now.seconds
        var headers = HTTPHeaders()
        headers.reserveCapacity(512 + endpoint.constantHeaders.count * 64)
        try headers.append(own: "webhook-id") { $0 += webhookID.utf8 }
        try headers.append(own: "webhook-timestamp") { $0.appendDecimal(timestamp) }
        if !endpoint.secrets.isEmpty {
            try headers.append(own: "webhook-signature") { value in
                for (index, secret) in endpoint.secrets.enumerated() {
                    if index > 0 { value.append(UInt8(ascii: " ")) }
                    value += secret.signature(id: webhookID, timestamp: timestamp, body: body).utf8
                }
            }
        }
        try headers.append(own: "Outbox-Transaction-Id") { $0 += event.transactionID.text }
        try headers.append(own: "Outbox-Attempt") { value in
            value.appendDecimal(Int64(number))
            value.append(UInt8(ascii: "/"))
            value.appendDecimal(Int64(max(number, endpoint.retrySchedule.count + 1)))
        }
        if let traceparent = event.traceparent { try headers.append(own: "traceparent") { $0 += traceparent.utf8 } }
        headers.append(endpoint.constantHeaders)
        return HTTPRequest(
            method: endpoint.method, url: endpoint.url, headers: headers, body: body, timeout: endpoint.timeout,
            connectTimeout: endpoint.connectTimeout)
    }
}

extension HTTPHeader {
    static let userAgent = constant("User-Agent", "outbox/\(outboxVersion)")
    static let jsonContent = constant("Content-Type", "application/json")

    private static func constant(_ name: String, _ value: String) -> HTTPHeader {
        do { return try HTTPHeader(own: name, value: value) } catch {
            preconditionFailure("a header of ours is not valid: \(error)")
        }
    }
}

extension [UInt8] {
    /// Appends the number's decimal digits.
    mutating func appendDecimal(_ number: Int64) {
        if number < 0 { append(UInt8(ascii: "-")) }
        var rest = number.magnitude
        let start = count
        repeat {
            append(UInt8(48 + rest % 10))
            rest /= 10
        } while rest > 0
        self[start...].reverse()
    }
}
