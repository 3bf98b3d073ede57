package import Postgres

/// Endpoints as the HTTP API shows them: configuration, revision and state in one document.
extension Connection {
    /// Throws a `Problem` unless the endpoint has this revision.
    mutating func requireRevision(_ revision: Int, of id: EndpointID) throws {
        let current = try query("SELECT revision FROM outbox.endpoint WHERE id = \(id) AND deleted_at IS NULL").first(
            Int.self)
        guard let current else { throw Problem(.notFound, "endpoint \(id) not found") }
        if current != revision {
            throw Problem(
                .etagMismatch, "the endpoint was changed: its revision is \(current), and \(revision) was expected",
                hint: "Get it again, reapply your change, retry", at: .header("If-Match"))
        }
    }

    /// An endpoint as the HTTP API shows it: its configuration, and what became of it, as one
    /// object, with its revision.
    package mutating func endpointDocument(_ id: EndpointID) throws -> (json: String, revision: Int) {
        guard let document = try endpointDocuments([id]).first else {
            throw Problem(.notFound, "endpoint \(id) not found")
        }
        return document
    }

    /// Some endpoints as documents, by customer and name, and the last one where more follow.
    ///
    /// - Parameter after: only those behind this one; it may be gone meanwhile, but not for good.
    package mutating func endpointDocuments(
        search: String?, limit: Int, after: EndpointID?
    ) throws -> (documents: [String], next: EndpointID?) {
        var conditions: [SQL] = ["n.deleted_at IS NULL"]
        if let search {
            conditions.append("position(lower(\(search)) IN lower(n.name || ' ' || coalesce(n.description, ''))) > 0")
        }
        if let after {
            conditions.append(
                "(n.customer_id, n.name, n.id) > (SELECT a.customer_id, a.name, a.id FROM outbox.endpoint a WHERE a.id = \(after))"
            )
        }
        let ids = try query(
            "SELECT n.id FROM outbox.endpoint n WHERE \(conjunction(conditions)) ORDER BY n.customer_id, n.name, n.id LIMIT \(limit + 1)"
        ).all(EndpointID.self)
        let page = Array(ids.prefix(limit))
        return (try endpointDocuments(page).map(\.json), ids.count > limit ? page.last : nil)
    }

    /// In the order of the identities; those that are gone are left out.
    private mutating func endpointDocuments(_ ids: [EndpointID]) throws -> [(json: String, revision: Int)] {
        ids.isEmpty ? [] : try inOneSnapshot { try $0.readDocuments(ids) }
    }

    private mutating func readDocuments(_ ids: [EndpointID]) throws -> [(json: String, revision: Int)] {
        let configurations = try query(
            "SELECT c.id, c.document::json FROM outbox.endpoint_document c WHERE c.deleted_at IS NULL AND c.id = ANY (\(ids))"
        ).all(EndpointID.self, JSONText.self)
        let found = try listing(
            """
            SELECT n.id, n.revision, n.created_at, made.actor AS created_by, n.updated_at, changed.actor AS updated_by
              FROM unnest(\(ids)) WITH ORDINALITY AS k(id, place) JOIN outbox.endpoint n ON n.id = k.id
              LEFT JOIN LATERAL (SELECT a.actor FROM outbox.audit a WHERE a.object = 'endpoint/' || n.id ORDER BY a.at LIMIT 1) made ON true
              LEFT JOIN LATERAL (SELECT a.actor FROM outbox.audit a
                                  WHERE a.object = 'endpoint/' || n.id AND a.action IN ('endpoint.create', 'endpoint.update')
                                  ORDER BY a.at DESC LIMIT 1) changed ON true
             WHERE n.deleted_at IS NULL ORDER BY k.place
            """)
        let states = try listing(
            """
            SELECT h.state, h.state_reason AS reason, h.paused_by AS by, h.paused_from, h.paused_until, h.resume_rate, h.breaker, h.failing_since,
                   h.resting_until
              FROM unnest(\(ids)) WITH ORDINALITY AS k(id, place) JOIN outbox.endpoint_state h ON h.endpoint_id = k.id ORDER BY k.place
            """)
        guard found.rows.count == states.rows.count, configurations.count == found.rows.count else {
            throw Problem(.stateConflict, "endpoints were deleted meanwhile", hint: "Ask again")
        }
        let byID = Dictionary(uniqueKeysWithValues: configurations.map { ("\($0.0)", $0.1) })
        return try found.rows.indices.map { place in
            guard let id = found.rows[place][0], let stored = byID[id],
                let revision = found.rows[place][1].flatMap({ Int($0) })
            else { throw Problem(.stateConflict, "endpoints were deleted meanwhile", hint: "Ask again") }
            let configuration = String(
                decoding: try EndpointConfiguration(json: stored.bytes).json(.masked), as: UTF8.self)
            let json =
                "\(found.json[place].dropLast()),\(configuration.dropFirst().dropLast()),\"status\":\(states.json[place])}"
            return (json, revision)
        }
    }
}
