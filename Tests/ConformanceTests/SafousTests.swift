import Foundation
import Outbox
import Postgres
import Receiver
import Templates
import TestSupport
import Testing
import Transport

/// Safous webhook integration: rules of a policy.
@Suite(.timeLimit(.minutes(15))) struct SafousTests {
    private static let context = """
        {"username":"tom","internal_addr":"10.0.0.7","user_agent":"Mozilla/5.0 (X11)","remote_ip":"198.51.100.7",
         "cert_thumbprint":"A94A8FE5CCB19BA61C4C0873D391E987982FBBD3",
         "cert_thumbprint_256":"9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08",
         "cert_name":"CN=tom","cert_alt_name":"tom@example.com","device_id":"d-1","groups":["g1","g2"],"group_names":["Admins","Ops"],
         "headers":{"Accept-Language":"de-CH","Authorization":"canary"}}
        """

    private func publish(_ after: String = "{}", context: String = Self.context) -> String {
        "SELECT outbox.publish('access', '\(after)', headers => '\(context.replacing("'", with: "''"))')"
    }

    private func headers(_ pairs: [(String, String)]) -> [EndpointConfiguration.Header] {
        pairs.map { EndpointConfiguration.Header(name: $0.0, value: $0.1) }
    }

    @Test(arguments: [HTTPRequest.Method.get, .post])
    func `SF-01 a rule is called with GET or POST, and GET sends no body`(method: HTTPRequest.Method) async throws {
        let delivered = try await TestCluster.database().deliver(publish()) { $0.method = method }
        #expect(delivered.requests.map(\.method) == [method.rawValue])
        #expect(delivered.requests[0].body.isEmpty == (method == .get))
        #expect((delivered.requests[0]["Content-Length"] == nil) == (method == .get))
    }

    @Test func `SF-02 a hundred headers, static and filled in, all arrive`() async throws {
        let wanted = (1...100).map { ("X-H\($0)", $0.isMultiple(of: 2) ? "static \($0)" : "\($0) %username%") }
        let delivered = try await TestCluster.database().deliver(publish()) { $0.headers = headers(wanted) }
        for (name, value) in wanted {
            #expect(delivered.requests[0][name] == value.replacing("%username%", with: "tom"), "\(name)")
        }
    }

    @Test func `SF-03 with GET parameters are filled in headers, and in the URL only when that is switched on`()
        async throws
    {
        let off = try await TestCluster.database().deliver(publish(), path: "/check/%username%?u=%username%") {
            $0.method = .get
            $0.headers = headers([("X-User", "%username%")])
        }
        #expect(off.requests[0].target == "/check/%username%?u=%username%")
        #expect(off.requests[0]["X-User"] == "tom")
        let on = try await TestCluster.database().deliver(
            publish(context: #"{"username":"a/../b?c#d e%é"}"#), path: "/check/%username%?u=%username%"
        ) {
            $0.method = .get
            $0.urlHasParameters = true
        }
        // A value cannot climb out of its place in the path either.
        let climbing = try await TestCluster.database().deliver(
            publish(context: #"{"username":".."}"#), path: "/check/%username%/x"
        ) {
            $0.method = .get
            $0.urlHasParameters = true
        }
        #expect(climbing.requests.isEmpty)
        #expect(
            climbing.dead.map { $0.hasPrefix("render_error render_error the URL has a value that is . or ..") } == [
                true
            ])
        #expect(on.requests[0].target == "/check/a%2F..%2Fb%3Fc%23d%20e%25%C3%A9?u=a%2F..%2Fb%3Fc%23d%20e%25%C3%A9")
    }

    @Test(arguments: [
        ("username", "tom"), ("internal_addr", "10.0.0.7"), ("user_agent", "Mozilla/5.0 (X11)"),
        ("remote_ip", "198.51.100.7"), ("cert_thumbprint", "a94a8fe5ccb19ba61c4c0873d391e987982fbbd3"),
        ("cert_thumbprint_upper", "A94A8FE5CCB19BA61C4C0873D391E987982FBBD3"),
        ("cert_thumbprint_256", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"),
        ("cert_thumbprint_256_upper", "9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08"),
        ("cert_name", "CN=tom"), ("cert_alt_name", "tom@example.com"), ("device_id", "d-1"), ("groups", "g1,g2"),
        ("group_names", "Admins,Ops"), ("headers.Accept-Language", "de-CH"),
    ])
    func `SF-04 each of the fourteen parameters has its value in headers and in the body`(
        name: String, value: String
    ) async throws {
        let delivered = try await TestCluster.database().deliver(publish()) {
            $0.headers = headers([("X-Value", "%\(name)%")])
            $0.format = .template
            $0.template = try Template("{\"v\":\"%\(name)%\"}", kind: .json)
        }
        #expect(delivered.requests[0]["X-Value"] == value)
        #expect(delivered.body == "{\"v\":\"\(value)\"}")
    }

    @Test func `SF-05 a header's name has no case, and one that is missing is empty and noted`() async throws {
        let database = try await TestCluster.database()
        let delivered = try await database.deliver(publish()) {
            $0.headers = headers([
                ("X-Language", "%headers.accept-LANGUAGE%"), ("X-Auth", "%headers.authorization%"),
                ("X-Missing", "%headers.X-Nothing%"), ("X-Default", "%headers.X-Nothing|none%"),
            ])
        }
        let request = delivered.requests[0]
        #expect(request["X-Language"] == "de-CH")
        #expect(request["X-Auth"] == "canary")
        #expect(request["X-Missing"] == "")
        #expect(request["X-Default"] == "none")
        #expect(delivered.error == "note: no value for %headers.X-Nothing%")
        #expect(try await database.number("SELECT count(*) FROM outbox.attempt a WHERE a::text LIKE '%canary%'") == 0)
    }

    @Test func `SF-06 an unknown parameter is refused with a suggestion, and a percent sign is a percent sign`()
        async throws
    {
        let refusal = #expect(throws: Template.ValidationError.self) {
            try Template(#"{"u":"%usrname%"}"#, kind: .json)
        }
        #expect(refusal?.description.contains("Did you mean %username%?") == true, "\(String(describing: refusal))")
        let delivered = try await TestCluster.database().deliver(publish()) {
            $0.format = .template
            $0.template = try Template("100% of 50%% for %username%, 7 %", kind: .text)
        }
        #expect(delivered.body == "100% of 50% for tom, 7 %")
    }

    @Test func `SF-07 without authentication there is no Authorization`() async throws {
        let delivered = try await TestCluster.database().deliver(publish())
        #expect(delivered.requests[0]["Authorization"] == nil)
    }

    @Test func `SF-08 Basic sends user and password in UTF-8, and shows neither`() async throws {
        let database = try await TestCluster.database()
        let delivered = try await database.deliver(publish()) {
            var authentication = Authentication()
            authentication.kind = .basic
            authentication.user = "jürg"
            $0.authentication = authentication
            $0.authentication.secret = "pass:wörd"
        }
        let value = try #require(delivered.requests[0]["Authorization"])
        #expect(value == "Basic " + Data("jürg:pass:wörd".utf8).base64EncodedString())
        let listing = try await database.pool.run { try $0.listEndpoints() }
        #expect(listing.json.allSatisfy { !$0.contains("wörd") })
    }

    @Test func `SF-10 the response must be JSON, whatever its content type says`() async throws {
        var rules = ResponseRules()
        rules.form = .json
        let good = try await TestCluster.database().deliver(
            publish(),
            answer: { _, _ in
                Receiver.Response(200, headers: [("Content-Type", "text/plain")], body: Array(#" {"a":1} "#.utf8))
            }
        ) { $0.rules = rules }
        #expect(good.attempts == ["success 200"])
        let bad = try await TestCluster.database().deliver(
            publish(),
            answer: { _, _ in
                Receiver.Response(200, headers: [("Content-Type", "application/json")], body: Array("{\n\"a\":}".utf8))
            }
        ) { $0.rules = rules }
        #expect(bad.attempts == ["failure 200 rule_failed"])
        #expect(bad.error == "response is not JSON (line 2, column 5: expected a value)")
    }

    @Test(arguments: [
        ("callback({\"ok\":true});", true), ("/**/ cb.x ( {\"ok\":true} ) ;\n", true), ("$({\"ok\":true})", true),
        ("{\"ok\":true}", false), ("alert(1);({\"ok\":true})", false), ("cb({\"ok\":true}); evil()", false),
        ("cb({ok:true})", false), ("1cb({\"ok\":true})", false),
        ("/**/ typeof callback === 'function' && callback({\"ok\":true});", true),
        ("typeof a.b === 'function' && a.b({\"ok\":true})", true),
        ("typeof a === 'function' && b({\"ok\":true});", false), ("typeof a == 'function' && a({\"ok\":true});", false),
        ("typeof a === 'function' || a({\"ok\":true});", false),
    ])
    func `SF-11 JSONP is parsed and never evaluated`(body: String, isGood: Bool) async throws {
        var rules = ResponseRules()
        rules.form = .jsonp
        rules.checks = [try Check("boolean ok true")]
        let delivered = try await TestCluster.database().deliver(
            publish(), answer: { _, _ in Receiver.Response(200, body: Array(body.utf8)) }
        ) { $0.rules = rules }
        #expect(delivered.attempts == [isGood ? "success 200" : "failure 200 rule_failed"], "\(delivered.error ?? "")")
    }

    @Test(arguments: [
        ("string data.status granted", true), ("string data.status denied", false), ("string data.code 1", false),
        ("number data.code 1", true), ("number data.code 1.0", true), ("number data.code 2", false),
        ("string data.text 1", true), ("number data.text 1", false), ("boolean ok true", true),
        ("boolean ok false", false),
        ("null data.none", true), ("null data.code", false), ("exists data.none", true), ("exists data.nothing", false),
        ("string /data/list/1 b", true), ("string data.list[1] b", true), ("glob data.status gra*d", true),
        ("glob data.status g?d", false), ("deny string data.status denied", true), ("deny exists data.code", false),
    ])
    func `SF-12 a rule compares by type at a path into the response`(rule: String, holds: Bool) throws {
        var rules = ResponseRules()
        rules.checks = [try Check(rule)]
        let body = #"{"ok":true,"data":{"status":"granted","code":1,"text":"1","none":null,"list":["a","b"]}}"#
        let finding = rules.judge(Array(body.utf8), isComplete: true)
        if holds {
            #expect(finding == .success)
        } else if case .failure(let reason) = finding {
            #expect(reason.hasPrefix("rule 1 (\(rule)) failed"))
        } else {
            Issue.record("\(finding)")
        }
    }

    @Test(arguments: [
        "1e-9223372036854775808", "1e9223372036854775807", "1e-99999999999999999999", "-0e-9223372036854775808",
    ])
    func `SF-12 a number that no machine holds is compared all the same`(number: String) throws {
        var rules = ResponseRules()
        rules.checks = [try Check("number a \(number)")]
        #expect(rules.judge(Array("{\"a\":\(number)}".utf8), isComplete: true) == .success)
        #expect(rules.judge(Array(#"{"a":7}"#.utf8), isComplete: true) != .success)
    }

    @Test func `SF-12 all rules must hold, and the one that does not is named`() async throws {
        var rules = ResponseRules()
        rules.checks = [try Check("boolean ok true"), try Check("string status granted")]
        let delivered = try await TestCluster.database().deliver(
            publish(), answer: { _, _ in Receiver.Response(200, body: Array(#"{"ok":true,"status":"pending"}"#.utf8)) }
        ) { $0.rules = rules }
        #expect(delivered.attempts == ["failure 200 rule_failed"])
        #expect(delivered.error == #"rule 2 (string status granted) failed: the response has "pending""#)
    }

    @Test func `SF-15 every change is one audit row, without secrets`() async throws {
        let database = try await TestCluster.database()
        let id = try await database.endpoint("rule", url: "https://example.com/").id
        var authentication = Authentication()
        authentication.kind = .bearer
        authentication.secret = "canary"
        try await database.pool.run { [authentication] in
            try $0.updateEndpoint(id, keyring: TestWorker.keyring) { $0.authentication = authentication }
        }
        try await database.pool.run { try $0.deleteEndpoint(id, reason: "not needed") }
        #expect(
            try await database.column("SELECT action FROM outbox.audit ORDER BY id") == [
                "endpoint.create", "endpoint.update", "endpoint.delete",
            ])
        // Before and after, of what is different; of credentials only that they are others.
        #expect(
            try await database.column(
                """
                SELECT concat_ws(' ', detail -> 'authentication' -> 0 ->> 'kind', detail -> 'authentication' -> 1 ->> 'kind',
                                 detail ? 'credentials', (SELECT count(*) FROM jsonb_object_keys(detail)))
                  FROM outbox.audit WHERE action = 'endpoint.update'
                """) == ["none bearer t 2"])
        #expect(try await database.number("SELECT count(*) FROM outbox.audit a WHERE a::text LIKE '%canary%'") == 0)
    }

    @Test func `SF-17 a hostile value stays a value in JSON, XML, text and headers`() async throws {
        let hostile = #"{"username":"a\"b\\c\n<x>&'\r\nX-Evil: 1"}"#
        let name = "a\"b\\c\n<x>&'\r\nX-Evil: 1"
        let json = try await TestCluster.database().deliver(publish(context: hostile)) {
            $0.format = .template
            $0.template = try Template(#"{"u":"%username%","v":%username%}"#, kind: .json)
        }
        let object = try #require(
            try JSONSerialization.jsonObject(with: Data(json.requests[0].body)) as? [String: String])
        #expect(object == ["u": name, "v": name])
        let xml = try await TestCluster.database().deliver(publish(context: hostile)) {
            $0.format = .template
            $0.template = try Template(#"<u n="%username%">%username%</u>"#, kind: .xml)
            $0.headers = headers([("X-User", "%username%")])
        }
        #expect(
            xml.body
                == "<u n=\"a&quot;b\\c&#10;&lt;x&gt;&amp;&#39;&#13;&#10;X-Evil: 1\">a\"b\\c\n&lt;x&gt;&amp;'&#13;\nX-Evil: 1</u>"
        )
        #expect(xml.requests[0]["X-User"] == "a\"b\\c<x>&'X-Evil: 1")
        #expect(xml.requests[0]["X-Evil"] == nil)
        #expect(xml.error?.contains("line breaks removed from %username%") == true)
    }
}
