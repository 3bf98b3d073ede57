import Foundation
import Outbox
import StandardWebhooks
import Testing

/// The receiver's side of Standard Webhooks.
@Suite(.timeLimit(.minutes(15))) struct VerifierTests {
    private static let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    private static let seed =
        "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
    private static let publicKey = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
    private static let id = "msg_p5jXN8AQM9LWM0D4loKWxJek"
    private static let body = Array(#"{"test": 2432232314}"#.utf8)
    private static let asymmetric =
        "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="

    @Test func `the ed25519 vector comes out and verifies with the public key alone`() throws {
        let secret = try SigningSecret(Self.seed)
        #expect(secret.publicKey == Self.publicKey)
        #expect(secret.signature(id: Self.id, timestamp: 1_614_265_330, body: Self.body) == Self.asymmetric)
        let verifier = WebhookVerifier(keys: [try VerificationKey(Self.publicKey)])
        try verifier.verify(
            Self.body, id: Self.id, timestamp: "1614265330", signatures: Self.asymmetric, now: 1_614_265_330)
        #expect(try SigningSecret(secret.revealed).publicKey == Self.publicKey)
    }

    @Test func `a symmetric vector over bytes that are no text`() throws {
        let secret = try SigningSecret(Self.secret)
        #expect(
            secret.signature(id: Self.id, timestamp: 1_614_265_330, body: [0x00, 0xFF, 0x0A])
                == "v1,39b0ld9uZvtqJHIOzSrU5UqLr3HwNY6kXWgy9k+judg=")
    }

    @Test(arguments: [
        (Int64(-301), WebhookVerifier.VerificationError.tooOld as WebhookVerifier.VerificationError?), (-300, nil),
        (0, nil), (300, nil),
        (301, .tooNew),
    ])
    func `the tolerance is 300 seconds both ways`(offset: Int64, refusal: WebhookVerifier.VerificationError?) throws {
        let secret = SigningSecret.generate()
        let signed = 1_700_000_000 + offset
        let signature = secret.signature(id: "a", timestamp: signed, body: [1])
        let verifier = WebhookVerifier(keys: [secret.verificationKey])
        func verify() throws {
            try verifier.verify([1], id: "a", timestamp: "\(signed)", signatures: signature, now: 1_700_000_000)
        }
        if let refusal { #expect(throws: refusal) { try verify() } } else { try verify() }
    }

    @Test(arguments: ["", "abc", "+1", "0x10", "-5", "1e9", "99999999999999999999", "1.5", " 1"])
    func `a timestamp that is not one is malformed`(timestamp: String) {
        let verifier = WebhookVerifier(keys: [SigningSecret.generate().verificationKey])
        let refusal = #expect(throws: WebhookVerifier.VerificationError.self) {
            try verifier.verify([], id: "a", timestamp: timestamp, signatures: "v1,x", now: 1)
        }
        if case .malformed = refusal {} else { Issue.record("\(String(describing: refusal))") }
    }

    @Test func `an id with a dot could stand for another split of the same bytes`() throws {
        let secret = SigningSecret.generate()
        let signature = secret.signature(id: "a", timestamp: 1, body: Array("2.x".utf8))
        #expect(secret.signature(id: "a.1", timestamp: 2, body: Array("x".utf8)) == signature)
        #expect(throws: WebhookVerifier.VerificationError.malformed("webhook-id contains a dot")) {
            try WebhookVerifier(keys: [secret.verificationKey])
                .verify(Array("x".utf8), id: "a.1", timestamp: "2", signatures: signature, now: 2)
        }
    }

    @Test func `during a rotation a receiver with either secret is satisfied, and one with neither is not`() throws {
        let (old, new) = (SigningSecret.generate(), SigningSecret.generate())
        let signatures = [new, old].map { $0.signature(id: "a", timestamp: 5, body: [7]) }.joined(separator: " ")
        for key in [old, new] {
            try WebhookVerifier(keys: [key.verificationKey])
                .verify([7], id: "a", timestamp: "5", signatures: signatures, now: 5)
        }
        #expect(throws: WebhookVerifier.VerificationError.wrongSignature) {
            try WebhookVerifier(keys: [SigningSecret.generate().verificationKey])
                .verify([7], id: "a", timestamp: "5", signatures: signatures, now: 5)
        }
    }

    @Test func `every single bit matters, in both schemes`() throws {
        for secret in [SigningSecret.generate(), SigningSecret.generateAsymmetric()] {
            let verifier = WebhookVerifier(keys: [secret.verificationKey])
            let good = secret.signature(id: "a", timestamp: 5, body: [7, 8])
            try verifier.verify([7, 8], id: "a", timestamp: "5", signatures: good, now: 5)
            let comma = try #require(good.firstIndex(of: ","))
            var code = [UInt8](try #require(Data(base64Encoded: String(good[good.index(after: comma)...]))))
            for bit in 0..<(code.count * 8) {
                code[bit / 8] ^= 1 << UInt8(bit % 8)
                let changed = good[...comma] + Data(code).base64EncodedString()
                #expect(throws: WebhookVerifier.VerificationError.wrongSignature) {
                    try verifier.verify([7, 8], id: "a", timestamp: "5", signatures: String(changed), now: 5)
                }
                code[bit / 8] ^= 1 << UInt8(bit % 8)
            }
            // The label belongs to the scheme.
            #expect(throws: WebhookVerifier.VerificationError.wrongSignature) {
                let other = (good.hasPrefix("v1a") ? "v1," : "v1a,") + good[good.index(after: comma)...]
                try verifier.verify([7, 8], id: "a", timestamp: "5", signatures: other, now: 5)
            }
        }
    }

    @Test func `missing headers are named`() {
        let verifier = WebhookVerifier(keys: [SigningSecret.generate().verificationKey])
        for missing in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
            #expect(throws: WebhookVerifier.VerificationError.malformed("the header \(missing) is missing")) {
                try verifier.verify([], headers: { $0 == missing ? nil : "1" }, now: 1)
            }
        }
    }
}
