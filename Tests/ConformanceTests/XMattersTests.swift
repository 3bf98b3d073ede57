import Foundation
import Outbox
import Postgres
import Receiver
import TestSupport
import Testing

/// xMatters webhooks: the updates that it sends.
@Suite(.timeLimit(.minutes(15))) struct XMattersTests {
    private func delivered(_ preset: String, _ after: String, more: String = "") async throws -> Delivered {
        try await TestCluster.database().deliver(
            "SELECT outbox.publish('update', '\(after)', occurred_at => '2017-04-12T23:01:51.328Z'\(more))"
        ) { try $0.apply(try Preset.named(preset)) }
    }

    private func object(_ text: String) throws -> [String: Any] {
        try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
    }

    @Test(arguments: ["Delivered", "Failed"])
    func `XM-08 a delivery update has the seed's shape`(status: String) async throws {
        let update = try await delivered(
            "xmatters-delivery", #"{"recipient":"bsmith","device":"Work Email","deliveryStatus":"\#(status)"}"#)
        let id = try #require(update.requests[0]["webhook-id"]?.split(separator: "_").last)
        let device = try #require(try object(update.body)["deviceId"] as? Int)
        #expect(
            update.body
                == #"{"recipient":"bsmith","device":"Work Email","deliveryStatus":"\#(status)","deviceId":\#(device),"eventType":"LIVE_NOTIFICATION_PROVIDER_DELIVERED","message":"Notification delivered","eventIdentifier":\#(id),"date":"17-04-12 23:01:51.328","eventProperties":[]}"#
        )
    }

    @Test(arguments: ["active", "suspended", "terminated", "terminated_external"])
    func `XM-09 an alert update says the status and who did it`(status: String) async throws {
        let update = try await delivered("xmatters-alert", #"{"status":"\#(status)"}"#, more: ", identity => 'bsmith'")
        let body = try object(update.body)
        #expect(body["status"] as? String == status)
        #expect(body["username"] as? String == "bsmith")
        #expect(body.keys.sorted() == ["date", "eventIdentifier", "eventProperties", "status", "username"])
    }

    @Test func `XM-10 a response without annotation has the text null`() async throws {
        let without = try await delivered(
            "xmatters-response", #"{"recipient":"bsmith","device":"Work Email","response":"Acknowledge"}"#)
        #expect(try object(without.body)["annotation"] as? String == "null")
        let with = try await delivered(
            "xmatters-response",
            #"{"recipient":"bsmith","device":"Work Email","response":"Acknowledge","annotation":"on it"}"#)
        #expect(try object(with.body)["annotation"] as? String == "on it")
        #expect(try object(with.body)["response"] as? String == "Acknowledge")
    }

    @Test func `XM-11 properties are an array of objects with one member each, from an object or as given`()
        async throws
    {
        let split = try await delivered("xmatters-alert", #"{"eventProperties":{"priority":"High","ticket":"INC1"}}"#)
        #expect(split.body.contains(#""eventProperties":[{"priority":"High"},{"ticket":"INC1"}]"#))
        let given = try await delivered("xmatters-alert", #"{"eventProperties":[{"number":"INC0012"}]}"#)
        #expect(given.body.contains(#""eventProperties":[{"number":"INC0012"}]"#))
    }

    @Test func `XM-12 message and subject of the alert are not in there`() async throws {
        for preset in ["xmatters-delivery", "xmatters-alert", "xmatters-response"] {
            let update = try await delivered(preset, #"{"message":"private words","subject":"private words"}"#)
            #expect(!update.body.contains("private words"), "\(preset)")
        }
    }

    @Test func `XM-13 the date has two digits of the year, in UTC`() async throws {
        let update = try await TestCluster.database().deliver(
            "SELECT outbox.publish('update', occurred_at => '2017-04-13T01:01:51.328+02:00')"
        ) { try $0.apply(try Preset.named("xmatters-alert")) }
        #expect(try object(update.body)["date"] as? String == "17-04-12 23:01:51.328")
    }

    @Test func `XM-14 the numbers are JSON numbers, at most 2^53, and the same for the same target and event`()
        async throws
    {
        let database = try await TestCluster.database()
        let update = try await database.deliver(
            "SELECT outbox.publish('update', '{}'); SELECT outbox.publish('update', '{}')", retries: [.zero],
            answer: { _, before in Receiver.Response(before < 2 ? 500 : 200) }
        ) { try $0.apply(try Preset.named("xmatters-delivery")) }
        let bodies = try update.requests.map { try object(String(decoding: $0.body, as: UTF8.self)) }
        #expect(bodies.count == 4)
        let devices = Set(bodies.compactMap { $0["deviceId"] as? Int })
        #expect(devices.count == 1 && devices.allSatisfy { $0 > 0 && $0 < 1 << 53 })
        for request in update.requests {
            let body = String(decoding: request.body, as: UTF8.self)
            let id = try #require(request["webhook-id"]?.split(separator: "_").last)
            #expect(body.contains("\"eventIdentifier\":\(id),"))
        }
    }
}
