import ArgumentParser
import Foundation
import Outbox
import StandardWebhooks

struct Sign: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Sign standard input as Standard Webhooks; prints the three headers.")
    @Option(name: .long, help: "File with the secret (whsec_…) or private key (whsk_…).") var secretFile: String
    @Option(name: .long, help: "The webhook-id; no dots.") var id: String
    @Option(name: .long, help: "Seconds since the epoch; now by default.") var timestamp: Int64?

    func validate() throws {
        if id.isEmpty || id.utf8.contains(UInt8(ascii: ".")) || id.contains(where: { $0.isWhitespace }) {
            throw ValidationError("--id must have no dot and no white space")
        }
    }

    func run() async throws {
        let secret = try SigningSecret(String(decoding: try textArgument("@" + secretFile), as: UTF8.self))
        let body = try textArgument("-")
        let timestamp = timestamp ?? Int64(Date().timeIntervalSince1970)
        print("webhook-id: \(id)")
        print("webhook-timestamp: \(timestamp)")
        print("webhook-signature: \(secret.signature(id: id, timestamp: timestamp, body: body))")
    }
}

struct Verify: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Verify standard input against the three headers; exit 0 when it is genuine, 1 when not.")
    @Option(name: .long, help: "File with the secret (whsec_…) or public key (whpk_…).") var secretFile: String
    @Option(name: .long, help: "The webhook-id.") var id: String
    @Option(name: .long, help: "The webhook-timestamp.") var timestamp: String
    @Option(name: .long, help: "The webhook-signature.") var signature: String
    @Flag(name: .long, help: "Accept any timestamp, for a request of long ago.") var anyTime = false

    func run() async throws {
        let key = try VerificationKey(String(decoding: try textArgument("@" + secretFile), as: UTF8.self))
        let verifier = WebhookVerifier(keys: [key])
        let now = anyTime ? Int64(timestamp) ?? 0 : Int64(Date().timeIntervalSince1970)
        do {
            try verifier.verify(
                try textArgument("-"), id: id, timestamp: timestamp, signatures: signature, now: now)
        } catch let refusal as WebhookVerifier.VerificationError { throw Answer(message: "not verified: \(refusal)") }
        print("verified")
    }
}
