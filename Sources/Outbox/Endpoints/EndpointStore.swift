import Bytewise
import FoundationEssentials
package import Postgres
package import StandardWebhooks
import Templates
package import Transport

extension Connection {
    /// Creates an endpoint with its lane and its signing secret, and returns its id.
    ///
    /// - Parameter policy: where requests may go, for the refusals that are possible early; nil
    ///   leaves all of them to the workers.
    package mutating func createEndpoint(
        _ configuration: EndpointConfiguration, secret: SigningSecret, keyring: Keyring, policy: AddressPolicy? = nil,
        by actor: Actor = .session
    ) throws -> EndpointID {
        try transaction { try $0.create(configuration, secret: secret, keyring: keyring, policy: policy, by: actor) }
    }

    /// In the caller's transaction.
    private mutating func create(
        _ configuration: EndpointConfiguration, secret: SigningSecret, keyring: Keyring, policy: AddressPolicy?,
        by actor: Actor
    ) throws -> EndpointID {
        let configuration = try configuration.resolved(from: nil)
        try configuration.validate(policy)
        try checkFilter(configuration.filter)
        let id = try insert(configuration)
        try requireKeys(keyring, of: id)
        try query("INSERT INTO outbox.lane (endpoint_id) VALUES (\(id))")
        try storeCredentials(of: configuration, before: nil, id, keyring: keyring)
        try addSecret(secret, to: id, keyring: keyring)
        try checkUsable(id, keyring: keyring)
        try audit("endpoint.create", endpoint: id, by: actor)
        return id
    }

    /// Creates each endpoint, or gives the existing endpoint of that customer and name the
    /// configuration: all of them or none. Returns for each whether it was created.
    ///
    /// A `Problem` names the endpoint that caused the refusal.
    ///
    /// - Parameter wanted: each customer and name once.
    package mutating func replaceEndpoints(
        _ wanted: [(configuration: EndpointConfiguration, secret: SigningSecret)], keyring: Keyring,
        policy: AddressPolicy? = nil, by actor: Actor = .session
    ) throws -> [Bool] {
        func named<Value>(_ one: EndpointConfiguration, _ body: () throws -> Value) throws -> Value {
            do { return try body() } catch let problem as Problem {
                throw Problem(
                    problem.code, "endpoint \"\(one.name)\": \(problem.message)", hint: problem.hint,
                    next: problem.next)
            }
        }
        for one in wanted { try named(one.configuration) { try one.configuration.validate(policy) } }
        let done = try transaction { connection in
            let known = try wanted.map {
                try connection.endpointID(named: $0.configuration.name, of: $0.configuration.customerID)
            }
            // In lock order, as in every session that locks several lanes.
            try connection.lockLanes(known.compactMap(\.self))
            return try zip(wanted, known).map { one, id in
                try named(one.configuration) {
                    guard let id else {
                        let id = try connection.create(
                            one.configuration, secret: one.secret, keyring: keyring, policy: policy, by: actor)
                        return (id, one.configuration, true)
                    }
                    let changed = try connection.change(id, keyring: keyring, policy: policy, by: actor) {
                        $0 = one.configuration
                    }
                    return (id, changed, false)
                }
            }
        }
        for (id, configuration, isNew) in done where !isNew { try settleOrder(of: id, configuration) }
        return done.map(\.2)
    }

    /// Changes an endpoint; requests that are built from now on use the new settings. An unchanged
    /// configuration is not written.
    ///
    /// - Parameters:
    ///   - revision: the one that the caller has seen, when nobody else may have changed it since.
    ///   - change: gets the current configuration, with secrets as `EndpointSecret.kept`; to
    ///     replace it, assign another one.
    package mutating func updateEndpoint(
        _ id: EndpointID, keyring: Keyring, policy: AddressPolicy? = nil, expecting revision: Int? = nil,
        by actor: Actor = .session, _ change: (inout EndpointConfiguration) throws -> Void
    ) throws {
        let changed = try transaction {
            try $0.change(id, keyring: keyring, policy: policy, expecting: revision, by: actor, change)
        }
        try settleOrder(of: id, changed)
    }

    /// In the caller's transaction; returns the configuration after the change.
    private mutating func change(
        _ id: EndpointID, keyring: Keyring, policy: AddressPolicy?, expecting revision: Int? = nil, by actor: Actor,
        _ change: (inout EndpointConfiguration) throws -> Void
    ) throws -> EndpointConfiguration {
        // The cut puts events in line under the same lock.
        try lockLanes([id])
        if let revision { try requireRevision(revision, of: id) }
        let before = try configuration(of: id)
        var changed = before
        try change(&changed)
        changed = try changed.resolved(from: before)
        try changed.validate(policy)
        if changed.filter != before.filter { try checkFilter(changed.filter) }
        let audited = try auditedConfiguration(of: id)
        let isOther = try update(id, changed)
        let isSealedAnew = try storeCredentials(of: changed, before: before, id, keyring: keyring)
        if isOther || isSealedAnew {
            try query(
                "UPDATE outbox.endpoint SET revision = revision + 1, updated_at = clock_timestamp() WHERE id = \(id)")
            try checkUsable(id, keyring: keyring)
            try auditChange("endpoint.update", endpoint: id, from: audited, by: actor)
        }
        return changed
    }

    /// Applies a change of the order to the deliveries that stand in line: in steps, after the
    /// change has been committed. It also finishes an earlier change that was interrupted before
    /// its last step.
    private mutating func settleOrder(of id: EndpointID, _ configuration: EndpointConfiguration) throws {
        if !configuration.isOrdered { while try dissolveLines(of: id) > 0 {} }
        if configuration.isOrdered, configuration.onDead == .skip {
            var key = ""
            while let last = try releaseBlocked(of: id, after: key) { key = last }
        }
    }

    // MARK: The row

    private mutating func insert(_ configuration: EndpointConfiguration) throws -> EndpointID {
        let columns = try configuration.columns
        do {
            let created = try query(
                """
                INSERT INTO outbox.endpoint (\(list(columns.map { "\(raw: $0.name)" })))
                VALUES (\(list(columns.map(\.value)))) RETURNING id
                """
            ).first(EndpointID.self)
            guard let created else { throw Problem(.stateConflict, "the endpoint was not created") }
            return created
        } catch let error as PostgresError where error.sqlState == "23505" {
            throw Problem(
                .nameTaken, "an endpoint named \"\(configuration.name)\" exists already for this customer",
                hint: "Choose another name, or change that one",
                next: UseCase("endpoint.update", configuration.name))
        }
    }

    /// False when the row is already the same.
    private mutating func update(_ id: EndpointID, _ configuration: EndpointConfiguration) throws -> Bool {
        let columns = try configuration.columns
        let names = list(columns.map { "\(raw: $0.name)" })
        let values = list(columns.map(\.value))
        do throws(PostgresError) {
            return try query(
                """
                UPDATE outbox.endpoint SET (\(names)) = ROW (\(values))
                 WHERE id = \(id) AND ROW (\(names)) IS DISTINCT FROM ROW (\(values))
                """
            ).affected == 1
        } catch {
            guard error.sqlState == "23505" else { throw error }
            throw Problem(.nameTaken, "another endpoint of this customer has that name already")
        }
    }

    // MARK: The audit

    /// The endpoint's configuration as the audit log may show it: certificates and secrets are
    /// marks that only tell whether the value has changed.
    private mutating func auditedConfiguration(of id: EndpointID) throws -> JSONText {
        try query(
            """
            SELECT (c.masked || jsonb_build_object(
                        'url_query', md5(substr(n.url, nullif(strpos(n.url, '?'), 0))),
                        'tls', jsonb_build_object('ca_certificates', md5(n.ca_certificates), 'client_certificate', md5(n.client_certificate)),
                        'credentials', (SELECT md5(s.sealed) FROM outbox.secret s
                                         WHERE s.endpoint_id = n.id AND s.kind = 'credentials')))::json
              FROM outbox.endpoint_document c JOIN outbox.endpoint n ON n.id = c.id WHERE n.id = \(id)
            """
        ).first(JSONText.self) ?? JSONText("{}")
    }

    /// One audit row with the differences: `{"setting": [before, after]}`.
    private mutating func auditChange(
        _ action: String, endpoint id: EndpointID, from before: JSONText, by actor: Actor
    ) throws {
        let after = try auditedConfiguration(of: id)
        let changes = try query(
            """
            SELECT coalesce(jsonb_object_agg(key, jsonb_build_array(b.value, a.value)), '{}')::json
              FROM jsonb_each(\(before)::jsonb) b JOIN jsonb_each(\(after)::jsonb) a USING (key)
             WHERE a.value IS DISTINCT FROM b.value
            """
        ).first(JSONText.self)
        try audit(action, endpoint: id, detail: changes ?? JSONText("{}"), by: actor)
    }

    // MARK: The sealed credentials

    /// Seals new secrets, and keeps those marked as kept; true when a secret was sealed again.
    @discardableResult
    private mutating func storeCredentials(
        of configuration: EndpointConfiguration, before: EndpointConfiguration?, _ id: EndpointID, keyring: Keyring
    ) throws -> Bool {
        // A change of other settings needs no key.
        if let before, configuration.hasSameSecrets(as: before) { return false }
        let known = try query(
            "SELECT key_id, sealed FROM outbox.secret WHERE endpoint_id = \(id) AND kind = 'credentials' FOR UPDATE"
        ).map { row throws(PostgresError) in (try row[0] as String, (try row[1] as Bytes).bytes) }
        var old: Credentials? = Credentials()
        if let (keyID, bytes) = known.first {
            do { old = try Credentials(try keyring.open(bytes, .credentials, keyID: keyID, for: id)) } catch {
                // What cannot be opened is no obstacle to credentials that are all new, or taken
                // away.
                if configuration.keepsSecrets { throw error }
                old = nil
            }
        }
        let changed = try configuration.credentials(keeping: old ?? Credentials(), of: before)
        if let old, changed.isIdentical(to: old) { return false }
        try query("DELETE FROM outbox.secret WHERE endpoint_id = \(id) AND kind = 'credentials'")
        if changed.isEmpty { return true }
        try requireKeys(keyring, of: id)
        let sealed = try changed.sealed(keyring, for: id)
        try query(
            """
            INSERT INTO outbox.secret (endpoint_id, kind, key_id, sealed)
            VALUES (\(id), 'credentials', \(sealed.keyID), \(Bytes(sealed.bytes)))
            """)
        return true
    }
}

/// Expressions separated by commas, as in lists of column names or values.
private func list(_ parts: [SQL]) -> SQL { parts.dropFirst().reduce(parts[0]) { "\($0), \($1)" } }

extension EndpointConfiguration {
    /// Its columns in `outbox.endpoint`, all of them.
    fileprivate var columns: [(name: String, value: SQL)] {
        get throws {
            func json(_ value: some Encodable) throws -> SQL { "\(JSONText(try encoded(value, .stored)))::jsonb" }
            return [
                ("name", "\(name)"), ("customer_id", "\(customerID)"), ("description", "\(description)"),
                ("event_types", "\(try eventTypes.stored)::jsonb"),
                ("change_types", "\(try changeTypes.stored)::jsonb"),
                ("filter", "\(filter)"),
                ("url", "\(url)"), ("url_parameters", "\(urlHasParameters)"), ("method", "\(method.rawValue)"),
                ("format", "\(format.rawValue)"), ("template", "\(template?.source)"),
                ("template_kind", "\(template?.kind.stored ?? "json")"), ("headers", try json(headers)),
                ("authentication", try json(authentication)), ("ca_certificates", "\(tls.caCertificates)"),
                ("client_certificate", "\(tls.clientCertificate)"), ("http2", "\(allowsHTTP2)"),
                ("max_body_bytes", "\(maxBodyBytes.map { Int32($0) })"), ("response_rules", try json(rules)),
                ("timeout", "\(timeout)"), ("connect_timeout", "\(connectTimeout)"),
                ("retry_schedule", "\(retrySchedule)"),
                ("max_in_flight", "\(Int32(maxInFlight))"), ("max_concurrency", "\(maxConcurrency.map { Int32($0) })"),
                ("rates", "\(rates.map(\.description))"), ("ordered", "\(isOrdered)"),
                ("on_dead", "\(onDead.rawValue)"),
            ]
        }
    }

    /// Where its credentials are sent.
    var origins: [String] { authentication.origins(url: url, authorities: tls.caCertificates) }

    /// This configuration with each placeholder (`***`) replaced by the stored value; a secret
    /// stays sealed.
    fileprivate func resolved(from stored: EndpointConfiguration?) throws -> EndpointConfiguration {
        func refusal(_ what: String) -> Problem {
            Problem(
                .maskedValue, "\(what) is ***, and nothing is stored that it could stand for", hint: "Give its value")
        }
        var resolved = self
        if let stored, url != stored.url, url == Masking.url(stored.url) { resolved.url = stored.url }
        if let url = authentication.tokenURL, let old = stored?.authentication.tokenURL, url == Masking.url(old) {
            resolved.authentication.tokenURL = old
        }
        let urls = [
            (resolved.url, stored?.url), (resolved.authentication.tokenURL ?? "", stored?.authentication.tokenURL),
        ]
        if urls.contains(where: { $0.0 != $0.1 && Masking.isMasked($0.0) }) { throw refusal("a value in a URL") }
        // A secret that was given as a token is not reused as a password.
        if authentication.secret == .kept,
            stored?.authentication.secret == nil || stored?.authentication.kind != authentication.kind
        {
            throw refusal("the authentication's secret")
        }
        if tls.clientKey == .kept, stored?.tls.clientKey == nil { throw refusal("the client's private key") }
        var known = HeaderValues(stored?.headers ?? []) { $0.value }
        for place in headers.indices {
            let (header, value) = (headers[place], known.next(for: headers[place]))
            guard header.value == .kept else { continue }
            guard let value else { throw refusal("the header \(header.name.prefix(64))") }
            resolved.headers[place].value = value
            // A caller that was not shown the value cannot send it to another origin.
            if !header.isSecret, let stored, stored.origins != resolved.origins { throw boundToOrigin(stored.origins) }
        }
        return resolved
    }

    /// True when no secret has to be sealed or removed.
    fileprivate func hasSameSecrets(as other: EndpointConfiguration) -> Bool {
        func secrets(_ one: EndpointConfiguration) -> [Header] { one.headers.filter(\.isSecret) }
        return origins == other.origins && authentication.secret == other.authentication.secret
            && tls.clientKey == other.tls.clientKey && secrets(self) == secrets(other)
    }

    /// True when a stored secret is to stay.
    fileprivate var keepsSecrets: Bool {
        authentication.secret == .kept || tls.clientKey == .kept
            || headers.contains { $0.isSecret && $0.value == .kept }
    }

    /// The credentials to be sealed.
    fileprivate func credentials(keeping old: Credentials, of before: EndpointConfiguration?) throws -> Credentials {
        var new = Credentials()
        func value(_ secret: EndpointSecret, old: String?) -> String? {
            if case .text(let text) = secret { return text }
            return old
        }
        new.authentication = authentication.secret.flatMap { value($0, old: old.authentication) }
        new.clientKey = tls.clientKey.flatMap { value($0, old: old.clientKey) }
        var sealed = old.headers[...]
        var known = HeaderValues(before?.headers ?? []) { $0.isSecret ? sealed.popFirst() : nil }
        for header in headers {
            let stored = known.next(for: header)
            guard header.isSecret else { continue }
            guard let text = value(header.value, old: stored?.value.text) else {
                throw Problem(
                    .maskedValue,
                    "the header \(header.name.prefix(64)) is ***, and nothing is stored that it could stand for",
                    hint: "Give its value")
            }
            new.headers.append(Credentials.SecretHeader(name: ExactText(header.name), value: ExactText(text)))
        }
        new.origins = origins
        if keepsSecrets, !old.isEmpty, old.origins != new.origins { throw boundToOrigin(old.origins) }
        return new
    }
}

private func boundToOrigin(_ origins: [String]) -> Problem {
    Problem(
        .credentialsBoundToOrigin,
        "the endpoint's credentials were given for \(origins.joined(separator: " and ")), and are not sent anywhere else",
        hint: "Give them again together with the new URL or authorities, or take authentication, client certificate "
            + "and the headers in question away")
}

/// Values of headers. Each value goes to the next header of the same name and the same secrecy, so
/// that a secret never takes the place of a shown value.
private struct HeaderValues<Value> {
    private struct Key: Hashable {
        let name: String
        let isSecret: Bool

        init(_ header: EndpointConfiguration.Header) { (name, isSecret) = (header.name.lowercased(), header.isSecret) }
    }

    private var values: [Key: ArraySlice<Value?>] = [:]

    init(_ headers: [EndpointConfiguration.Header], _ value: (EndpointConfiguration.Header) -> Value?) {
        for header in headers { values[Key(header), default: []].append(value(header)) }
    }

    /// Nil when no value is left.
    mutating func next(for header: EndpointConfiguration.Header) -> Value? {
        values[Key(header)]?.popFirst() ?? nil
    }
}
