import Hummingbird
import HummingbirdCore
package import Logging
import NIOCore
import NIOPosix
package import Operator
import ServiceLifecycle

/// The HTTP API, as a service of its process.
package struct APIServer: Service {
    private let outbox: Operator
    private let host: String
    private let port: Int
    private let limits: ConnectionLimits
    private let logger: Logger
    private let ready: @Sendable (Int) -> Void

    /// So many connections are accepted at a time; others wait in the kernel's queue.
    static let maxConnections = 12_000

    /// - Parameters:
    ///   - outbox: with a pool of its own, and the rights of an operator.
    ///   - port: 0 for any that is free.
    ///   - ready: is told the port when the server listens.
    package init(
        _ outbox: Operator, host: String, port: Int, limits: ConnectionLimits = ConnectionLimits(), logger: Logger,
        ready: @escaping @Sendable (Int) -> Void
    ) {
        (self.outbox, self.host, self.port, self.limits) = (outbox, host, port, limits)
        (self.logger, self.ready) = (logger, ready)
    }

    package func run() async throws {
        var quiet = logger
        quiet.logLevel = max(logger.logLevel, .warning)
        let app = Application(
            responder: APIResponder(table: .all, outbox: outbox),
            server: HTTPServerBuilder { [limits] responder in APIChannel(responder: responder, limits: limits) },
            configuration: ApplicationConfiguration(
                address: .hostname(host, port: port),
                availableConnectionsDelegate: .maximum(Self.maxConnections, logger: quiet)),
            onServerRunning: { channel in ready(channel.localAddress?.port ?? port) },
            logger: quiet)
        try await app.run()
    }
}
