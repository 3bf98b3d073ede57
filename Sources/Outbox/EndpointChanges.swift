import FoundationEssentials
package import Postgres
import Templates
package import Transport

extension Connection {
    /// Creates an endpoint with its lane and its signing secret, and returns its id.
    ///
    /// - Parameter policy: where requests may go, to refuse early what can be refused early; nil leaves all of it to the
    ///   workers.
    package mutating func createEndpoint(
        _ change: EndpointChange, secret: SigningSecret, keyring: Keyring, policy: AddressPolicy? = nil
    ) throws -> EndpointID {
        try change.validate(policy)
        let name = change.name ?? ""
        let url = change.url ?? ""
        return try transaction { connection in
            let id: EndpointID
            do {
                let created = try connection.query(
                    """
                    INSERT INTO outbox.endpoint (name, customer_id, url) VALUES (\(name), \(change.customerID ?? "*"), \(url))
                    RETURNING id
                    """
                ).first { row throws(PostgresError) in try row[0] as EndpointID }
                guard let created else { throw OperationRefusal(.conflict, "the endpoint was not created") }
                id = created
            } catch let error as PostgresError where error.sqlState == "23505" {
                throw OperationRefusal(
                    .conflict, "an endpoint named \"\(name)\" exists already for this customer",
                    hint: "Choose another name, or change it with: outboxctl endpoint update \(name)")
            }
            try connection.requireKeys(keyring, of: id)
            try connection.query("INSERT INTO outbox.lane (endpoint_id) VALUES (\(id))")
            try connection.store(change, of: id, keyring: keyring)
            try connection.addSecret(secret, to: id, keyring: keyring)
            try connection.checkUsable(id, keyring: keyring)
            try connection.audit("endpoint.create", endpoint: id)
            return id
        }
    }

    /// Changes an endpoint; requests that are built from now on use the new settings.
    package mutating func updateEndpoint(
        _ id: EndpointID, _ change: EndpointChange, keyring: Keyring, policy: AddressPolicy? = nil
    ) throws {
        try change.validate(policy)
        try transaction { connection in
            try connection.lockLanes([id])
            let before = try connection.endpointSettings(id)
            do {
                try connection.query(
                    """
                    UPDATE outbox.endpoint
                       SET name = coalesce(\(change.name), name), customer_id = coalesce(\(change.customerID), customer_id),
                           url = coalesce(\(change.url), url), revision = revision + 1, updated_at = clock_timestamp()
                     WHERE id = \(id)
                    """)
            } catch let error as PostgresError where error.sqlState == "23505" {
                throw OperationRefusal(.conflict, "another endpoint of this customer has that name already")
            }
            try connection.store(change, of: id, keyring: keyring)
            try connection.checkUsable(id, keyring: keyring)
            try connection.auditChange("endpoint.update", endpoint: id, from: before)
        }
        if change.isOrdered == false { while try dissolveLines(of: id) > 0 {} }
        if change.onDead == .skip {
            var key = ""
            while let last = try releaseBlocked(of: id, after: key) { key = last }
        }
    }

    /// The endpoint's settings as the audit log may show them: secrets masked, certificates and credentials as marks that
    /// tell only whether they are others.
    private mutating func endpointSettings(_ id: EndpointID) throws -> JSONText {
        try query(
            """
            SELECT (to_jsonb(n) - ARRAY['id', 'created_at', 'updated_at', 'deleted_at', 'revision', 'changed_tx'] || jsonb_build_object(
                        'url', outbox.masked_url(n.url), 'url_query', md5(substr(n.url, nullif(strpos(n.url, '?'), 0))), 'headers', outbox.masked_headers(n.headers),
                        'ca_certificate', md5(n.ca_certificate), 'client_certificate', md5(n.client_certificate),
                        'credentials', (SELECT md5(s.sealed) FROM outbox.secret s
                                         WHERE s.endpoint_id = n.id AND s.kind = 'credentials')))::json
              FROM outbox.endpoint n WHERE n.id = \(id)
            """
        ).first { row throws(PostgresError) in try row[0] as JSONText } ?? JSONText("{}")
    }

    /// One audit row with what is different now: `{"setting": [before, after]}`.
    private mutating func auditChange(_ action: String, endpoint id: EndpointID, from before: JSONText) throws {
        let after = try endpointSettings(id)
        let changes = try query(
            """
            SELECT coalesce(jsonb_object_agg(key, jsonb_build_array(b.value, a.value)), '{}')::json
              FROM jsonb_each(\(before)::jsonb) b JOIN jsonb_each(\(after)::jsonb) a USING (key)
             WHERE a.value IS DISTINCT FROM b.value
            """
        ).first { row throws(PostgresError) in try row[0] as JSONText }
        try audit(action, endpoint: id, detail: changes ?? JSONText("{}"))
    }

    /// Writes what may be left out, and what is sealed.
    private mutating func store(_ change: EndpointChange, of id: EndpointID, keyring: Keyring) throws {
        func json(_ value: (some Encodable)?) throws -> JSONText? {
            try value.map { JSONText(Array(try JSONEncoder().encode($0))) }
        }
        try query(
            """
            UPDATE outbox.endpoint
               SET description = coalesce(\(change.description), description), method = coalesce(\(change.method?.rawValue), method),
                   format = coalesce(\(change.format?.rawValue), format), event_type = coalesce(\(change.eventType), event_type),
                   change_type = coalesce(\(change.changeType), change_type),
                   url_has_parameters = coalesce(\(change.urlHasParameters), url_has_parameters),
                   template = coalesce(\(change.template?.source), template),
                   template_kind = coalesce(\(change.template?.kind.stored), template_kind),
                   rules = rules || coalesce(\(try json(change.rules))::jsonb, '{}'),
                   authentication = coalesce(\(try json(change.authentication))::jsonb, authentication),
                   ca_certificate = nullif(coalesce(\(change.authorities), ca_certificate), ''),
                   client_certificate = nullif(coalesce(\(change.clientCertificate), client_certificate), ''),
                   allows_http2 = coalesce(\(change.allowsHTTP2), allows_http2),
                   most_bytes = nullif(coalesce(\(change.mostBytes.map { Int32($0) }), most_bytes), 0)
             WHERE id = \(id)
            """)
        try query(
            """
            UPDATE outbox.endpoint
               SET headers = coalesce(\(try change.headers.map { try StoredHeader.json($0) })::jsonb, headers),
                   timeout = coalesce(\(change.timeout), timeout),
                   connect_timeout = coalesce(\(change.connectTimeout), connect_timeout),
                   retry_schedule = coalesce(\(change.retrySchedule), retry_schedule),
                   max_in_flight = coalesce(\(change.maxInFlight.map { Int32($0) }), max_in_flight),
                   max_concurrency = nullif(coalesce(\(change.maxConcurrency.map { Int32($0) }), max_concurrency), 0),
                   rates = coalesce(\(change.rates.map { $0.map(\.description) }), rates),
                   on_dead = coalesce(\(change.onDead?.rawValue), on_dead)
             WHERE id = \(id)
            """)
        let isTemplated =
            try query(
                "SELECT FROM outbox.endpoint WHERE id = \(id) AND format = 'template' AND template IS NULL"
            ).count > 0
        if isTemplated {
            throw OperationRefusal(
                .invalid, "the format template needs a template",
                hint: "Give one with --template @file or --preset NAME")
        }
        if change.isOrdered != nil || change.onDead != nil { try storeOrder(change, of: id) }
        if change.changesCredentials || change.url != nil || change.authorities != nil {
            try storeCredentials(change, of: id, keyring: keyring)
        }
    }

    /// Where the endpoint's credentials are sent, as it is stored.
    private mutating func origins(of id: EndpointID) throws -> [String] {
        try query("SELECT url, authentication::json, ca_certificate FROM outbox.endpoint WHERE id = \(id)").map {
            row throws(PostgresError) in (try row[0] as String, try row[1] as JSONText, try row[2] as String?)
        }.flatMap { url, authentication, authorities in
            try JSONDecoder().decode(Authentication.self, from: Data(authentication.bytes)).origins(
                url: url, authorities: authorities)
        }
    }

    private mutating func storeCredentials(_ change: EndpointChange, of id: EndpointID, keyring: Keyring) throws {
        let known = try query(
            "SELECT key_id, sealed FROM outbox.secret WHERE endpoint_id = \(id) AND kind = 'credentials' FOR UPDATE"
        ).map { row throws(PostgresError) in (try row[0] as String, (try row[1] as Bytes).bytes) }
        var credentials = Credentials()
        if let (keyID, bytes) = known.first {
            credentials = try Credentials(try keyring.open(bytes, .credentials, keyID: keyID, for: id))
        }
        var changed = change.changed(credentials)
        changed.origins = try origins(of: id)
        if !credentials.isEmpty, credentials.origins != changed.origins, !change.replacesAll(of: credentials) {
            throw OperationRefusal(
                .conflict,
                "the endpoint's credentials were given for \(credentials.origins.joined(separator: " and ")), and are not sent anywhere else",
                hint:
                    "Give them again together with the new URL or authorities, or take them away with --auth none, --client-cert-file none or other headers"
            )
        }
        if changed.isIdentical(to: credentials) { return }
        try query("DELETE FROM outbox.secret WHERE endpoint_id = \(id) AND kind = 'credentials'")
        if changed.isEmpty { return }
        try requireKeys(keyring, of: id)
        let sealed = try changed.sealed(keyring, for: id)
        try query(
            """
            INSERT INTO outbox.secret (endpoint_id, kind, key_id, sealed)
            VALUES (\(id), 'credentials', \(sealed.keyID), \(Bytes(sealed.bytes)))
            """)
    }

    /// Lets deliveries wait from a time on (now), until a time or `resumeEndpoint`. Nothing is lost: new ones wait in the
    /// lane. A pause that was set before is replaced.
    ///
    /// - Parameter rate: how fast what waited goes out afterwards; nil for as fast as the endpoint's limits allow.
    package mutating func pauseEndpoint(
        _ id: EndpointID, from: Timestamp? = nil, until: Timestamp?, rate: RateLimit? = nil, reason: String
    ) throws {
        if let from, let until, from >= until {
            throw OperationRefusal(.invalid, "the pause ends before it begins", hint: "--from must be before --until")
        }
        try transaction { connection in
            let now: Timestamp =
                try connection.query("SELECT clock_timestamp()").first { row throws(PostgresError) in try row[0] }
                ?? .distantPast
            if let until, until <= now {
                throw OperationRefusal(
                    .invalid, "the pause would be over already: it ends at \(until), and it is \(now) in the database",
                    hint: "Give --until a time that is to come, such as +30m, or leave it out")
            }
            try connection.change(
                id, by: .pause(from: from ?? .distantPast, until: until ?? .distantFuture, drainRate: rate))
            try connection.query(
                "UPDATE outbox.lane SET pause_reason = \(reason), paused_by = session_user WHERE endpoint_id = \(id)")
            try connection.audit(
                "endpoint.pause", endpoint: id, reason: reason,
                detail: ["from": from?.description, "until": until?.description, "rate": rate?.description])
        }
    }

    /// Ends a pause, also one that was only announced, and a rest that the receiver asked for.
    ///
    /// - Parameter rate: how fast what waited goes out; nil for as fast as the endpoint's limits allow.
    package mutating func resumeEndpoint(_ id: EndpointID, rate: RateLimit? = nil) throws {
        try transaction { connection in
            try connection.change(id, by: .resume(drainRate: rate))
            try connection.query(
                "UPDATE outbox.lane SET pause_reason = NULL, paused_by = NULL WHERE endpoint_id = \(id)")
            try connection.audit("endpoint.resume", endpoint: id, detail: ["rate": rate?.description])
        }
    }

    /// Routes no new events to it and sends nothing; what waits stays. One that is disabled already stays so since then, and only gets
    /// another reason, when one is given.
    package mutating func disableEndpoint(_ id: EndpointID, reason: String?) throws {
        try transaction { connection in
            if let (before, after) = try connection.change(id, by: .disable(reason: reason)), before != after {
                try connection.audit("endpoint.disable", endpoint: id, reason: reason)
            }
        }
    }

    /// Undoes `disableEndpoint`; what waited goes out. Of one that is not disabled nothing changes.
    package mutating func enableEndpoint(_ id: EndpointID) throws {
        try transaction { connection in
            if let (before, after) = try connection.change(id, by: .enable), before != after {
                try connection.audit("endpoint.enable", endpoint: id)
            }
        }
    }

    /// How many deliveries wait for the endpoint.
    package mutating func waitingCount(_ id: EndpointID) throws -> Int {
        try query(
            """
            SELECT (SELECT count(*) FROM outbox.delivery WHERE endpoint_id = \(id))
                 + (SELECT count(*) FROM outbox.unrouted WHERE endpoint_id = \(id))
            """
        ).first { row throws(PostgresError) in
            try row[0]
        } ?? 0
    }

    /// Deletes an endpoint. What waits for it is cancelled, and stays visible as such; so does its history.
    package mutating func deleteEndpoint(_ id: EndpointID, reason: String?) throws {
        try transaction { connection in
            try connection.lockLanes([id])
            try connection.query(
                """
                UPDATE outbox.endpoint
                   SET deleted_at = clock_timestamp(), revision = revision + 1, updated_at = clock_timestamp() WHERE id = \(id)
                """)
            try connection.query("DELETE FROM outbox.secret WHERE endpoint_id = \(id)")
            try connection.audit("endpoint.delete", endpoint: id, reason: reason)
        }
        while try cancelDeleted(id) > 0 {}
    }

    /// Cancels some of what waits for a deleted endpoint, and returns how many. In steps, because whoever holds a lane's lock
    /// for long holds up the cut and the records of everybody; workers do the rest of a deletion that did not get to its end.
    mutating func cancelDeleted(_ id: EndpointID) throws -> Int {
        try transaction { connection in
            try connection.lockLanes([id])
            return try connection.query(
                """
                WITH gone AS (
                    DELETE FROM outbox.delivery
                     WHERE (event_id, endpoint_id, event_at) IN (
                           (SELECT event_id, endpoint_id, event_at FROM outbox.delivery WHERE endpoint_id = \(id) AND due_at < 'infinity' LIMIT 2000)
                           UNION (SELECT event_id, endpoint_id, event_at FROM outbox.delivery
                                   WHERE endpoint_id = \(id) AND ordering_key IS NOT NULL LIMIT 2000))
                    RETURNING *),
                unrouted AS (
                    DELETE FROM outbox.unrouted
                     WHERE (event_id, endpoint_id, event_at) IN (
                           SELECT event_id, endpoint_id, event_at FROM outbox.unrouted WHERE endpoint_id = \(id) LIMIT 2000)
                    RETURNING *),
                cancelled AS (
                    SELECT event_id, endpoint_id, event_at, attempts, last_status, last_error_class FROM gone
                    UNION ALL SELECT event_id, endpoint_id, event_at, 0, NULL, NULL FROM unrouted),
                parked AS (
                    INSERT INTO outbox.dead_letter (event_id, endpoint_id, event_at, reason, attempts, status, error_class, error, fingerprint)
                    SELECT event_id, endpoint_id, event_at, 'cancelled', attempts, last_status, last_error_class, 'the endpoint was deleted',
                           'cancelled' FROM cancelled ON CONFLICT DO NOTHING)
                SELECT count(*) FROM cancelled
                """
            ).first { row throws(PostgresError) in try row[0] } ?? 0
        }
    }
}
