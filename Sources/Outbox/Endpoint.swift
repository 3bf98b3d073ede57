package import Postgres
package import Transport

/// Who gets which events, and how.
package final class Endpoint: Sendable {
    /// How the body of a request is made from an event.
    package enum Format: String, Sendable, CaseIterable {
        /// `{"type","timestamp","data"}`, the shape that Standard Webhooks recommends.
        case standard
        /// The Citrix Cloud callback: eight members, Before/After as string-encoded JSON.
        case citrix
        /// The bytes of the event's `after`.
        case raw
    }

    package let id: EndpointID
    package let name: String
    /// The customer whose events it gets; `*` for all.
    package let customerID: String
    package let method: HTTPRequest.Method
    package let url: String
    package let headers: [HTTPHeader]
    /// The headers that are the same in every request, ours included.
    let constantHeaders: HTTPHeaders
    package let format: Format
    /// An exact event type; `*` for all.
    package let eventType: String
    /// An exact change type; `*` for all.
    package let changeType: String
    package let timeout: Duration
    package let connectTimeout: Duration
    /// The waits after the first, second ... failure; after the last one the delivery is a dead letter.
    package let retrySchedule: [Duration]
    /// How many requests one worker process has in flight to it at most.
    package let maxInFlight: Int
    /// The secrets to sign with, newest first.
    package let secrets: [SigningSecret]
    /// New events are not routed to a disabled endpoint; what waits stays.
    package let isDisabled: Bool
    /// Deliveries wait until then, because an operator said so.
    package let pausedUntil: Timestamp
    /// Deliveries wait until then, because the receiver said so.
    package let heldUntil: Timestamp
    /// Why it cannot be called from here, such as a secret that no key of ours opens. Its deliveries wait meanwhile.
    package let defect: String?

    package init(
        id: EndpointID, name: String, customerID: String = "*", method: HTTPRequest.Method = .post, url: String,
        headers: [HTTPHeader] = [], format: Format = .standard, eventType: String = "*", changeType: String = "*",
        timeout: Duration = .seconds(15), connectTimeout: Duration = .seconds(5), retrySchedule: [Duration] = [],
        maxInFlight: Int = 128, secrets: [SigningSecret] = [], isDisabled: Bool = false,
        pausedUntil: Timestamp = .distantPast, heldUntil: Timestamp = .distantPast, defect: String? = nil
    ) {
        self.id = id
        self.name = name
        self.customerID = customerID
        self.method = method
        self.url = url
        self.headers = headers
        constantHeaders = Self.constantHeaders(headers, hasBody: method != .get)
        self.format = format
        self.eventType = eventType
        self.changeType = changeType
        self.timeout = timeout
        self.connectTimeout = connectTimeout
        self.retrySchedule = retrySchedule
        self.maxInFlight = maxInFlight
        self.secrets = secrets
        self.isDisabled = isDisabled
        self.pausedUntil = pausedUntil
        self.heldUntil = heldUntil
        self.defect = defect
    }

    private static func constantHeaders(_ own: [HTTPHeader], hasBody: Bool) -> HTTPHeaders {
        var all: HTTPHeaders = [.userAgent]
        if hasBody, !own.contains(where: { $0.name.lowercased() == "content-type" }) { all.append(.jsonContent) }
        for header in own { all.append(header) }
        return all
    }

    /// The same endpoint, closed because an answer just said so; the database says it to everybody else.
    package func closed(by effect: EndpointEffect, at now: Timestamp) -> Endpoint {
        let (disabled, held) =
            switch effect {
            case .disable: (true, heldUntil)
            case .hold(let rest): (isDisabled, max(heldUntil, now + rest))
            }
        return Endpoint(
            id: id, name: name, customerID: customerID, method: method, url: url, headers: headers, format: format,
            eventType: eventType, changeType: changeType, timeout: timeout, connectTimeout: connectTimeout,
            retrySchedule: retrySchedule, maxInFlight: maxInFlight, secrets: secrets, isDisabled: disabled,
            pausedUntil: pausedUntil, heldUntil: held, defect: defect)
    }

    /// True when the event is one of its own. Only the whole value `*` is a wildcard.
    package func wants(_ event: Event) -> Bool {
        !isDisabled && (customerID == "*" || customerID == event.customerID)
            && (eventType == "*" || eventType == event.type) && (changeType == "*" || changeType == event.changeType)
    }

    /// True when a request may be sent at that time.
    package func isOpen(at now: Timestamp) -> Bool {
        !isDisabled && defect == nil && pausedUntil <= now && heldUntil <= now
    }
}

extension Connection {
    /// All endpoints that exist, with their secrets opened, and the generation that they belong to.
    package mutating func endpoints(keyring: Keyring) throws -> (generation: Int64, endpoints: [Endpoint]) {
        // The generation is read first: a change between the two statements is then read again, never missed.
        let generation: Int64 =
            try query("SELECT endpoint_generation FROM outbox.setting").first { row throws(PostgresError) in try row[0]
            } ?? 0
        let sealed = try query(
            """
            SELECT endpoint_id, key_id, sealed FROM outbox.secret
             WHERE expires_at > clock_timestamp() ORDER BY created_at DESC, id
            """
        ).map { row throws(PostgresError) in
            (endpoint: try row[0] as EndpointID, keyID: try row[1] as String, bytes: (try row[2] as Bytes).bytes)
        }
        let secrets = Dictionary(grouping: sealed, by: \.endpoint)
        let rows = try query(
            """
            SELECT n.id, n.name, n.customer_id, n.method, n.url, n.format, n.event_type, n.change_type,
                   (extract(epoch FROM n.timeout) * 1000)::bigint, (extract(epoch FROM n.connect_timeout) * 1000)::bigint,
                   ARRAY(SELECT (extract(epoch FROM wait) * 1000)::bigint FROM unnest(n.retry_schedule) WITH ORDINALITY w(wait, place) ORDER BY place),
                   n.max_in_flight, n.disabled_at IS NOT NULL, l.paused_until, l.held_until,
                   ARRAY(SELECT coalesce(h ->> 'name', '') FROM jsonb_array_elements(n.headers) WITH ORDINALITY x(h, place) ORDER BY place),
                   ARRAY(SELECT coalesce(h ->> 'value', '') FROM jsonb_array_elements(n.headers) WITH ORDINALITY x(h, place) ORDER BY place)
              FROM outbox.endpoint n JOIN outbox.lane l ON l.endpoint_id = n.id
             WHERE n.deleted_at IS NULL
             ORDER BY n.name, n.id
            """
        )
        let endpoints = try rows.map { row throws(PostgresError) in
            let id: EndpointID = try row[0]
            var defect: String?
            var opened: [SigningSecret] = []
            for secret in secrets[id] ?? [] {
                do { opened.append(try keyring.open(secret.bytes, keyID: secret.keyID, for: id)) } catch {
                    defect = String(describing: error)
                }
            }
            var headers: [HTTPHeader] = []
            for (name, value) in zip(try row[15] as [String], try row[16] as [String]) {
                do { headers.append(try HTTPHeader(name: name, value: value)) } catch {
                    defect = String(describing: error)
                }
            }
            return Endpoint(
                id: id, name: try row[1], customerID: try row[2],
                method: HTTPRequest.Method(rawValue: try row[3]) ?? .post, url: try row[4], headers: headers,
                format: Endpoint.Format(rawValue: try row[5]) ?? .standard, eventType: try row[6],
                changeType: try row[7],
                timeout: .milliseconds(try row[8] as Int64), connectTimeout: .milliseconds(try row[9] as Int64),
                retrySchedule: (try row[10] as [Int64]).map { .milliseconds($0) }, maxInFlight: try row[11],
                secrets: opened, isDisabled: try row[12], pausedUntil: try row[13], heldUntil: try row[14],
                defect: defect)
        }
        return (generation, endpoints)
    }
}
