package import Postgres
package import Transport

/// What an operator says about an endpoint; nil leaves a setting as it is, or at its default.
package struct EndpointChange: Sendable {
    package var name: String?
    package var customerID: String?
    package var description: String?
    package var method: HTTPRequest.Method?
    package var url: String?
    package var headers: [HTTPHeader]?
    package var format: Endpoint.Format?
    package var eventType: String?
    package var changeType: String?
    package var timeout: Duration?
    package var connectTimeout: Duration?
    package var retrySchedule: [Duration]?
    package var maxInFlight: Int?

    package init() {}

    /// Throws an `OperationRefusal` that names the setting, what is wrong with it and what would be right.
    fileprivate func validate() throws {
        if let name {
            let isWord = name.utf8.allSatisfy { $0 > 0x20 && $0 != 0x7F } && !name.contains(":") && !name.contains("/")
            guard (1...128).contains(name.count), isWord, UniqueID(name) == nil else {
                throw OperationRefusal(
                    .invalid, "endpoint name \"\(name.prefix(64))\" is not valid",
                    hint: "Use 1 to 128 characters without white space, colon or slash, and not the form of a UUID")
            }
        }
        if let url {
            do { _ = try TargetURL(url) } catch {
                throw OperationRefusal(
                    .invalid, "the URL \(error)", hint: "Expected something like https://example.com/hook")
            }
        }
        if let retrySchedule,
            retrySchedule.count > 100 || retrySchedule.contains(where: { $0 < .zero || $0 > .seconds(30 * 86_400) })
        {
            throw OperationRefusal(
                .invalid, "the retry schedule has more than 100 waits, or one that is negative or over 30 days")
        }
        if let timeout, timeout < .milliseconds(100) || timeout > .seconds(300) {
            throw OperationRefusal(.invalid, "the timeout must be 100 ms to 5 min")
        }
        if let connectTimeout, connectTimeout < .milliseconds(100) || connectTimeout > .seconds(60) {
            throw OperationRefusal(.invalid, "the connect timeout must be 100 ms to 1 min")
        }
        if let maxInFlight, !(1...10_000).contains(maxInFlight) {
            throw OperationRefusal(.invalid, "the cap on requests in flight must be 1 to 10000")
        }
        for (value, what) in [(eventType, "event type"), (changeType, "change type"), (customerID, "customer")] {
            if let value, !(1...256).contains(value.count) {
                throw OperationRefusal(.invalid, "the \(what) must have 1 to 256 characters")
            }
        }
    }

    fileprivate var headersJSON: JSONText? {
        headers.map { headers in
            var text = [UInt8(ascii: "[")]
            for header in headers {
                if text.count > 1 { text.append(UInt8(ascii: ",")) }
                text += Array(#"{"name":"#.utf8)
                text.appendJSONString(header.name.utf8)
                text += Array(#","value":"#.utf8)
                text.appendJSONString(header.value.utf8)
                text.append(UInt8(ascii: "}"))
            }
            text.append(UInt8(ascii: "]"))
            return JSONText(text)
        }
    }
}

extension Connection {
    /// Creates an endpoint with its lane and its signing secret, and returns its id.
    package mutating func createEndpoint(
        _ change: EndpointChange, secret: SigningSecret, keyring: Keyring
    ) throws -> EndpointID {
        try change.validate()
        let name = change.name ?? ""
        let url = change.url ?? ""
        return try transaction { connection in
            let id: EndpointID
            do {
                let created = try connection.query(
                    """
                    INSERT INTO outbox.endpoint (name, customer_id, description, method, url, format, event_type, change_type)
                    VALUES (\(name), \(change.customerID ?? "*"), \(change.description), \(change.method?.rawValue ?? "POST"), \(url),
                            \(change.format?.rawValue ?? "standard"), \(change.eventType ?? "*"), \(change.changeType ?? "*"))
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
            try connection.applyOptional(change, to: id)
            try connection.query("INSERT INTO outbox.lane (endpoint_id) VALUES (\(id))")
            let sealed = try keyring.seal(secret, for: id)
            try connection.query(
                "INSERT INTO outbox.secret (endpoint_id, key_id, sealed) VALUES (\(id), \(sealed.keyID), \(Bytes(sealed.bytes)))"
            )
            try connection.audit("endpoint.create", endpoint: id)
            return id
        }
    }

    /// Changes an endpoint; requests that are built from now on use the new settings.
    package mutating func updateEndpoint(_ id: EndpointID, _ change: EndpointChange) throws {
        try change.validate()
        try transaction { connection in
            do {
                try connection.query(
                    """
                    UPDATE outbox.endpoint
                       SET name = coalesce(\(change.name), name), customer_id = coalesce(\(change.customerID), customer_id),
                           description = coalesce(\(change.description), description), method = coalesce(\(change.method?.rawValue), method),
                           url = coalesce(\(change.url), url), format = coalesce(\(change.format?.rawValue), format),
                           event_type = coalesce(\(change.eventType), event_type), change_type = coalesce(\(change.changeType), change_type),
                           generation = generation + 1, updated_at = clock_timestamp()
                     WHERE id = \(id)
                    """)
            } catch let error as PostgresError where error.sqlState == "23505" {
                throw OperationRefusal(.conflict, "another endpoint of this customer has that name already")
            }
            try connection.applyOptional(change, to: id)
            try connection.audit("endpoint.update", endpoint: id)
        }
    }

    private mutating func applyOptional(_ change: EndpointChange, to id: EndpointID) throws {
        try query(
            """
            UPDATE outbox.endpoint
               SET headers = coalesce(\(change.headersJSON)::jsonb, headers), timeout = coalesce(\(change.timeout), timeout),
                   connect_timeout = coalesce(\(change.connectTimeout), connect_timeout),
                   retry_schedule = coalesce(\(change.retrySchedule), retry_schedule),
                   max_in_flight = coalesce(\(change.maxInFlight.map { Int32($0) }), max_in_flight)
             WHERE id = \(id)
            """)
    }

    /// Lets deliveries wait until a time, or until `resumeEndpoint`. Nothing is lost: new ones wait in the lane.
    package mutating func pauseEndpoint(_ id: EndpointID, until: Timestamp?, reason: String) throws {
        try transaction { connection in
            try connection.query(
                """
                UPDATE outbox.lane SET paused_until = \(until ?? .distantFuture), pause_reason = \(reason), paused_by = session_user
                 WHERE endpoint_id = \(id)
                """)
            try connection.audit("endpoint.pause", endpoint: id, reason: reason)
        }
    }

    /// Ends a pause, and a rest that the receiver asked for.
    package mutating func resumeEndpoint(_ id: EndpointID) throws {
        try transaction { connection in
            try connection.query(
                """
                UPDATE outbox.lane
                   SET paused_until = '-infinity', held_until = '-infinity', pause_reason = NULL, paused_by = NULL
                 WHERE endpoint_id = \(id)
                """)
            try connection.audit("endpoint.resume", endpoint: id)
        }
    }

    /// Routes no new events to it and sends nothing; what waits stays.
    package mutating func disableEndpoint(_ id: EndpointID, reason: String?) throws {
        try transaction { connection in
            try connection.query(
                """
                UPDATE outbox.endpoint
                   SET disabled_at = coalesce(disabled_at, clock_timestamp()), disabled_reason = \(reason ?? "disabled by an operator"),
                       generation = generation + 1, updated_at = clock_timestamp()
                 WHERE id = \(id)
                """)
            try connection.audit("endpoint.disable", endpoint: id, reason: reason)
        }
    }

    /// Undoes `disableEndpoint`; what waited goes out.
    package mutating func enableEndpoint(_ id: EndpointID) throws {
        try transaction { connection in
            try connection.query(
                """
                UPDATE outbox.endpoint
                   SET disabled_at = NULL, disabled_reason = NULL, generation = generation + 1, updated_at = clock_timestamp()
                 WHERE id = \(id)
                """)
            try connection.audit("endpoint.enable", endpoint: id)
        }
    }

    /// How many deliveries wait for the endpoint.
    package mutating func waitingCount(_ id: EndpointID) throws -> Int {
        try query("SELECT count(*) FROM outbox.delivery WHERE endpoint_id = \(id)").first { row throws(PostgresError) in
            try row[0]
        } ?? 0
    }

    /// Deletes an endpoint. What waits for it is cancelled, and stays visible as such; so does its history.
    package mutating func deleteEndpoint(_ id: EndpointID, reason: String?) throws {
        try transaction { connection in
            try connection.query("SELECT FROM outbox.lane WHERE endpoint_id = \(id) FOR UPDATE")
            try connection.query(
                """
                UPDATE outbox.endpoint
                   SET deleted_at = clock_timestamp(), generation = generation + 1, updated_at = clock_timestamp() WHERE id = \(id)
                """)
            try connection.query("DELETE FROM outbox.secret WHERE endpoint_id = \(id)")
            try connection.query(
                """
                WITH gone AS (DELETE FROM outbox.delivery WHERE endpoint_id = \(id) RETURNING *)
                INSERT INTO outbox.dead_letter (event_id, endpoint_id, event_at, reason, attempts, status, error_class, error, fingerprint)
                SELECT event_id, endpoint_id, event_at, 'cancelled', attempts, last_status, last_error_class, 'the endpoint was deleted', 'cancelled'
                  FROM gone ON CONFLICT DO NOTHING
                """)
            try connection.audit("endpoint.delete", endpoint: id, reason: reason)
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
    package mutating func listEndpoints(_ id: EndpointID? = nil) throws -> Listing {
        try listing(
            """
            SELECT n.id, n.name, n.customer_id, h.state, h.state_reason, h.paused_until, n.method,
                   regexp_replace(regexp_replace(n.url, '([?&][^=&]*)=[^&]*', '\\1=***', 'g'), '([?&])[^=&]+(?=&|$)', '\\1***', 'g') AS url, n.format, n.event_type, n.change_type,
                   n.description, extract(epoch FROM n.timeout)::float8 AS timeout_seconds,
                   extract(epoch FROM n.connect_timeout)::float8 AS connect_timeout_seconds,
                   ARRAY(SELECT extract(epoch FROM wait)::float8 FROM unnest(n.retry_schedule) WITH ORDINALITY w(wait, place) ORDER BY place)
                       AS retry_schedule_seconds,
                   n.max_in_flight,
                   (SELECT coalesce(json_agg(json_build_object('name', x ->> 'name', 'value',
                           CASE WHEN x ->> 'name' ~* '(auth|token|secret|key|cookie|password|signature)' THEN '***' ELSE x ->> 'value' END)
                           ORDER BY place), '[]') FROM jsonb_array_elements(n.headers) WITH ORDINALITY y(x, place)) AS headers,
                   h.waiting, h.dead_letters, n.generation, n.created_at, n.updated_at
              FROM outbox.endpoint n JOIN outbox.endpoint_health h ON h.endpoint_id = n.id
             WHERE n.deleted_at IS NULL AND (\(id) IS NULL OR n.id = \(id))
             ORDER BY n.customer_id, n.name
            """)
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
