import API
import Operator
import Outbox
import Postgres
import TestSupport
import Testing

/// The contract of the HTTP API, on a socket and a real database.
@Suite(.timeLimit(.minutes(15))) struct ContractTests {
    private func serve(_ body: (TestAPI) async throws -> Void) async throws {
        try await TestAPI.serve(try await TestCluster.database(), body)
    }

    @Test func `it is alive and ready, and answers that to everybody`() async throws {
        try await serve { api in
            for path in ["/livez", "/healthz"] {
                let answer = try await api.call("GET", path)
                #expect(answer.status == 200)
                #expect(try answer.member("status") == "alive")
            }
            let ready = try await api.call("GET", "/readyz")
            #expect(ready.status == 200)
            #expect(try ready.member("status") == "ready")
            try await api.database.script("DROP SCHEMA outbox CASCADE")
            let unready = try await api.call("GET", "/readyz")
            #expect(unready.status == 503)
            #expect(try unready.member("status") == "not_ready")
            #expect(try await api.call("GET", "/livez").status == 200)
        }
    }

    @Test func `without a valid token a call is refused, and told nothing else`() async throws {
        try await serve { api in
            let none = try await api.call("GET", "/v1/events")
            #expect(none.status == 401 && none["WWW-Authenticate"] == #"Bearer realm="outbox""#)
            #expect(try none.member("code") == "unauthenticated")
            let valid = try await api.token(.read)
            let last = valid.last == "a" ? "b" : "a"
            for wrong in [String(valid.dropLast()) + last, "", "nonsense", TokenText.new().text] {
                let answer = try await api.call("GET", "/v1/events", token: wrong)
                #expect(answer.status == 401, "\(wrong)")
                #expect(answer["WWW-Authenticate"] == #"Bearer realm="outbox", error="invalid_token""#)
            }
            for spelling in [
                "Bearer \(valid)", "bearer \(valid)", "CwsAuth Bearer=\(valid)", "cwsauth bearer = \"\(valid)\"",
            ] {
                let answer = try await api.call("GET", "/v1/events", headers: ["Authorization: \(spelling)"])
                #expect(answer.status == 200, "\(spelling)")
            }
            let twice = try await api.call(
                "GET", "/v1/events", headers: ["Authorization: Bearer \(valid)", "Authorization: Bearer \(valid)"])
            #expect(twice.status == 400)
            // Neither the token nor anything that it could be found from is stored.
            #expect(
                try await api.database.column("SELECT t::text FROM outbox.token t").allSatisfy {
                    $0?.contains(valid) == false
                })
        }
    }

    @Test func `no route does without its scope, and a refused call writes nothing`() async throws {
        try await serve { api in
            let scopes = Token.Scope.allCases
            var tokens: [Token.Scope: String] = [:]
            for scope in scopes { tokens[scope] = try await api.token(scope, rate: "100000/s") }
            let before = try await api.database.column("SELECT count(*)::text FROM outbox.audit")
            for route in RouteTable.all.routes {
                guard case .scope(let needed) = route.access else { continue }
                let path = "/" + route.pattern.map { $0.hasPrefix("{") ? "1:x" : $0 }.joined(separator: "/")
                for scope in scopes where !scope.implied.contains(needed) {
                    let answer = try await api.call(route.method, path, token: tokens[scope], body: "{}")
                    #expect(answer.status == 403, "\(route.operation) with \(scope.rawValue)")
                    #expect(try answer.member("required_scope") == needed.rawValue)
                }
                let answer = try await api.call(route.method, path, token: nil)
                #expect(answer.status == 401, "\(route.operation)")
            }
            #expect(try await api.database.column("SELECT count(*)::text FROM outbox.audit") == before)
            #expect(try await api.database.number("SELECT count(*) FROM outbox.event") == 0)
        }
    }

    @Test func `a token that was revoked or has expired is none, five seconds later at most`() async throws {
        try await serve { api in
            let token = try await api.token(.read)
            #expect(try await api.call("GET", "/v1/events", token: token).status == 200)
            #expect(
                try await api.database.number("SELECT count(*) FROM outbox.token WHERE last_used_at IS NOT NULL") == 1)
            let row = try await api.desk.tokens.list(limit: 1).tokens
            let id = try #require(row.first("id").flatMap { UniqueID($0) })
            try await api.desk.tokens.revoke(id, reason: "a test")
            #expect(try await eventually { try await api.call("GET", "/v1/events", token: token).status == 401 })
            let other = try await api.token(.read)
            try await api.database.script(
                "UPDATE outbox.token SET expires_at = clock_timestamp() WHERE revoked_at IS NULL")
            #expect(try await api.call("GET", "/v1/events", token: other).status == 401)
        }
    }

    @Test func `a body is given out byte for byte, as it was published`() async throws {
        try await serve { api in
            let (publisher, reader) = (try await api.token(.publish), try await api.token(.read))
            let body = #"{ "n":9007199254740993.10 , "n": 1,"ü":"\u00fc"}"#
            let published = try await api.call(
                "POST", "/v1/events", token: publisher, body: #"{"type":"a.b","after":\#(body)}"#)
            #expect(published.status == 201)
            let location = try #require(published["Location"])
            #expect(published["Outbox-Transaction-Id"] == (try published.member("transaction_id")))
            let after = try await api.call("GET", "\(location)/after", token: reader)
            #expect(after.body == body && after["Content-Type"] == "application/json")
            #expect(try await api.call("GET", "\(location)/before", token: reader).status == 204)
            let shown = try await api.call("GET", location, token: reader)
            #expect(!shown.body.contains("9007199254740993"))
            #expect(try await api.call("GET", "\(location)?include=body", token: reader).body.contains(body))
            #expect(try shown.member("created_at")?.wholeMatch(of: /\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z/) != nil)
            #expect(try shown.member("identity") == "test")
        }
    }

    @Test func `many events are published at once, as a list or as lines, or none of them`() async throws {
        try await serve { api in
            let token = try await api.token(.publish)
            let list = try await api.call(
                "POST", "/v1/events", token: token, body: #"[{"type":"a"},{"type":"b"},{"type":"c"}]"#)
            #expect(list.status == 201)
            #expect(try list.member("items", "2", "id") == "3")
            #expect(
                try list.member("items", "0", "transaction_id") == (try list.member("items", "2", "transaction_id")))
            let lines = try await api.call(
                "POST", "/v1/events", token: token, headers: ["Content-Type: application/jsonl"],
                body: "{\"type\":\"d\"}\n\n{\"type\":\"e\"}\n")
            #expect(lines.status == 201)
            #expect(
                try await api.database.column("SELECT type FROM outbox.event ORDER BY id") == ["a", "b", "c", "d", "e"])
            let third = try await api.call("POST", "/v1/events", token: token, body: #"[{"type":"a"},{"type":"b"},{}]"#)
            #expect(third.status == 422)
            #expect(try third.member("errors", "0", "pointer") == "#/2/type")
            #expect(try await api.database.number("SELECT count(*) FROM outbox.event") == 5)
        }
    }

    @Test func `a call with a known key is carried out once, also when two come at a time`() async throws {
        try await serve { api in
            let token = try await api.token(.publish)
            @Sendable func publish(_ body: String) async throws -> HTTPAnswer {
                try await api.call("POST", "/v1/events", token: token, headers: ["Idempotency-Key: k1"], body: body)
            }
            async let one = publish(#"{"type":"a"}"#)
            async let other = publish(#"{"type":"a"}"#)
            let (first, second) = (try await one, try await other)
            #expect(Set([first.status, second.status]) == [200, 201])
            #expect(first.body == second.body)
            let repeated = first.status == 200 ? first : second
            #expect(repeated["Idempotency-Replayed"] == "true")
            let wrong = try await publish(#"{"type":"b"}"#)
            #expect(wrong.status == 422)
            #expect(try wrong.member("code") == "idempotency_mismatch")
            #expect(try await api.database.number("SELECT count(*) FROM outbox.event") == 1)
            // What failed is not remembered.
            let refused = try await api.call(
                "POST", "/v1/events", token: token, headers: ["Idempotency-Key: k2"],
                body: #"{"type":"a","change_type":""}"#)
            #expect(refused.status == 422)
            let mended = try await api.call(
                "POST", "/v1/events", token: token, headers: ["Idempotency-Key: k2"], body: #"{"type":"a"}"#)
            #expect(mended.status == 201)
        }
    }

    @Test(arguments: [
        (#"{"typ":"x"}"#, 400, "unknown_member", "#/typ", "unknown"),
        (#"{"type":"outbox.x"}"#, 422, "reserved_type", "#/type", "range"),
        (#"{"type":"a","type":"b"}"#, 400, "malformed_json", "#/type", "range"),
        (#"{"type":7}"#, 422, "invalid_value", "#/type", "type"),
        (#"{"after":1}"#, 422, "invalid_value", "#/type", "required"),
        (#"{"type":"a","deliver_at":"soon"}"#, 422, "invalid_value", "#/deliver_at", "format"),
    ])
    func `a wrong member is named`(body: String, status: Int, code: String, pointer: String, fault: String) async throws
    {
        try await serve { api in
            let answer = try await api.call("POST", "/v1/events", token: try await api.token(.publish), body: body)
            #expect(answer.status == status && answer["Content-Type"] == "application/problem+json")
            #expect(try answer.member("code") == code)
            #expect(try answer.member("errors", "0", "pointer") == pointer)
            #expect(try answer.member("errors", "0", "code") == fault)
            #expect(try answer.member("instance") == "/v1/events")
            #expect(try answer.member("request_id") == answer["X-Request-Id"])
            #expect(try await api.database.number("SELECT count(*) FROM outbox.event") == 0)
        }
    }

    @Test func `what is no JSON, of another kind or too large is refused`() async throws {
        try await serve { api in
            let token = try await api.token(.publish)
            for body in ["{", "", "[1", "{\"type\":\"a\"} x", String(repeating: "[", count: 100_000)] {
                let answer = try await api.call("POST", "/v1/events", token: token, body: body)
                #expect(answer.status == 400, "\(body.prefix(20))")
                #expect(try answer.member("code") == "malformed_json")
            }
            let form = try await api.call(
                "POST", "/v1/events", token: token, headers: ["Content-Type: application/x-www-form-urlencoded"],
                body: "type=a")
            #expect(form.status == 415)
            let packed = try await api.call(
                "POST", "/v1/events", token: token, headers: ["Content-Encoding: gzip"], body: "{}")
            #expect(packed.status == 415)
            let text = String(repeating: "x", count: 1_100_000)
            let large = try await api.call(
                "POST", "/v1/events", token: token, body: #"{"type":"a","after":"\#(text)"}"#)
            #expect(large.status == 413)
            #expect(try large.member("code") == "payload_too_large")
        }
    }

    @Test func `pages have every row once, and lead to each other`() async throws {
        try await serve { api in
            let token = try await api.token(.read)
            try await api.database.publish(20)
            var (path, seen): (String?, [String]) = ("/v1/events?limit=7", [])
            while let next = path {
                let page = try await api.call("GET", next, token: token)
                #expect(page.status == 200)
                for place in 0..<7 { if let id = try page.member("items", "\(place)", "id") { seen.append(id) } }
                path = page["Link"].map { String($0.dropFirst().prefix { $0 != ">" }) }
                try await api.database.publish(1)
            }
            #expect(seen == (1...20).reversed().map(String.init))
            for (query, status, code) in [
                ("limit=0", 422, "invalid_value"), ("limit=1001", 422, "invalid_value"),
                ("limt=5", 400, "unknown_parameter"),
                ("after=x", 400, "invalid_cursor"), ("limit=1&limit=2", 400, "malformed_request"),
                ("since=x", 422, "invalid_value"),
                ("type=%zz", 400, "malformed_request"), ("state=new", 422, "invalid_value"),
            ] {
                let answer = try await api.call("GET", "/v1/events?\(query)", token: token)
                #expect(answer.status == status, "\(query)")
                #expect(try answer.member("code") == code)
            }
        }
    }

    @Test func `an endpoint is put by its name, and changed by those who have seen it`() async throws {
        try await serve { api in
            let token = try await api.token(.admin)
            let made = try await api.call(
                "PUT", "/v1/endpoints/billing", token: token, body: #"{"url":"https://a.example/h?t=s"}"#)
            #expect(made.status == 201 && made["ETag"] == "\"1\"")
            #expect(try made.member("signing_secret")?.hasPrefix("whsec_") == true)
            #expect(try made.member("url") == "https://a.example/h?t=***")
            let shown = try await api.call("GET", "/v1/endpoints/billing", token: token)
            #expect(!shown.body.contains("signing_secret"))
            // What was got is put back: nothing changes, and the secret stays.
            let members = ["name", "url", "timeout_seconds", "event_types"]
            let same = try members.map { name in
                let value = try shown.member(name) ?? ""
                return name == "event_types"
                    ? #""event_types":["*"]"# : Int(value) != nil ? "\"\(name)\":\(value)" : "\"\(name)\":\"\(value)\""
            }
            let again = try await api.call(
                "PUT", "/v1/endpoints/billing", token: token, body: "{\(same.joined(separator: ","))}")
            #expect(again.status == 200 && again["ETag"] == "\"1\"")
            #expect(try await api.database.column("SELECT url FROM outbox.endpoint") == ["https://a.example/h?t=s"])
            for (ifMatch, status) in [
                ([], 428), (["If-Match: \"0\""], 412), (["If-Match: x"], 412), (["If-Match: \"1\""], 200),
            ] {
                let answer = try await api.call(
                    "PATCH", "/v1/endpoints/billing", token: token, headers: ifMatch, body: #"{"timeout_seconds":20}"#)
                #expect(answer.status == status, "\(ifMatch)")
                if status == 200 { #expect(answer["ETag"] == "\"2\"") }
            }
            let bare = try await api.call(
                "PUT", "/v1/endpoints/billing", token: token, body: #"{"url":"https://b.example/"}"#)
            #expect(bare.status == 428)
            #expect(try await api.call("DELETE", "/v1/endpoints/billing", token: token).status == 428)
            #expect(
                try await api.call("DELETE", "/v1/endpoints/billing", token: token, headers: ["If-Match: \"1\""]).status
                    == 412)
            #expect(
                try await api.call("DELETE", "/v1/endpoints/billing", token: token, headers: ["If-Match: *"]).status
                    == 204)
            #expect(try await api.call("GET", "/v1/endpoints/billing", token: token).status == 404)
            #expect(
                try await api.database.column("SELECT DISTINCT actor FROM outbox.audit WHERE object LIKE 'endpoint/%'")
                    == ["token:test"])
        }
    }

    @Test func `a secret is not changed by who has not seen the endpoint`() async throws {
        try await serve { api in
            let token = try await api.token(.admin)
            func put(_ value: String, _ headers: [String] = []) async throws -> Int {
                let body =
                    #"{"url":"https://a.example/","headers":[{"name":"X-Key","value":"\#(value)","secret":true}]}"#
                return try await api.call("PUT", "/v1/endpoints/e", token: token, headers: headers, body: body).status
            }
            #expect(try await put("one", ["If-Match: *"]) == 412)
            #expect(try await put("one") == 201)
            #expect(try await put("two") == 428)
            #expect(try await put("***") == 200)
            #expect(try await put("two", ["If-Match: \"1\""]) == 200)
            let other = try await api.call(
                "PUT", "/v1/endpoints/x", token: token, body: #"{"name":"y","url":"https://a.example/"}"#)
            #expect(other.status == 422)
            let nobody = try await api.call(
                "PUT", "/v1/endpoints/0b8f3c5e-3f0a-4a50-9d8e-4d5b1f6f0a11", token: token,
                body: #"{"name":"z","url":"https://a.example/"}"#)
            #expect(nobody.status == 404)
        }
    }

    @Test func `events of one request keep their order, with and without keys`() async throws {
        try await serve { api in
            let token = try await api.token(.publish)
            let body = #"[{"type":"a","dedup_key":"x"},{"type":"b"},{"type":"c","dedup_key":"x"},{"type":"d"}]"#
            let answer = try await api.call("POST", "/v1/events", token: token, body: body)
            #expect(answer.status == 201)
            #expect(try await api.database.column("SELECT type FROM outbox.event ORDER BY id") == ["a", "b", "d"])
            #expect(try answer.member("items", "0", "deduplicated") == "0")
            #expect(try answer.member("items", "2", "deduplicated") == "1")
            #expect(try answer.member("items", "2", "id") == (try answer.member("items", "0", "id")))
            let disguised = try await api.call("POST", "/v1/events", token: token, body: #"{"type":"outbox.\u0301x"}"#)
            #expect(disguised.status == 422)
            let long = try await api.call(
                "POST", "/v1/events", token: token, body: "{\"\(String(repeating: "a", count: 1_000_000))\":1}")
            #expect(long.status == 400 && long.body.utf8.count < 1000)
        }
    }

    @Test func `a token of a customer, which no route knows yet, opens nothing`() async throws {
        try await serve { api in
            let token = try await api.token(.admin)
            try await api.database.script("UPDATE outbox.token SET customer_id = 'acme'")
            #expect(try await api.call("GET", "/v1/events", token: token).status == 403)
        }
    }

    @Test func `keys are kept for a day`() async throws {
        try await serve { api in
            let token = try await api.token(.publish)
            for key in ["k1", "k2", "k1"] {
                let answer = try await api.call(
                    "POST", "/v1/events", token: token, headers: ["Idempotency-Key: \(key)"], body: #"{"type":"a"}"#)
                #expect(answer.status == 201)
                try await api.database.script(
                    "UPDATE outbox.idempotency SET created_at = created_at - interval '1 day'")
            }
            #expect(try await api.database.number("SELECT count(*) FROM outbox.idempotency") == 1)
        }
    }

    @Test func `an endpoint may not be where our own network is`() async throws {
        try await serve { api in
            let token = try await api.token(.admin)
            let answer = try await api.call(
                "POST", "/v1/endpoints", token: token, body: #"{"name":"e","url":"http://169.254.169.254/"}"#)
            #expect(answer.status == 422)
            #expect(try answer.member("code") == "endpoint_url_not_allowed")
        }
    }

    @Test func `an endpoint is paused, resumed, disabled and enabled`() async throws {
        try await serve { api in
            let (admin, token) = (try await api.token(.admin), try await api.token(.operate))
            let name = "/v1/endpoints/e"
            _ = try await api.call("PUT", name, token: admin, body: #"{"url":"https://a.example/"}"#)
            #expect(try await api.call("PUT", "\(name)/pause", token: token, body: "{}").status == 422)
            let paused = try await api.call(
                "PUT", "\(name)/pause", token: token, body: #"{"reason":"a test","resume_rate":"5/s"}"#)
            #expect(try paused.member("status", "state") == "paused")
            #expect(try paused.member("status", "by") == "token:test")
            #expect(try paused.member("status", "paused_until") == nil)
            for (verb, state) in [("resume", "active"), ("disable", "disabled"), ("enable", "active")] {
                let answer = try await api.call("PUT", "\(name)/\(verb)", token: token)
                #expect(answer.status == 200 && answer["ETag"] != nil)
                #expect(try answer.member("status", "state") == state, "\(verb)")
            }
        }
    }

    @Test func `a token gives another no more than it has`() async throws {
        try await serve { api in
            let token = try await api.token(.admin)
            let made = try await api.call("POST", "/v1/tokens", token: token, body: #"{"name":"r","scopes":["read"]}"#)
            #expect(made.status == 201)
            let reader = try #require(try made.member("token"))
            #expect(try await api.call("GET", "/v1/events", token: reader).status == 200)
            let more = try await api.call(
                "POST", "/v1/tokens", token: token, body: #"{"name":"x","scopes":["secrets:reveal"]}"#)
            #expect(more.status == 403)
            let listed = try await api.call("GET", "/v1/tokens", token: token)
            #expect(listed.status == 200 && !listed.body.contains(reader))
        }
    }

    @Test func `tokens come in pages, each once`() async throws {
        try await serve { api in
            let token = try await api.token(.admin)
            for _ in 0..<6 { _ = try await api.token(.read) }
            var (path, seen): (String?, [String]) = ("/v1/tokens?limit=3", [])
            while let next = path {
                let page = try await api.call("GET", next, token: token)
                for place in 0..<3 { if let id = try page.member("items", "\(place)", "id") { seen.append(id) } }
                path = page["Link"].map { String($0.dropFirst().prefix { $0 != ">" }) }
            }
            #expect(seen.count == 7 && Set(seen).count == 7)
        }
    }

    @Test func `a token that calls too often is told when to come again`() async throws {
        try await serve { api in
            let token = try await api.token(.read, rate: "1/h")
            let first = try await api.call("GET", "/v1/events", token: token)
            #expect(first.status == 200 && first["RateLimit"]?.hasPrefix(#""token";r=0;t="#) == true)
            let second = try await api.call("GET", "/v1/events", token: token)
            #expect(second.status == 429)
            #expect(try second.member("code") == "rate_limited")
            #expect((second["Retry-After"].flatMap { Int($0) } ?? 0) > 3000)
        }
    }

    @Test func `methods and routes that do not exist are said so`() async throws {
        try await serve { api in
            let wrong = try await api.call("DELETE", "/v1/events")
            #expect(wrong.status == 405 && wrong["Allow"] == "POST, GET, HEAD, OPTIONS")
            #expect(try await api.call("OPTIONS", "/v1/events").status == 204)
            #expect(try await api.call("GET", "/v2/events").status == 404)
            let connection = try RawConnection(port: api.port)
            try await connection.send("HEAD /livez HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\n\r\n")
            let head = try await connection.answer(hasBody: false)
            #expect(head.status == 200 && head["Content-Length"] == "29" && head["X-Request-Id"] == "mine")
        }
    }
}
