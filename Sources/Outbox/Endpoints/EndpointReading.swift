import Bytewise
import FoundationEssentials
package import Postgres
import StandardWebhooks
import Templates
import Transport

extension Connection {
    /// These endpoints as a worker would use them, or all of them.
    package mutating func endpoints(_ ids: [EndpointID]? = nil, keyring: Keyring) throws -> [Endpoint] {
        try inOneSnapshot { try $0.readEndpoints(ids, keyring: keyring) }
    }

    /// One endpoint as a worker would use it.
    package mutating func endpoint(_ id: EndpointID, keyring: Keyring) throws -> Endpoint {
        guard let endpoint = try endpoints([id], keyring: keyring).first else {
            throw Problem(.notFound, "endpoint \(id) not found")
        }
        return endpoint
    }

    /// Reads settings and secrets in one snapshot: a credential must never be paired with a URL
    /// that it was not given for.
    mutating func inOneSnapshot<Value>(_ body: (inout Connection) throws -> Value) throws -> Value {
        try transaction { connection in
            try connection.query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            return try body(&connection)
        }
    }

    /// Refuses an endpoint that was just written when no request could be made from it: its
    /// deliveries would only wait. Secrets that cannot be read here may be readable by the workers,
    /// which have all keys.
    mutating func checkUsable(_ id: EndpointID, keyring: Keyring) throws {
        guard let stored = try readStored([id], keyring: keyring).first, stored.defect == nil else { return }
        if let defect = stored.endpoint().defect {
            throw Problem(.invalidValue, "the endpoint could not be called: \(defect)")
        }
    }

    mutating func readEndpoints(_ ids: [EndpointID]?, keyring: Keyring) throws -> [Endpoint] {
        try readStored(ids, keyring: keyring).map { $0.endpoint() }
    }

    private mutating func readStored(_ ids: [EndpointID]?, keyring: Keyring) throws -> [StoredEndpoint] {
        let secrets = try readSecrets(ids, keyring: keyring)
        let isAsked: SQL = ids.map { "n.id = ANY (\($0))" } ?? "true"
        return try query(
            """
            SELECT c.id, c.name, c.customer_id, c.event_types::json, c.change_types::json, c.ordered, c.document::json,
                   \(raw: "\(EndpointState.columns)")
              FROM outbox.endpoint_document c JOIN outbox.endpoint n ON n.id = c.id JOIN outbox.lane l ON l.endpoint_id = n.id
             WHERE n.deleted_at IS NULL AND \(isAsked)
             ORDER BY n.name, n.id
            """
        ).map { row throws(PostgresError) in
            let id: EndpointID = try row[0]
            var stored = StoredEndpoint(
                id: id, configuration: EndpointConfiguration(name: try row[1], url: ""),
                opened: secrets[id] ?? OpenedSecrets(),
                state: try EndpointState(row, from: 7))
            let document: JSONText = try row[6]
            // The customer first: even when nothing else can be read, the endpoint gets no other
            // customer's events.
            stored.configuration.customerID = try row[2]
            stored.configuration.isOrdered = try row[5]
            let (eventTypes, changeTypes): (JSONText, JSONText) = (try row[3], try row[4])
            // A value that cannot be read closes this endpoint and no other.
            do {
                stored.configuration.eventTypes = []
                stored.configuration.eventTypes = try Array(stored: eventTypes)
                stored.configuration.changeTypes = try Array(stored: changeTypes)
                stored.configuration = try EndpointConfiguration(json: document.bytes)
                try stored.configuration.fill(from: stored.opened.credentials)
            } catch let refusal as Keyring.KeyError {
                stored.defect = stored.opened.defect ?? refusal.description
            } catch {
                stored.defect = stored.opened.defect ?? "its settings cannot be read: \(error)"
            }
            return stored
        }
    }

    /// An endpoint's configuration; its secrets stay `EndpointSecret.kept`.
    package mutating func configuration(of id: EndpointID) throws -> EndpointConfiguration {
        guard let configuration = try configurations(of: [id]).first else {
            throw Problem(.notFound, "endpoint \(id) not found")
        }
        return configuration
    }

    /// The configurations of these endpoints, or of all, by customer and name; their secrets stay
    /// `EndpointSecret.kept`.
    package mutating func configurations(of ids: [EndpointID]? = nil) throws -> [EndpointConfiguration] {
        let isAsked: SQL = ids.map { "c.id = ANY (\($0))" } ?? "true"
        return try query(
            """
            SELECT c.document::json FROM outbox.endpoint_document c
             WHERE c.deleted_at IS NULL AND \(isAsked) ORDER BY c.customer_id, c.name
            """
        ).all(JSONText.self).map { try EndpointConfiguration(json: $0.bytes) }
    }

    /// The endpoint with exactly this name; nil when there is none.
    package mutating func endpointID(named name: String, of customer: String) throws -> EndpointID? {
        try query(
            "SELECT id FROM outbox.endpoint WHERE customer_id = \(customer) AND name = \(name) AND deleted_at IS NULL"
        )
        .first { row throws(PostgresError) in try row[0] }
    }

    /// Finds an endpoint by its name or id.
    package mutating func endpointID(_ nameOrID: String) throws -> EndpointID {
        if let id = UniqueID(nameOrID) {
            let exists = try query("SELECT FROM outbox.endpoint WHERE id = \(id) AND deleted_at IS NULL").count == 1
            if exists { return EndpointID(rawValue: id) }
        }
        let found = try query("SELECT id FROM outbox.endpoint WHERE name = \(nameOrID) AND deleted_at IS NULL")
            .all(EndpointID.self)
        if found.count == 1 { return found[0] }
        if found.count > 1 {
            throw Problem(
                .ambiguousName, "\(found.count) endpoints are named \"\(nameOrID)\", one per customer",
                hint: "Use the id instead", next: UseCase("endpoint.list"))
        }
        let names = try query("SELECT name FROM outbox.endpoint WHERE deleted_at IS NULL")
            .all(String.self)
        let close = names.map { ($0, editDistance($0, nameOrID)) }.filter { $0.1 <= 2 }.min { $0.1 < $1.1 }?.0
        throw Problem(
            .notFound, "endpoint \"\(nameOrID.prefix(64))\" not found",
            hint: close.map { "Did you mean \"\($0)\"?" }, next: UseCase("endpoint.list"))
    }

    /// Endpoints with their settings and state. Possible secrets are masked: values of URL queries
    /// and of headers whose names suggest credentials.
    package mutating func listEndpoints(
        _ id: EndpointID? = nil, search: String? = nil, limit: Int = .max
    ) throws -> Listing {
        var conditions: [SQL] = ["n.deleted_at IS NULL"]
        if let id { conditions.append("n.id = \(id)") }
        if let search {
            conditions.append("position(lower(\(search)) IN lower(n.name || ' ' || coalesce(n.description, ''))) > 0")
        }
        // Deliveries are counted only for the endpoints that are shown.
        let ids = try query(
            "SELECT n.id FROM outbox.endpoint n WHERE \(conjunction(conditions)) ORDER BY n.customer_id, n.name LIMIT \(limit)"
        ).all(EndpointID.self)
        return try listing(
            """
            SELECT n.id, n.name, n.customer_id, h.state, h.state_reason, h.paused_from, h.paused_until, n.description,
                   c.event_types, c.change_types, n.filter,
                   c.url, n.url_parameters, n.method, n.format, n.template, n.template_kind, c.headers, c.authentication, c.tls, n.http2,
                   n.max_body_bytes, c.response_rules, c.timeout_seconds, c.connect_timeout_seconds, c.retry_schedule_seconds,
                   n.max_in_flight, n.max_concurrency, n.rates, n.ordered, n.on_dead,
                   h.failing_since, coalesce(w.waiting, 0) AS waiting, coalesce(x.dead_letters, 0) AS dead_letters, n.revision, n.created_at, n.updated_at
              FROM outbox.endpoint n JOIN outbox.endpoint_state h ON h.endpoint_id = n.id
              JOIN outbox.endpoint_document document ON document.id = n.id
             CROSS JOIN LATERAL jsonb_to_record(document.masked) AS c(
                   event_types jsonb, change_types jsonb, url text, headers jsonb, authentication jsonb, tls jsonb, response_rules jsonb, timeout_seconds numeric,
                   connect_timeout_seconds numeric, retry_schedule_seconds numeric[])
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
                    let opened = ValidSecret(try SigningSecret(bytes: bytes, scheme: scheme), until: secret.expiresAt)
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

/// An endpoint as read from the database, before it is interpreted.
private struct StoredEndpoint {
    let id: EndpointID
    var configuration: EndpointConfiguration
    let opened: OpenedSecrets
    let state: EndpointState
    var defect: String?

    init(id: EndpointID, configuration: EndpointConfiguration, opened: OpenedSecrets, state: EndpointState) {
        (self.id, self.configuration, self.opened, self.state) = (id, configuration, opened, state)
        // Without a signature any sender could have sent its requests.
        defect = opened.defect ?? (opened.signing.isEmpty ? "it has no secret to sign with; rotate it" : nil)
    }

    func endpoint() -> Endpoint {
        Endpoint(id, configuration, signingSecrets: opened.signing, defect: defect, known: KnownState(state))
    }
}

private struct OpenedSecrets {
    var signing: [ValidSecret] = []
    var credentials = Credentials()
    var defect: String?
}

extension EndpointConfiguration {
    /// Fills in the secrets.
    fileprivate mutating func fill(from stored: Credentials) throws {
        let credentials = try stored.given(for: origins)
        // Without them a request would identify another sender, or none.
        let missing = Keyring.KeyError(
            description: "its credentials are missing or are not those of its settings; give them again")
        if authentication.kind != .none {
            guard let secret = credentials.authentication else { throw missing }
            authentication.secret = .text(secret)
        }
        if tls.clientKey != nil {
            guard let key = credentials.clientKey else { throw missing }
            tls.clientKey = .text(key)
        }
        var sealed = credentials.headers[...]
        for place in headers.indices where headers[place].isSecret {
            guard let next = sealed.popFirst(), next.name == ExactText(headers[place].name) else { throw missing }
            headers[place].value = .text(next.value.text)
        }
    }
}

/// A stored value that this binary does not know, perhaps of a later version: it is never mistaken
/// for another value.
struct UnknownValue: Error, CustomStringConvertible {
    let name: String
    let value: String
    var description: String { "this binary does not know the \(name) \"\(value.prefix(64))\"" }
}

/// The value with this stored form.
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
