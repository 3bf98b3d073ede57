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
        let body = endpoint.method == .get ? [] : Payload.body(of: event, format: endpoint.format)
        let timestamp = now.seconds
        var headers = [
            try HTTPHeader(own: "webhook-id", value: webhookID),
            try HTTPHeader(own: "webhook-timestamp", value: String(timestamp)),
        ]
        if !endpoint.secrets.isEmpty {
            let signatures = endpoint.secrets.map { $0.signature(id: webhookID, timestamp: timestamp, body: body) }
            headers.append(try HTTPHeader(own: "webhook-signature", value: signatures.joined(separator: " ")))
        }
        headers.append(try HTTPHeader(own: "Outbox-Transaction-Id", value: event.transactionID.description))
        headers.append(
            try HTTPHeader(own: "Outbox-Attempt", value: "\(number)/\(max(number, endpoint.retrySchedule.count + 1))"))
        headers.append(try HTTPHeader(own: "User-Agent", value: "outbox/\(outboxVersion)"))
        if let traceparent = event.traceparent {
            headers.append(try HTTPHeader(own: "traceparent", value: traceparent))
        }
        if endpoint.method != .get, !endpoint.headers.contains(where: { $0.name.lowercased() == "content-type" }) {
            headers.append(try HTTPHeader(own: "Content-Type", value: "application/json"))
        }
        headers += endpoint.headers
        return HTTPRequest(
            method: endpoint.method, url: endpoint.url, headers: headers, body: body, timeout: endpoint.timeout,
            connectTimeout: endpoint.connectTimeout)
    }
}
