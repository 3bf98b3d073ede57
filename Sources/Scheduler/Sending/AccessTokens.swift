import Bytewise
import Outbox
import Synchronization
import Templates
import Transport

/// Access tokens from the OAuth2 client credentials grant (RFC 6749 4.4), fetched when a request
/// needs one, by the same transport and so under the same address policy, and kept until shortly
/// before they expire. However many requests wait for a token, one asks for it.
final class AccessTokens: Sendable {
    struct Token: Sendable {
        let value: String
        fileprivate let client: OAuthClient
        fileprivate let serial: Int
        /// It took the place of one that a receiver had refused: another refusal is not the token's
        /// fault.
        fileprivate let isReplacement: Bool
    }

    /// Why there is no token. Names the token URL, no secret.
    struct Failure: Error, CustomStringConvertible {
        let description: String
        /// What kept us from asking, when it was we ourselves: then nothing was tried.
        var ours: HTTPExchange.Failure?
    }

    typealias Completion = @Sendable (Result<Token, Failure>) -> Void

    private struct Entry {
        var token: Token?
        var usableUntil = ContinuousClock.now
        /// A receiver refused the last one, and none has accepted one since.
        var wasRefused = false
        var waiting: [Completion] = []
    }

    private struct State {
        var entries: [OAuthClient: Entry] = [:]
        var lastSerial = 0
    }

    private let transport: Transport
    private let state = Mutex(State())

    /// How long asking may take; a delivery that waits for it must still end within its lease.
    private static let timeout = Duration.seconds(10)

    init(transport: Transport) { self.transport = transport }

    /// Gives the completion a token: at once when one is known, otherwise on the transport thread.
    ///
    /// - Parameter party: the customer that asks, whose turn it is when the token endpoint's name
    ///   is looked up.
    func token(for client: OAuthClient, of party: ExactText, _ completion: @escaping Completion) {
        let (known, isFirst) = state.withLock { state -> (Token?, Bool) in
            var entry = state.entries[client] ?? Entry()
            if let token = entry.token, entry.usableUntil > .now { return (token, false) }
            entry.waiting.append(completion)
            let isFirst = entry.waiting.count == 1
            state.entries[client] = entry
            return (nil, isFirst)
        }
        if let known { return completion(.success(known)) }
        if isFirst { fetch(client, of: party) }
    }

    /// Forgets a token that a receiver answered with 401; true when a new one is worth another try
    /// at once.
    func reject(_ token: Token) -> Bool {
        state.withLock { state in
            var entry = state.entries[token.client] ?? Entry()
            if entry.token?.serial == token.serial { entry.token = nil }
            entry.wasRefused = true
            state.entries[token.client] = entry
            // Asked of the token itself: others may have been refused at the same time, and each is
            // repeated once.
            return !token.isReplacement
        }
    }

    /// A receiver accepted the token.
    func accept(_ token: Token) {
        state.withLock { state in
            if state.entries[token.client]?.token?.serial == token.serial,
                state.entries[token.client]?.wasRefused == true
            {
                state.entries[token.client]?.wasRefused = false
            }
        }
    }

    private func fetch(_ client: OAuthClient, of party: ExactText) {
        var request: HTTPRequest
        do { request = try client.request(timeout: Self.timeout) } catch {
            return finish(client, .failure(Failure(description: "the token request cannot be built: \(error)")))
        }
        request.party = party
        request.affinity = party.hashValue
        transport.submit(request) { exchange in
            self.finish(client, Self.read(exchange, of: client))
        }
    }

    private func finish(_ client: OAuthClient, _ result: Result<(value: String, lifetime: Duration), Failure>) {
        let (answer, waiting) = state.withLock { state -> (Result<Token, Failure>, [Completion]) in
            var entry = state.entries[client] ?? Entry()
            let waiting = entry.waiting
            entry.waiting = []
            let answer: Result<Token, Failure>
            switch result {
            case .success(let (value, lifetime)):
                state.lastSerial += 1
                let token = Token(
                    value: value, client: client, serial: state.lastSerial, isReplacement: entry.wasRefused)
                entry.token = token
                entry.usableUntil = .now + lifetime - max(.seconds(60), lifetime / 10)
                answer = .success(token)
            case .failure(let failure): answer = .failure(failure)
            }
            state.entries[client] = entry
            return (answer, waiting)
        }
        for completion in waiting { completion(answer) }
    }

    /// Reads the response of a token endpoint (RFC 6749 5.1 and 5.2).
    static func read(
        _ exchange: HTTPExchange, of client: OAuthClient
    ) -> Result<(value: String, lifetime: Duration), Failure> {
        func failure(_ reason: String) -> Result<(value: String, lifetime: Duration), Failure> {
            let place = client.tokenURL.text.prefix { $0 != "?" }
            return .failure(Failure(description: "no access token from \(place): \(reason)"))
        }
        // What was sent is the token endpoint's to answer for.
        if let failure = exchange.failure,
            failure == .cancelled || failure == .localResources && !exchange.mayHaveBeenSent
        {
            return .failure(Failure(description: exchange.message ?? failure.rawValue, ours: failure))
        }
        guard let status = exchange.status else {
            return failure("\((exchange.failure ?? .protocolError).rawValue), \(exchange.message ?? "no response")")
        }
        let mark: [UInt8] = [0xEF, 0xBB, 0xBF]
        let json = try? JSON(exchange.body.starts(with: mark) ? Array(exchange.body.dropFirst(3)) : exchange.body)
        // An error code is one of a few words; anything else may be anything. Some servers say it
        // with a 200.
        let code = json?.value(at: ["error"])?.text ?? ""
        let isCode = !code.isEmpty && code.utf8.allSatisfy { $0 == UInt8(ascii: "_") || (0x61...0x7A).contains($0) }
        guard (200...299).contains(status), !isCode else {
            return failure("HTTP \(status)" + (isCode ? ", \(code.prefix(40))" : ""))
        }
        guard exchange.isBodyComplete, let json else { return failure("the response is not JSON") }
        if let type = json.value(at: ["token_type"]) {
            guard case .string(let type) = type.kind, type.lowercased() == "bearer" else {
                return failure("the token's type is not bearer")
            }
        }
        guard case .string(let value)? = json.value(at: ["access_token"])?.kind, !value.isEmpty else {
            return failure("the response has no access_token")
        }
        guard value.utf8.count <= HTTPHeader.maxTokenLength else {
            return failure(
                "the token has \(value.utf8.count) bytes, and at most \(HTTPHeader.maxTokenLength) can be sent")
        }
        guard value.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F }) else {
            return failure("the token is none that a header can hold")
        }
        let seconds = json.value(at: ["expires_in"]).flatMap { Double($0.text) } ?? 3600
        return .success((value, .seconds(seconds > 0 ? min(seconds, 86_400) : 3600)))
    }
}
