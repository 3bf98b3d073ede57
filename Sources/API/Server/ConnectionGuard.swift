package import NIOCore
import NIOHTTP1

/// Limits of a connection, as each of them is told to its client.
package struct ConnectionLimits: Sendable {
    /// The request line's target, in bytes.
    var target = 8 * 1024
    /// The header fields of a request: their number, and their bytes together.
    var fields = 100
    var fieldBytes = 32 * 1024
    /// From a request's first byte to the end of its header.
    package var head = TimeAmount.seconds(10)
    /// For a body, and one second more for each KiB that has come.
    package var body = TimeAmount.seconds(30)
    /// Between two requests.
    package var idle = TimeAmount.seconds(75)
    /// For a response to be made and taken, or the next part of several.
    package var answer = TimeAmount.seconds(60)

    package init() {}
}

/// The handler wants the body now: whoever waits for `100 Continue` gets it.
struct BodyWanted: Sendable {}

/// Stands between the bytes of a connection and the requests in them: what is not HTTP, too large
/// or too slow is answered here, and the connection is closed.
///
///     idle ─ first byte ─► head ─ its end ─► body ─ its end ─► answering ─► idle
///
/// Each state has its time, and a refusal is the last thing that the connection says: it is written
/// when earlier responses are out, and what still comes is read and thrown away for a while, since
/// a reset would take the refusal with it.
final class ConnectionGuard: ChannelDuplexHandler {
    typealias InboundIn = HTTPServerRequestPart
    typealias InboundOut = HTTPServerRequestPart
    typealias OutboundIn = HTTPServerResponsePart
    typealias OutboundOut = HTTPServerResponsePart

    private enum Reading { case idle, head, body, answering, closed }

    private let limits: ConnectionLimits
    private var context: ChannelHandlerContext?
    private var reading = Reading.idle
    private var timer: Scheduled<Void>?
    private var bodyBegan = NIODeadline.now()
    private var bodyBytes = 0
    /// For each request that was passed on and is not answered yet, whether the connection ends
    /// with it.
    private var closes: [Bool] = []
    private var unanswered: Int { closes.count }
    /// To be written when all earlier requests are answered.
    private var refusal: Refusal?
    private var wantsContinue = false

    init(_ limits: ConnectionLimits) { self.limits = limits }

    func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
        wait(limits.head, context)
    }

    func handlerRemoved(context: ChannelHandlerContext) {
        self.context = nil
        timer?.cancel()
    }

    func channelInactive(context: ChannelHandlerContext) {
        timer?.cancel()
        context.fireChannelInactive()
    }

    /// The first byte of a request has come.
    func bytesArrived() {
        guard case .idle = reading, let context else { return }
        reading = .head
        wait(limits.head, context)
    }

    // MARK: Requests

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        if case .closed = reading { return }
        switch unwrapInboundIn(data) {
        case .head(let head):
            // Nothing behind a request that ends the connection is carried out.
            if closes.last == true {
                reading = .closed
                return
            }
            if let refusal = check(head) { return refuse(refusal, context) }
            let hasBody =
                head.headers.contains(name: "transfer-encoding")
                || (head.headers.first(name: "content-length").flatMap { Int($0) } ?? 0) > 0
            wantsContinue =
                hasBody && head.headers[canonicalForm: "expect"].contains { $0.lowercased() == "100-continue" }
            // After an upgrade that we do not take, the decoder reads no further request.
            closes.append(!head.isKeepAlive || head.headers.contains(name: "upgrade"))
            reading = .body
            (bodyBegan, bodyBytes) = (.now(), 0)
            wait(limits.body, context)
            context.fireChannelRead(data)
        case .body(let part):
            bodyBytes += part.readableBytes
            wantsContinue = false
            context.fireChannelRead(data)
        case .end:
            reading = .answering
            wait(limits.answer, context)
            context.fireChannelRead(data)
            if unanswered == 0 { becomeIdle(context) }
        }
    }

    private func check(_ head: HTTPRequestHead) -> Refusal? {
        if head.uri.utf8.count > limits.target {
            return Refusal(.uriTooLong, "the request's target has more than \(limits.target) bytes")
        }
        let bytes = head.headers.reduce(0) { $0 + $1.name.utf8.count + $1.value.utf8.count + 4 }
        if head.headers.count > limits.fields || bytes > limits.fieldBytes {
            return Refusal(
                .headersTooLarge, "the header has more than \(limits.fields) fields or \(limits.fieldBytes) bytes")
        }
        guard head.version.major == 1 else {
            return Refusal(.malformedRequest, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        }
        if head.version.minor >= 1, head.headers[canonicalForm: "host"].count != 1 {
            return Refusal(.malformedRequest, "the request needs exactly one Host")
        }
        guard head.uri.hasPrefix("/") else {
            return Refusal(.malformedRequest, "the request's target must begin with a slash")
        }
        return nil
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        if case .closed = reading { return }
        if case .body = reading, error is HTTPParserError {
            return endBody(Refusal(.malformedRequest, "the body is not what HTTP says: \(error)"), context)
        }
        switch error {
        case HTTPParserError.headerOverflow:
            refuse(Refusal(.headersTooLarge, "the header is larger than \(limits.fieldBytes) bytes"), context)
        case is HTTPParserError: refuse(Refusal(.malformedRequest, "this is not an HTTP request: \(error)"), context)
        default: context.fireErrorCaught(error)
        }
    }

    // MARK: Responses

    func write(context: ChannelHandlerContext, data: NIOAny, promise: EventLoopPromise<Void>?) {
        switch unwrapOutboundIn(data) {
        case .head(var head):
            if head.headers[canonicalForm: "connection"].contains(where: { $0.lowercased() == "close" }) {
                if !closes.isEmpty { closes[0] = true }
            } else if closes.first == true {
                head.headers.add(name: "connection", value: "close")
            }
            context.write(wrapOutboundOut(.head(head)), promise: promise)
        case .end:
            context.writeAndFlush(data, promise: promise)
            if case .answering = reading { wait(limits.answer, context) }
            let isLast = closes.isEmpty ? false : closes.removeFirst()
            if isLast {
                // Requests behind it are not answered (RFC 9112 9.6).
                linger(context)
            } else if unanswered == 0 {
                if let refusal {
                    write(refusal, context)
                } else if case .answering = reading {
                    becomeIdle(context)
                }
            }
        case .body: context.write(data, promise: promise)
        }
    }

    func triggerUserOutboundEvent(context: ChannelHandlerContext, event: Any, promise: EventLoopPromise<Void>?) {
        guard event is BodyWanted else { return context.triggerUserOutboundEvent(event, promise: promise) }
        if wantsContinue {
            wantsContinue = false
            context.writeAndFlush(
                wrapOutboundOut(.head(HTTPResponseHead(version: .http1_1, status: .continue))), promise: nil)
        }
        promise?.succeed()
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        // The server stops: what is answered ends, what is idle goes.
        if event is ChannelShouldQuiesceEvent {
            if closes.isEmpty { context.close(promise: nil) } else { closes[closes.count - 1] = true }
            return
        }
        context.fireUserInboundEventTriggered(event)
    }

    // MARK: Times

    private func becomeIdle(_ context: ChannelHandlerContext) {
        reading = .idle
        wait(limits.idle, context)
    }

    private func wait(_ time: TimeAmount, _ context: ChannelHandlerContext) {
        timer?.cancel()
        let loopBound = NIOLoopBound((self, context), eventLoop: context.eventLoop)
        timer = context.eventLoop.scheduleTask(in: time) {
            let (handler, context) = loopBound.value
            handler.timeIsUp(context)
        }
    }

    private func timeIsUp(_ context: ChannelHandlerContext) {
        switch reading {
        case .idle, .closed: context.close(promise: nil)
        case .head:
            refuse(
                Refusal(.requestTimeout, "the header did not come within \(limits.head.nanoseconds / 1_000_000_000) s"),
                context)
        case .body:
            let end = bodyBegan + limits.body + .seconds(Int64(bodyBytes / 1024))
            if end > .now() { return wait(end - .now(), context) }
            endBody(Refusal(.requestTimeout, "the body came too slowly"), context)
        case .answering: context.close(promise: nil)
        }
    }

    /// No more of the body comes. Whoever reads it answers, and with that the connection ends.
    private func endBody(_ refusal: Refusal, _ context: ChannelHandlerContext) {
        reading = .closed
        context.fireErrorCaught(refusal)
        if closes.isEmpty { return linger(context) }
        closes[closes.count - 1] = true
        wait(limits.answer, context)
    }

    // MARK: The end

    private func refuse(_ refusal: Refusal, _ context: ChannelHandlerContext) {
        timer?.cancel()
        reading = .closed
        if unanswered == 0 { write(refusal, context) } else { self.refusal = refusal }
    }

    private func write(_ refusal: Refusal, _ context: ChannelHandlerContext) {
        self.refusal = nil
        let answer = refusal.answer(instance: nil, requestID: RequestIdentity.new())
        var head = HTTPResponseHead(version: .http1_1, status: .init(statusCode: answer.status))
        for (name, value) in answer.headers { head.headers.add(name: name, value: value) }
        head.headers.add(name: "content-length", value: "\(answer.body.count)")
        head.headers.add(name: "connection", value: "close")
        context.write(wrapOutboundOut(.head(head)), promise: nil)
        context.write(wrapOutboundOut(.body(.byteBuffer(ByteBuffer(bytes: answer.body)))), promise: nil)
        context.writeAndFlush(wrapOutboundOut(.end(nil)), promise: nil)
        linger(context)
    }

    /// What still comes is thrown away until the client closes, for two seconds at most.
    private func linger(_ context: ChannelHandlerContext) {
        reading = .closed
        context.close(mode: .output, promise: nil)
        wait(.seconds(2), context)
    }
}

/// Tells the guard of a request's first byte.
final class FirstByte: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer

    private let connection: ConnectionGuard

    init(_ connection: ConnectionGuard) { self.connection = connection }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        connection.bytesArrived()
        context.fireChannelRead(data)
    }
}
