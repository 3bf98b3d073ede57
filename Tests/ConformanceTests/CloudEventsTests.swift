import Foundation
import Outbox
import Postgres
import Receiver
import TestSupport
import Testing

/// CloudEvents 1.0 over HTTP.
@Suite(.timeLimit(.minutes(15))) struct CloudEventsTests {
    private static let script =
        #"SELECT outbox.publish('order.created', '{"z":1.50,"a":"é"}', customer_id => 'acme', identity => 'tom "é" %', occurred_at => '2026-10-04T10:00:00.5Z', transaction_id => '9cc8c8d0-3d24-46f4-b63c-8c5d092b7205')"#

    @Test func `structured mode is one JSON object with the data as it was published`() async throws {
        let delivered = try await TestCluster.database().deliver(Self.script) { $0.format = .cloudevents }
        let request = delivered.requests[0]
        #expect(request["Content-Type"] == "application/cloudevents+json; charset=utf-8")
        let id = try #require(request["webhook-id"])
        let body = try #require(try JSONSerialization.jsonObject(with: Data(request.body)) as? [String: Any])
        #expect(body["specversion"] as? String == "1.0")
        #expect(body["id"] as? String == id)
        #expect(body["type"] as? String == "order.created")
        #expect(body["source"] as? String == "urn:outbox:" + id.split(separator: "_")[1])
        #expect(body["time"] as? String == "2026-10-04T10:00:00.500000Z")
        #expect(body["datacontenttype"] as? String == "application/json")
        #expect(body["identity"] as? String == "tom \"é\" %")
        #expect(body["transactionid"] as? String == "9cc8c8d0-3d24-46f4-b63c-8c5d092b7205")
        #expect(delivered.body.contains(#""data":{"z":1.50,"a":"é"}"#))
        #expect(body.keys.allSatisfy { $0.utf8.allSatisfy { (0x61...0x7A).contains($0) } })
    }

    @Test func `binary mode has the attributes as headers and the data as the body`() async throws {
        let delivered = try await TestCluster.database().deliver(Self.script) { $0.format = .cloudeventsBinary }
        let request = delivered.requests[0]
        #expect(delivered.body == #"{"z":1.50,"a":"é"}"#)
        #expect(request["Content-Type"] == "application/json")
        #expect(request["ce-specversion"] == "1.0")
        #expect(request["ce-id"] == request["webhook-id"])
        #expect(request["ce-type"] == "order.created")
        #expect(request["ce-customerid"] == "acme")
        #expect(request["ce-identity"] == "tom%20%22%C3%A9%22%20%25")
    }
}
