package import Postgres
import StandardWebhooks
import Templates
package import Transport

/// The version that this build reports, in `User-Agent` and everywhere else.
public let outboxVersion = "0.1.0"

/// Why the request for an event cannot be built: trying again would not help.
package struct RequestError: Error, Sendable, CustomStringConvertible {
    /// As in the attempt log: `template`, `too_large` or `render_error`.
    package let errorClass: String
    package let description: String

    init(_ error: Template.ValidationError, in what: String) {
        errorClass = "template"
        description = "\(what): \(error)"
    }

    init(_ error: HTTPHeader.ValidationError) {
        errorClass = "render_error"
        description = error.description
    }

    init(tooLarge size: Int, most: Int) {
        errorClass = "too_large"
        description = "the body has \(size) bytes, and the endpoint takes \(most)"
    }

    init(url: String) {
        errorClass = "render_error"
        description = "the URL \(url)"
    }
}

/// A request that delivers an event, and notes on how it was filled.
package struct DeliveryRequest: Sendable {
    package var request: HTTPRequest
    /// Parameters that had no value, or whose line breaks were removed.
    package var note: String?
}

extension HTTPRequest {
    /// The request that delivers one event to one endpoint for the n-th time.
    ///
    /// - Parameters:
    ///   - webhookID: constant across retries and replays, so that receivers can tell duplicates.
    ///   - now: the database's time; receivers refuse signatures whose timestamp is far from
    ///     theirs.
    ///   - token: the access token, for an endpoint that needs one.
    package static func delivery(
        of event: Event, to endpoint: Endpoint, number: Int, webhookID: String, at now: Timestamp, token: String? = nil
    ) throws(RequestError) -> DeliveryRequest {
        var builder = RequestBuilder(
            DeliveryInput(event: event, endpoint: endpoint, number: number, webhookID: webhookID, now: now))
        return try builder.build(token: token)
    }
}

/// The input of a request.
struct DeliveryInput {
    let event: Event
    let endpoint: Endpoint
    /// Which attempt it is, from 1.
    let number: Int
    let webhookID: String
    /// The database's time.
    let now: Timestamp
}

private struct RequestBuilder {
    private let input: DeliveryInput
    private var values: EventValues?
    private var missing: [String] = []
    private var cleaned: [String] = []

    private var event: Event { input.event }
    private var endpoint: Endpoint { input.endpoint }
    private var webhookID: String { input.webhookID }
    private var now: Timestamp { input.now }

    init(_ input: DeliveryInput) { self.input = input }

    mutating func build(token: String?) throws(RequestError) -> DeliveryRequest {
        let body = try body()
        if let most = endpoint.configuration.maxBodyBytes, body.count > most {
            throw RequestError(tooLarge: body.count, most: most)
        }
        let headers: HTTPHeaders
        do throws(HTTPHeader.ValidationError) { headers = try constantAndSigned(body, token: token) } catch {
            throw RequestError(error)
        }
        var request = HTTPRequest(
            method: endpoint.configuration.method, url: endpoint.configuration.url, headers: headers, body: body,
            timeout: endpoint.timeout, connectTimeout: endpoint.configuration.connectTimeout)
        request.tls = endpoint.tls
        request.party = endpoint.customerID
        request.affinity = endpoint.id.hashValue
        request.allowsHTTP2 = endpoint.configuration.allowsHTTP2
        request.keptBody += endpoint.responseBytes
        try fillHeaders(&request)
        if let template = endpoint.urlTemplate {
            request.url = String(decoding: try fill(template, "the URL"), as: UTF8.self)
            do throws(TargetURL.ValidationError) { _ = try TargetURL(request.url) } catch {
                throw RequestError(url: error.description)
            }
            // A receiver would resolve them as steps up the path, to a place that is not the
            // endpoint's.
            if dotSegments(request.url) > dotSegments(template.source) {
                throw RequestError(url: "has a value that is . or .. as a part of its path")
            }
        }
        return DeliveryRequest(request: request, note: note)
    }

    private mutating func body() throws(RequestError) -> [UInt8] {
        if endpoint.configuration.method == .get { return [] }
        guard endpoint.configuration.format == .template else {
            return event.body(endpoint.configuration.format, webhookID: webhookID)
        }
        guard let template = endpoint.configuration.template else {
            throw RequestError(Template.ValidationError(reason: "there is none"), in: "the template")
        }
        return try fill(template, "the template")
    }

    private func constantAndSigned(_ body: [UInt8], token: String?) throws(HTTPHeader.ValidationError) -> HTTPHeaders {
        let timestamp = now.seconds
        var headers = HTTPHeaders()
        headers.reserveCapacity(512 + endpoint.constantHeaders.count * 64)
        try headers.append(own: "webhook-id") { $0 += webhookID.utf8 }
        try headers.append(own: "webhook-timestamp") { $0.appendDecimal(timestamp) }
        if endpoint.signingSecrets.contains(where: { $0.expiresAt > now }) {
            try headers.append(own: "webhook-signature") { value in
                for valid in endpoint.signingSecrets where valid.expiresAt > now {
                    if value.last != UInt8(ascii: " ") { value.append(UInt8(ascii: " ")) }
                    value += valid.secret.signature(id: webhookID, timestamp: timestamp, body: body).utf8
                }
            }
        }
        try headers.append(own: "Outbox-Transaction-Id") { $0 += event.transactionID.text }
        try headers.append(own: "Outbox-Attempt") { value in
            value.appendDecimal(Int64(input.number))
            value.append(UInt8(ascii: "/"))
            value.appendDecimal(Int64(max(input.number, endpoint.retrySchedule.count + 1)))
        }
        if let traceparent = event.traceparent { try headers.append(own: "traceparent") { $0 += traceparent.utf8 } }
        if endpoint.configuration.format == .cloudeventsBinary {
            for (name, value) in Payload.cloudEventAttributes(of: event, webhookID: webhookID) {
                headers.append(try HTTPHeader(own: "ce-" + name, value: Payload.headerValue(value)))
            }
        }
        headers.append(endpoint.constantHeaders)
        if let token { headers.append(try HTTPHeader(bearer: token)) }
        return headers
    }

    /// Headers whose values have parameters. They are checked after filling, since they cannot be
    /// checked before.
    private mutating func fillHeaders(_ request: inout HTTPRequest) throws(RequestError) {
        for (name, template) in endpoint.headerTemplates {
            let bytes = try fill(template, "the header \(name)")
            do throws(HTTPHeader.ValidationError) {
                request.headers.append(try HTTPHeader(name: name, value: trimmed(bytes)))
            } catch { throw RequestError(error) }
        }
    }

    private func dotSegments(_ url: String) -> Int {
        url.prefix { $0 != "?" }.split(separator: "/").count { $0 == "." || $0 == ".." }
    }

    private mutating func fill(_ template: Template, _ what: String) throws(RequestError) -> [UInt8] {
        let values = values ?? EventValues(input)
        self.values = values
        do throws(Template.ValidationError) {
            let rendering = try template.render(values)
            missing += rendering.missing
            cleaned += rendering.cleaned
            return rendering.bytes
        } catch { throw RequestError(error, in: what) }
    }

    /// White space at the ends of a value is not part of the header.
    private func trimmed(_ bytes: [UInt8]) -> String {
        var bytes = bytes.drop { $0 == 0x20 || $0 == 0x09 }
        while let last = bytes.last, last == 0x20 || last == 0x09 { bytes.removeLast() }
        return String(decoding: bytes, as: UTF8.self)
    }

    private var note: String? {
        var notes: [String] = []
        if !missing.isEmpty { notes.append("no value for " + missing.map { "%\($0)%" }.joined(separator: ", ")) }
        if !cleaned.isEmpty {
            notes.append("line breaks removed from " + cleaned.map { "%\($0)%" }.joined(separator: ", "))
        }
        return notes.isEmpty ? nil : "note: " + notes.joined(separator: "; ")
    }
}

extension HTTPHeader {
    static let userAgent = constant("User-Agent", "outbox/\(outboxVersion)")

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
