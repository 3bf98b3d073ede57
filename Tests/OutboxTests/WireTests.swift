import Foundation
import Outbox
import Postgres
import StandardWebhooks
import Testing
import Transport

@Suite(.timeLimit(.minutes(15))) struct SignatureTests {
    @Test(arguments: [
        (
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330,
            #"{"test": 2432232314}"#, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        ),
        (
            "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk", 1_649_367_553,
            #"{"email":"test@example.com","username":"test_user"}"#, "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw="
        ),
        (
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, "",
            "v1,v48jdbgvh29KJz2Qc+ghw8G6vG3nAKnujWBg8oM/62A="
        ),
        (
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330,
            #"{"n":"héllo ☃"}"#, "v1,2OcXCYBK+K412Wc9cpt4nwngILtn7Fkhg4NR1aLqOEQ="
        ),
    ])
    func `the vectors of Standard Webhooks come out`(
        secret: String, id: String, timestamp: Int64, body: String, signature: String
    ) throws {
        let secret = try SigningSecret(secret)
        let body = Array(body.utf8)
        #expect(secret.signature(id: id, timestamp: timestamp, body: body) == signature)
        #expect(secret.verifies("v2,x \(signature)", id: id, timestamp: timestamp, body: body))
    }

    @Test func `any difference fails the verification`() throws {
        let secret = SigningSecret.generate()
        let good = secret.signature(id: "a", timestamp: 1, body: [1, 2, 3])
        #expect(secret.verifies(good, id: "a", timestamp: 1, body: [1, 2, 3]))
        #expect(!secret.verifies(good, id: "b", timestamp: 1, body: [1, 2, 3]))
        #expect(!secret.verifies(good, id: "a", timestamp: 2, body: [1, 2, 3]))
        #expect(!secret.verifies(good, id: "a", timestamp: 1, body: [1, 2, 2]))
        #expect(!SigningSecret.generate().verifies(good, id: "a", timestamp: 1, body: [1, 2, 3]))
        for broken in ["", "v1,", "v1", "v2,\(good.dropFirst(3))", String(good.dropLast(5)), "v1,****"] {
            #expect(!secret.verifies(broken, id: "a", timestamp: 1, body: [1, 2, 3]), "\(broken)")
        }
    }

    @Test(arguments: [
        "", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_canary!", "whsec_Y2FuYXJ5", "whsec_a b",
        "whsec_" + Data(repeating: 7, count: 23).base64EncodedString(),
        "whsec_" + Data(repeating: 7, count: 65).base64EncodedString(),
    ])
    func `what is no secret is refused without being repeated`(text: String) {
        let refusal = #expect(throws: SigningSecret.ValidationError.self) { try SigningSecret(text) }
        #expect(refusal?.description.contains("canary") == false)
    }

    @Test func `a new secret has 32 bytes and reads back`() throws {
        let secret = SigningSecret.generate()
        #expect(Data(base64Encoded: String(secret.revealed.dropFirst(6)))?.count == 32)
        #expect(try SigningSecret(secret.revealed + "\n").revealed == secret.revealed)
    }
}

@Suite(.timeLimit(.minutes(15))) struct RequestTests {
    private func event(
        before: String? = nil, after: String? = nil, identity: String? = "tom.kludy@citrix.com",
        type: String = "Notifications"
    ) throws -> Event {
        Event(
            id: EventID(rawValue: 7), createdAt: Timestamp(microseconds: 0), customerID: "acme", type: type,
            changeType: "Create",
            transactionID: try #require(UniqueID("9cc8c8d0-3d24-46f4-b63c-8c5d092b7205")), identity: identity,
            before: before.map { Array($0.utf8) }, after: after.map { Array($0.utf8) },
            occurredAt: Timestamp(microseconds: 1_524_582_949_493_999),
            context: Array(#"{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#.utf8))
    }

    private func request(
        _ event: Event, _ format: Endpoint.Format, method: HTTPRequest.Method = .post, headers: [HTTPHeader] = [],
        secrets: [SigningSecret] = []
    ) throws -> HTTPRequest {
        var settings = EndpointConfiguration(name: "e", url: "https://example.com/")
        settings.method = method
        settings.headers = headers.map { EndpointConfiguration.Header(name: $0.name, value: $0.value) }
        settings.format = format
        settings.retrySchedule = [.seconds(5), .seconds(30)]
        return try HTTPRequest.delivery(
            of: event,
            to: Endpoint(EndpointID(rawValue: .random()), settings, signingSecrets: secrets.map { ValidSecret($0) }),
            number: 2,
            webhookID: "evt_abc_7",
            at: Timestamp(microseconds: 1_700_000_000_900_000)
        ).request
    }

    @Test func `the citrix format has the eight members in order, and the producer's bytes inside strings`() throws {
        let after =
            "{\"PublishNotificationId\":\"2518777178829331203_YB2Y1\",\"CreatedDate\":\"2018-04-24T15:15:17.0668796Z\",\"n\":1.50,\"t\":\"tab\\t\\u0001 ☃\"}"
        let body = String(decoding: try request(event(after: after), .citrix).body, as: UTF8.self)
        #expect(
            body
                == #"{"CustomerId":"acme","Type":"Notifications","ChangeType":"Create","TransactionId":"9cc8c8d0-3d24-46f4-b63c-8c5d092b7205","Identity":"tom.kludy@citrix.com","BeforeChange":null,"AfterChange":"{\"PublishNotificationId\":\"2518777178829331203_YB2Y1\",\"CreatedDate\":\"2018-04-24T15:15:17.0668796Z\",\"n\":1.50,\"t\":\"tab\\t\\u0001 ☃\"}","TimeStamp":"2018-04-24T15:15:49.493Z"}"#
        )
        let parsed = try #require(try JSONSerialization.jsonObject(with: Data(body.utf8)) as? [String: Any])
        #expect(parsed["AfterChange"] as? String == after)
        #expect(parsed["BeforeChange"] is NSNull)
    }

    @Test func `control characters of any text are escaped`() throws {
        let body = try request(event(before: "{\n\t}", identity: nil, type: "a\"b\\c\u{1}"), .citrix).body
        let parsed = try #require(try JSONSerialization.jsonObject(with: Data(body)) as? [String: Any])
        #expect(parsed["Type"] as? String == "a\"b\\c\u{1}")
        #expect(parsed["BeforeChange"] as? String == "{\n\t}")
        #expect(parsed["Identity"] is NSNull)
    }

    @Test func `the standard and raw formats carry the bytes as they are`() throws {
        let after = #"{ "a" : 1.10 }"#
        #expect(
            String(decoding: try request(event(after: after), .standard).body, as: UTF8.self)
                == #"{"type":"Notifications","timestamp":"2018-04-24T15:15:49.493999Z","data":{ "a" : 1.10 }}"#)
        #expect(String(decoding: try request(event(after: after), .raw).body, as: UTF8.self) == after)
        #expect(String(decoding: try request(event(), .standard).body, as: UTF8.self).hasSuffix(#""data":null}"#))
        #expect(try request(event(), .raw).body.isEmpty)
    }

    @Test func `the headers are those of the contract`() throws {
        let secrets = [SigningSecret.generate(), SigningSecret.generate()]
        let request = try request(
            event(after: "{}"), .raw, headers: [try HTTPHeader(name: "Authorization", value: "Basic x")],
            secrets: secrets)
        let headers = Dictionary(
            request.headers.all.map { ($0.name, $0.value) }, uniquingKeysWith: { first, _ in first })
        #expect(headers["webhook-id"] == "evt_abc_7")
        #expect(headers["webhook-timestamp"] == "1700000000")
        let signatures = secrets.map { $0.signature(id: "evt_abc_7", timestamp: 1_700_000_000, body: Array("{}".utf8)) }
        #expect(headers["webhook-signature"] == signatures.joined(separator: " "))
        #expect(headers["Outbox-Transaction-Id"] == "9cc8c8d0-3d24-46f4-b63c-8c5d092b7205")
        #expect(headers["Outbox-Attempt"] == "2/3")
        #expect(headers["User-Agent"] == "outbox/\(outboxVersion)")
        #expect(headers["Content-Type"] == "application/json")
        #expect(headers["Authorization"] == "Basic x")
        #expect(headers["traceparent"]?.hasPrefix("00-") == true)
    }

    @Test func `an endpoint's own content type replaces ours, and GET has neither type nor body`() throws {
        let own = try request(
            event(after: "{}"), .raw, headers: [try HTTPHeader(name: "content-type", value: "text/plain")])
        #expect(own.headers.all.filter { $0.name.lowercased() == "content-type" }.map(\.value) == ["text/plain"])
        let get = try request(event(after: "{}"), .raw, method: .get)
        #expect(get.body.isEmpty)
        #expect(!get.headers.all.contains { $0.name == "Content-Type" })
    }
}

@Suite(.timeLimit(.minutes(15))) struct KeyringTests {
    @Test func `a bad key file is refused by line, without its contents`() {
        for text in ["", "# only a comment\n", "canary\n", Data(repeating: 1, count: 31).base64EncodedString()] {
            let refusal = #expect(throws: Keyring.KeyError.self) { try Keyring(text: text) }
            #expect(refusal?.description.contains("canary") == false)
        }
    }
}
