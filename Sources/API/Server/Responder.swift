import Crypto
import HTTPTypes
import Hummingbird
import HummingbirdCore
import Logging
import NIOCore
import Operator
import Outbox
import Postgres

/// What the server hands to the responder with each request.
struct CallContext: InitializableFromSource {
    let channel: any Channel
    let logger: Logger

    init(source: ApplicationRequestContextSource) { (channel, logger) = (source.channel, source.logger) }
}

/// Answers one request, in the order of the contract: framing 400, route 404 and 405, caller 401,
/// rate 429, scope 403, length 413, media type 415, body 400, and then what the use case says.
struct APIResponder: HTTPResponder {
    let table: RouteTable
    let outbox: Operator
    let known = KnownTokens()
    let buckets = TokenBuckets()

    func respond(to request: Request, context: CallContext) async throws -> Response {
        let requestID = RequestIdentity.of(request.headers[values: HTTPField.Name.requestID].first)
        let path = request.head.path.map { String($0.prefix { $0 != "?" }) } ?? "/"
        var answer: Answer
        do {
            answer = try await self.answer(request, context)
            answer.headers.append(("X-Request-Id", requestID))
        } catch {
            let refusal: Refusal
            if let known = Refusal(error) {
                refusal = known
            } else {
                context.logger.error(
                    "a call failed for a reason of ours",
                    metadata: ["request": "\(requestID)", "path": "\(path)", "error": "\(error)"])
                refusal = Refusal(.internal, "this is a fault of the service; its log has the request's id")
            }
            answer = refusal.answer(instance: path, requestID: requestID)
        }
        return response(answer, to: request)
    }

    private func response(_ answer: Answer, to request: Request) -> Response {
        var headers = HTTPFields()
        for (name, value) in answer.headers {
            if let name = HTTPField.Name(name) { headers.append(HTTPField(name: name, value: value)) }
        }
        let hasBody = answer.status != 204 && answer.status != 304
        // What is left of a body is read and thrown away before the next request: but not much.
        let left =
            request.headers[.contentLength].map { Int($0) ?? .max }
            ?? (request.headers.contains(.transferEncoding) ? .max : 0)
        if answer.status >= 400, left > 64 * 1024 { headers[.connection] = "close" }
        let body =
            hasBody && request.method != .head
            ? ResponseBody(byteBuffer: ByteBuffer(bytes: answer.body)) : ResponseBody()
        var response = Response(status: .init(code: answer.status), headers: headers, body: body)
        // The initialiser counts the body that is sent, and HEAD sends none.
        if hasBody { response.headers[.contentLength] = "\(answer.body.count)" }
        return response
    }

    private func answer(_ request: Request, _ context: CallContext) async throws -> Answer {
        let target = try Target(request.head.path ?? "/")
        let (route, names): (Route, [String: String])
        switch table.match(request.method.rawValue, target.segments) {
        case .route(let found, let named): (route, names) = (found, named)
        case .otherMethods(let methods):
            let allowed = methods.joined(separator: ", ")
            if request.method == .options { return Answer.empty.with("Allow", allowed) }
            var refusal = Refusal(.methodNotAllowed, "this route takes \(allowed)")
            refusal.headers.append(("Allow", allowed))
            throw refusal
        case .none: throw Refusal(.notFound, "there is no such route")
        }
        let (token, standing) = try await caller(request, route)
        if let standing, !standing.isAllowed {
            var refusal = Refusal(.rateLimited, "this token makes more calls than it may")
            refusal.headers = [("Retry-After", "\(standing.wait)")] + fields(standing)
            throw refusal
        }
        try check(target, route)
        let body = try await body(of: request, route, context)
        let actor = token.map { Actor(.token, $0.identity) } ?? .session
        let call = Call(
            target: target, names: names, ifMatch: request.headers[.ifMatch],
            idempotencyKey: request.headers[HTTPField.Name.idempotencyKey], contentType: request.headers[.contentType],
            body: body,
            token: token, outbox: outbox.acting(as: actor))
        var answer = try await route.handle(call)
        if let standing { answer.headers += fields(standing) }
        return answer
    }

    // MARK: The caller

    private func caller(_ request: Request, _ route: Route) async throws -> (Token?, TokenBuckets.Standing?) {
        let credentials = try Credentials(request.headers[values: .authorization])
        guard case .scope(let scope) = route.access else { return (nil, nil) }
        var found: Token?
        if case .token(let text) = credentials {
            let hash = text.hash
            found = try await known.token(hash) { try await outbox.tokens.valid(hash) }
        }
        guard let token = found else {
            var refusal = Refusal(
                .unauthenticated, "this takes a valid token", hint: "Send it as: Authorization: Bearer obx_…")
            let wrong = credentials == .none ? "" : ", error=\"invalid_token\""
            refusal.headers.append(("WWW-Authenticate", "Bearer realm=\"outbox\"\(wrong)"))
            throw refusal
        }
        // No route knows customers' tokens yet: such a token, made by a later version, opens
        // nothing.
        guard token.customerID == nil, token.endpoints == nil else {
            throw Refusal(.forbidden, "this version does not serve tokens that are bound to a customer or to endpoints")
        }
        let standing = buckets.take(token)
        guard standing.isAllowed, !token.allows(scope) else { return (token, standing) }
        var refusal = Refusal(.forbidden, "this takes a token with the scope \(scope.rawValue)")
        refusal.members.append(("required_scope", "\"\(scope.rawValue)\""))
        refusal.headers.append(
            ("WWW-Authenticate", "Bearer realm=\"outbox\", error=\"insufficient_scope\", scope=\"\(scope.rawValue)\""))
        throw refusal
    }

    /// draft-ietf-httpapi-ratelimit-headers.
    private func fields(_ standing: TokenBuckets.Standing) -> [(name: String, value: String)] {
        [
            ("RateLimit-Policy", "\"token\";q=\(standing.burst);w=2"),
            ("RateLimit", "\"token\";r=\(standing.remaining);t=\(standing.wait)"),
        ]
    }

    // MARK: The request

    private func check(_ target: Target, _ route: Route) throws(Refusal) {
        var seen: Set<String> = []
        for (name, _) in target.parameters {
            guard route.parameters.contains(name) else {
                let known = route.parameters.sorted()
                throw Refusal(
                    .unknownParameter, "there is no parameter \(name.prefix(64))",
                    hint: known.isEmpty ? nil : "Known here: \(known.joined(separator: ", "))",
                    at: .parameter(String(name.prefix(64))))
            }
            guard seen.insert(name).inserted else {
                throw Refusal(.malformedRequest, "\(name) is given twice", at: .parameter(name))
            }
        }
    }

    private func body(of request: Request, _ route: Route, _ context: CallContext) async throws -> [UInt8] {
        let length = request.headers[.contentLength].map { Int($0) ?? .max }
        func tooLarge() -> Refusal {
            var refusal = Refusal(.payloadTooLarge, "the body has more than \(route.maxBody) bytes")
            refusal.members.append(("limit_bytes", "\(route.maxBody)"))
            return refusal
        }
        if let length, length > route.maxBody { throw tooLarge() }
        if length ?? 0 == 0, !request.headers.contains(.transferEncoding) { return [] }
        if let type = request.headers[.contentType]?.split(separator: ";").first.map({ String($0).trimmed.lowercased() }
        ),
            !route.mediaTypes.contains(type)
        {
            throw Refusal(
                .unsupportedMediaType, "a body here is \(route.mediaTypes.joined(separator: " or "))",
                at: .header("Content-Type"))
        }
        if let coding = request.headers[.contentEncoding], coding.lowercased() != "identity" {
            throw Refusal(.unsupportedMediaType, "the body must not be compressed", at: .header("Content-Encoding"))
        }
        context.channel.triggerUserOutboundEvent(BodyWanted(), promise: nil)
        var bytes: [UInt8] = []
        bytes.reserveCapacity(length ?? 0)
        for try await part in request.body {
            if bytes.count + part.readableBytes > route.maxBody { throw tooLarge() }
            bytes += part.readableBytesView
        }
        // Half of it is not what was to be carried out.
        if let length, bytes.count != length {
            throw Refusal(.malformedRequest, "the body ended after \(bytes.count) of \(length) bytes")
        }
        return bytes
    }
}

extension HTTPField.Name {
    static let requestID = constant("X-Request-Id")
    static let idempotencyKey = constant("Idempotency-Key")

    private static func constant(_ name: String) -> HTTPField.Name {
        guard let name = HTTPField.Name(name) else { preconditionFailure("\(name) is a field's name") }
        return name
    }
}
