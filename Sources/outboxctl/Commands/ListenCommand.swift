import ArgumentParser
import Foundation
import Outbox
import Receiver
import StandardWebhooks
import Synchronization
import UnixSignals

/// `outboxctl listen`: a receiver to develop and try things with.
struct Listen: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "A local receiver that prints what arrives, and can verify, fail or be slow.")
    @Option(name: .long, help: "Port on 127.0.0.1; 0 for any free one.") var port: UInt16 = 9000
    @Option(name: .long, help: "Answer this share of the requests, 0 to 1, with a failure.") var failRate = 0.0
    @Option(name: .long, help: "Wait before answering.") var latency: DurationArgument?
    @Option(name: .long, help: "Answer with this status; with --fail-rate, the failures do.") var status: Int?
    @Option(
        name: .long, help: ArgumentHelp("Verify signatures with the secret in this file.", valueName: "secret-file"))
    var verify: String?
    @Option(name: .shortAndLong, help: "table or jsonl.") var output: Output = .table

    func validate() throws {
        guard (0...1).contains(failRate) else { throw ValidationError("--fail-rate must be 0 to 1") }
        if let status, !(200...599).contains(status) { throw ValidationError("--status must be 200 to 599") }
    }

    func run() async throws {
        let secret = try verify.map { try SigningSecret(String(decoding: try textArgument("@" + $0), as: UTF8.self)) }
        let count = Mutex(0)
        let receiver = try Receiver(port: port) { [self] request in
            let fails = failRate > 0 && Double.random(in: 0..<1) < failRate
            let answer = fails ? status ?? 500 : failRate > 0 ? 200 : status ?? 200
            let verdict = secret.map { judge(request, $0) }
            let status = verdict == "bad signature" ? 401 : answer
            let number = count.withLock { count in
                count += 1
                return count
            }
            report(number, request, status: status, verdict: verdict)
            fflush(nil)
            return Receiver.Response(status, delay: latency?.duration ?? .zero)
        }
        StandardError.say("outboxctl: listening on \(receiver.url)/")
        for await _ in await UnixSignalsSequence(trapping: .sigint, .sigterm) { break }
        receiver.stop()
    }

    private func judge(_ request: Receiver.Request, _ secret: SigningSecret) -> String {
        guard let id = request["webhook-id"], let time = request["webhook-timestamp"].flatMap({ Int64($0) }),
            let signatures = request["webhook-signature"],
            secret.verifies(signatures, id: id, timestamp: time, body: request.body)
        else { return "bad signature" }
        // The tolerance of the Standard Webhooks libraries, both ways.
        return abs(Int64(Date().timeIntervalSince1970) - time) <= 300 ? "verified" : "too old"
    }

    private func report(_ number: Int, _ request: Receiver.Request, status: Int, verdict: String?) {
        let body = String(decoding: request.body, as: UTF8.self)
        guard output == .table else {
            let fields = [
                ("number", "\(number)"), ("method", jsonString(request.method)), ("target", jsonString(request.target)),
                ("webhook_id", jsonString(request["webhook-id"] ?? "")),
                ("attempt", jsonString(request["outbox-attempt"] ?? "")),
                ("transaction_id", jsonString(request["outbox-transaction-id"] ?? "")), ("status", "\(status)"),
                ("verified", verdict.map { "\($0 == "verified")" } ?? "null"), ("body", jsonString(body)),
            ]
            return print("{" + fields.map { "\(jsonString($0.0)):\($0.1)" }.joined(separator: ",") + "}")
        }
        let id = printable(request["webhook-id"] ?? "-")
        print(
            "\(number)  \(request.method) \(printable(request.target))  \(id)  attempt \(printable(request["outbox-attempt"] ?? "-"))  → \(status)"
                + (verdict.map { "  \($0)" } ?? "") + "\n   \(printable(String(body.prefix(2000))))")
    }
}
