import Foundation
import Outbox
import Receiver
import StandardWebhooks
import TestSupport
import Testing

@Suite(.timeLimit(.minutes(15))) struct StandardWebhooksTests {
    /// `scripts/test` installs the reference implementation (PyPI `standardwebhooks`) and says
    /// where.
    private static let python = ProcessInfo.processInfo.environment["OUTBOX_TEST_PYTHON"].flatMap {
        $0.isEmpty ? nil : $0
    }

    @Test(.enabled(if: python != nil, "OUTBOX_TEST_PYTHON is not set; scripts/test sets it"))
    func `the reference library verifies a live delivery, and refuses a changed one`() async throws {
        let database = try await TestCluster.database()
        let ledger = try Ledger()
        let secret = try await database.endpoint("e", url: ledger.url).secret
        try await TestWorker.run(database) {
            try await database.publish(after: #"{"text": "héllo ☃"}"#)
            #expect(try await eventually { try await database.deliveries("delivered") == 1 })
        }
        let request = try #require(ledger.all.first)
        let program = """
            import json, sys
            from standardwebhooks import Webhook, WebhookVerificationError
            given = json.load(sys.stdin)
            hook = Webhook(given["secret"])
            hook.verify(given["body"], given["headers"])
            try:
                hook.verify(given["body"] + " ", given["headers"])
                sys.exit(3)
            except WebhookVerificationError:
                print("verified")
            """
        let headers = Dictionary(
            request.headers.map { ($0.name.lowercased(), $0.value) }, uniquingKeysWith: { first, _ in first })
        let given: [String: Any] = [
            "secret": secret.revealed, "body": String(decoding: request.body, as: UTF8.self), "headers": headers,
        ]
        let input = String(decoding: try JSONSerialization.data(withJSONObject: given), as: UTF8.self)
        let child = try ChildProcess(try #require(Self.python), ["-c", program], input: input)
        #expect(await child.wait() == .exit(0), "\(child.errors)")
        #expect(child.output == "verified\n")
        ledger.receiver.stop()
    }
}
