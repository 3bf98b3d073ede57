import Bytewise
import FoundationEssentials
package import Postgres
import Templates
import Transport

extension Connection {
    /// All endpoints as a worker would use them.
    mutating func allEndpoints(keyring: Keyring) throws -> [Endpoint] {
        try inOneSnapshot { try $0.readEndpoints(nil, keyring: keyring) }
    }

    /// One endpoint as a worker would use it.
    package mutating func endpoint(_ id: EndpointID, keyring: Keyring) throws -> Endpoint {
        guard let endpoint = try inOneSnapshot({ try $0.readEndpoints([id], keyring: keyring) }).first else {
            throw OperationRefusal(.notFound, "endpoint \(id) not found")
        }
        return endpoint
    }

    /// Settings and secrets belong together: a credential must not meet a URL that it was not given for.
    mutating func inOneSnapshot<Value>(_ body: (inout Connection) throws -> Value) throws -> Value {
        try transaction { connection in
            try connection.query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            return try body(&connection)
        }
    }

    /// Refuses what was just written when no request could be made from it: its deliveries would only wait.
    mutating func checkUsable(_ id: EndpointID, keyring: Keyring) throws {
        guard let endpoint = try readEndpoints([id], keyring: keyring).first, endpoint.settings.defect == nil else {
            return
        }
        if let defect = endpoint.defect {
            throw OperationRefusal(.invalid, "the endpoint could not be called: \(defect)")
        }
    }

    mutating func readEndpoints(_ ids: [EndpointID]?, keyring: Keyring) throws -> [Endpoint] {
        let secrets = try readSecrets(ids, keyring: keyring)
        let isAsked: SQL = ids.map { "n.id = ANY (\($0))" } ?? "true"
        return try query(
            """
            SELECT n.id, n.name, n.customer_id, n.method, n.url, n.url_has_parameters, n.headers::json, n.format,
                   n.template, n.template_kind, n.rules::json, n.authentication::json, n.ca_certificate, n.client_certificate,
                   n.allows_http2, n.most_bytes, n.event_type, n.change_type,
                   (extract(epoch FROM n.timeout) * 1000)::bigint, (extract(epoch FROM n.connect_timeout) * 1000)::bigint,
                   ARRAY(SELECT (extract(epoch FROM wait) * 1000)::bigint FROM unnest(n.retry_schedule) WITH ORDINALITY w(wait, place) ORDER BY place),
                   n.max_in_flight, n.max_concurrency, n.rates, n.ordered, \(raw: "\(EndpointState.columns)")
              FROM outbox.endpoint n JOIN outbox.lane l ON l.endpoint_id = n.id
             WHERE n.deleted_at IS NULL AND \(isAsked)
             ORDER BY n.name, n.id
            """
        ).map { row throws(PostgresError) in
            let id: EndpointID = try row[0]
            let state = try EndpointState(row, from: 25)
            var settings = Endpoint.Settings(id: id, name: try row[1], url: "")
            // What cannot be read closes this endpoint and no other.
            do { try settings.read(row, opened: secrets[id] ?? OpenedSecrets()) } catch let refusal as Keyring.Refusal {
                settings.defect = settings.defect ?? refusal.description
            } catch {
                settings.defect = settings.defect ?? "its settings cannot be read: \(error)"
            }
            return Endpoint(settings, known: KnownState(state))
        }
    }

    /// Finds an endpoint by its name or id.
    package mutating func endpointID(_ nameOrID: String) throws -> EndpointID {
        if let id = UniqueID(nameOrID) {
            let exists = try query("SELECT FROM outbox.endpoint WHERE id = \(id) AND deleted_at IS NULL").count == 1
            if exists { return EndpointID(rawValue: id) }
        }
        let found = try query("SELECT id FROM outbox.endpoint WHERE name = \(nameOrID) AND deleted_at IS NULL")
            .map { row throws(PostgresError) in try row[0] as EndpointID }
        if found.count == 1 { return found[0] }
        if found.count > 1 {
            throw OperationRefusal(
                .conflict, "\(found.count) endpoints are named \"\(nameOrID)\", one per customer",
                hint: "Use the id instead. See: outboxctl endpoint list")
        }
        let names = try query("SELECT name FROM outbox.endpoint WHERE deleted_at IS NULL")
            .map { row throws(PostgresError) in try row[0] as String }
        let close = names.map { ($0, editDistance($0, nameOrID)) }.filter { $0.1 <= 2 }.min { $0.1 < $1.1 }?.0
        throw OperationRefusal(
            .notFound, "endpoint \"\(nameOrID.prefix(64))\" not found",
            hint: (close.map { "Did you mean \"\($0)\"? " } ?? "") + "See: outboxctl endpoint list")
    }

    /// Endpoints with their settings and state. Values that may be secret are masked: those of URL queries and of headers
    /// whose names sound like credentials.
    package mutating func listEndpoints(
        _ id: EndpointID? = nil, search: String? = nil, limit: Int = .max
    ) throws -> Listing {
        var conditions: [SQL] = ["n.deleted_at IS NULL"]
        if let id { conditions.append("n.id = \(id)") }
        if let search {
            conditions.append("position(lower(\(search)) IN lower(n.name || ' ' || coalesce(n.description, ''))) > 0")
        }
        // Counted is only for those that are shown.
        let ids = try query(
            "SELECT n.id FROM outbox.endpoint n WHERE \(conjunction(conditions)) ORDER BY n.customer_id, n.name LIMIT \(limit)"
        ).map { row throws(PostgresError) in try row[0] as EndpointID }
        return try listing(
            """
            SELECT n.id, n.name, n.customer_id, h.state, h.state_reason, h.paused_from, h.paused_until, n.method,
                   outbox.masked_url(n.url) AS url, n.format, n.event_type, n.change_type,
                   n.description, extract(epoch FROM n.timeout)::float8 AS timeout_seconds,
                   extract(epoch FROM n.connect_timeout)::float8 AS connect_timeout_seconds,
                   ARRAY(SELECT extract(epoch FROM wait)::float8 FROM unnest(n.retry_schedule) WITH ORDINALITY w(wait, place) ORDER BY place)
                       AS retry_schedule_seconds,
                   n.max_in_flight,
                   outbox.masked_headers(n.headers) AS headers,
                   n.template, n.template_kind, n.url_has_parameters, n.rules::text AS rules,
                   n.authentication ->> 'kind' AS authentication, n.allows_http2, n.most_bytes, n.max_concurrency, n.rates, n.ordered, n.on_dead,
                   n.ca_certificate IS NOT NULL AS has_ca_certificate, n.client_certificate IS NOT NULL AS has_client_certificate,
                   h.failing_since, coalesce(w.waiting, 0) AS waiting, coalesce(x.dead_letters, 0) AS dead_letters, n.revision, n.created_at, n.updated_at
              FROM outbox.endpoint n JOIN outbox.endpoint_state h ON h.endpoint_id = n.id
              LEFT JOIN (SELECT endpoint_id, count(*) AS waiting FROM outbox.delivery WHERE endpoint_id = ANY (\(ids)) GROUP BY endpoint_id) w
                ON w.endpoint_id = n.id
              LEFT JOIN (SELECT endpoint_id, count(*) AS dead_letters FROM outbox.dead_letter
                          WHERE endpoint_id = ANY (\(ids)) AND reason <> 'cancelled' GROUP BY endpoint_id) x ON x.endpoint_id = n.id
             WHERE n.id = ANY (\(ids)) ORDER BY n.customer_id, n.name
            """)
    }

    private mutating func readSecrets(_ ids: [EndpointID]?, keyring: Keyring) throws -> [EndpointID: OpenedSecrets] {
        let isAsked: SQL = ids.map { "endpoint_id = ANY (\($0))" } ?? "true"
        let sealed = try query(
            """
            SELECT endpoint_id, kind, key_id, sealed, expires_at FROM outbox.secret
             WHERE expires_at > clock_timestamp() AND \(isAsked)
             ORDER BY kind, created_at DESC, id
            """
        ).map { row throws(PostgresError) in
            (
                endpoint: try row[0] as EndpointID, kind: try row[1] as String, keyID: try row[2] as String,
                bytes: (try row[3] as Bytes).bytes, expiresAt: try row[4] as Timestamp
            )
        }
        var secrets: [EndpointID: OpenedSecrets] = [:]
        for secret in sealed {
            do {
                if let scheme = SigningSecret.Scheme(rawValue: secret.kind) {
                    let bytes = try keyring.open(
                        secret.bytes, .signing(scheme), keyID: secret.keyID, for: secret.endpoint)
                    var opened = try SigningSecret(bytes: bytes, scheme: scheme)
                    opened.expiresAt = secret.expiresAt
                    secrets[secret.endpoint, default: OpenedSecrets()].signing.append(opened)
                } else {
                    let bytes = try keyring.open(secret.bytes, .credentials, keyID: secret.keyID, for: secret.endpoint)
                    secrets[secret.endpoint, default: OpenedSecrets()].credentials = try Credentials(bytes)
                }
            } catch {
                secrets[secret.endpoint, default: OpenedSecrets()].defect = String(describing: error)
            }
        }
        return secrets
    }
}

extension Endpoint.Settings {
    /// Reads a row of `readEndpoints`, but for its first two columns.
    fileprivate mutating func read(_ row: Row, opened: OpenedSecrets) throws {
        secrets = opened.signing
        defect = opened.defect
        // Whose events it takes, and whether it takes any, first: whatever else cannot be read, it gets nobody else's.
        customerID = ExactText(try row[2])
        eventType = ExactText(try row[16])
        changeType = ExactText(try row[17])
        isOrdered = try row[24]
        method = try known(HTTPRequest.Method.self, try row[3], "method")
        url = try row[4]
        urlHasParameters = try row[5]
        format = try known(Endpoint.Format.self, try row[7], "format")
        tls = HTTPRequest.TLS(authorities: try row[12] as String?, certificate: try row[13] as String?)
        allowsHTTP2 = try row[14]
        mostBytes = try row[15] as Int?
        timeout = .milliseconds(try row[18] as Int64)
        connectTimeout = .milliseconds(try row[19] as Int64)
        retrySchedule = (try row[20] as [Int64]).map { .milliseconds($0) }
        maxInFlight = try row[21]
        maxConcurrency = try row[22] as Int?
        rates = try (try row[23] as [String]).map { try RateLimit($0) }
        if let text = try row[8] as String? {
            template = try Template(text, kind: try Template.Kind(stored: try row[9]))
        }
        rules = try JSONDecoder().decode(AnswerRules.self, from: Data((try row[10] as JSONText).bytes))
        authentication = try JSONDecoder().decode(Authentication.self, from: Data((try row[11] as JSONText).bytes))
        credentials = try opened.credentials.given(
            for: authentication.origins(url: url, authorities: tls.authorities?.text))
        tls.key = credentials.clientKey.map { ExactText($0) }
        headers = try StoredHeader.settings(try row[6] as JSONText, secrets: credentials.headers)
    }
}

private struct OpenedSecrets {
    var signing: [SigningSecret] = []
    var credentials = Credentials()
    var defect: String?
}

/// A header as it is stored: the value of a secret one is sealed elsewhere.
struct StoredHeader: Codable {
    let name: String
    var value: String?
    var secret: Bool?

    static func settings(_ json: JSONText, secrets: [String]) throws -> [Endpoint.HeaderSetting] {
        var secrets = secrets[...]
        return try JSONDecoder().decode([StoredHeader].self, from: Data(json.bytes)).map { header in
            let isSecret = header.secret ?? false
            return Endpoint.HeaderSetting(
                name: header.name, value: isSecret ? secrets.popFirst() ?? "" : header.value ?? "", isSecret: isSecret)
        }
    }

    static func json(_ headers: [Endpoint.HeaderSetting]) throws -> JSONText {
        JSONText(
            Array(
                try JSONEncoder().encode(
                    headers.map {
                        StoredHeader(
                            name: $0.name, value: $0.isSecret ? nil : $0.value, secret: $0.isSecret ? true : nil)
                    })))
    }
}

/// A stored value that this binary does not know, of a later one perhaps: never taken for another.
struct UnknownValue: Error, CustomStringConvertible {
    let name: String
    let value: String
    var description: String { "this binary does not know the \(name) \"\(value.prefix(64))\"" }
}

/// The value that is stored so.
func known<Value: RawRepresentable<String>>(
    _: Value.Type, _ stored: String, _ name: String
) throws(UnknownValue) -> Value {
    guard let value = Value(rawValue: stored) else { throw UnknownValue(name: name, value: stored) }
    return value
}

extension Template.Kind {
    init(stored: String) throws(UnknownValue) {
        switch stored {
        case "json": self = .json
        case "xml": self = .xml
        case "text": self = .text
        default: throw UnknownValue(name: "template kind", value: stored)
        }
    }

    package var stored: String {
        switch self {
        case .json: "json"
        case .xml: "xml"
        case .text, .header, .url: "text"
        }
    }
}
