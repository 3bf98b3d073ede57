import API
import ArgumentParser
import Foundation
import Logging
import Outbox
import ServiceLifecycle

/// `outboxctl serve`: the HTTP API, without delivering.
struct Serve: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Serve the HTTP API until SIGTERM; nothing is delivered.",
        discussion: """
            Calls need a token: outboxctl token create. HTTP only: put it behind a proxy that ends TLS. Prints one line when \
            it listens, and exits 0 after SIGTERM or SIGINT, when calls under way have ended.
            """)

    @OptionGroup var options: GlobalOptions

    @Option(name: .long, help: "Address and port; port 0 takes one that is free.")
    var listen = "127.0.0.1:8080"

    /// So many calls are in the database at a time; the others wait for two seconds at most.
    private static let connections = 8

    func validate() throws { _ = try address }

    private var address: (host: String, port: Int) {
        get throws {
            guard let colon = listen.lastIndex(of: ":"), let port = Int(listen[listen.index(after: colon)...]),
                (0...65_535).contains(port), colon != listen.startIndex
            else { throw ValidationError("--listen must be an address and a port, as in 127.0.0.1:8080") }
            let host = String(listen[..<colon])
            return (host.hasPrefix("[") && host.hasSuffix("]") ? String(host.dropFirst().dropLast()) : host, port)
        }
    }

    func run() async throws {
        let logger = try LineLogHandler.logger(try Settings(options))
        let signals = await StopSignals(logger)
        raiseDescriptorLimit()
        let (host, port) = try address
        try await Session.operate(options, connections: Self.connections, patience: .seconds(2)) { desk in
            let server = APIServer(desk, host: host, port: port, logger: logger) { port in
                print(
                    "outbox: serving http://\(host.contains(":") ? "[\(host)]" : host):\(port) version=\(outboxVersion)"
                )
                fflush(nil)
            }
            try await serviceGroup(
                [
                    .init(
                        service: server, successTerminationBehavior: .gracefullyShutdownGroup,
                        failureTerminationBehavior: .gracefullyShutdownGroup),
                    .init(service: Stop(signals: signals), successTerminationBehavior: .gracefullyShutdownGroup),
                ], logger
            ).run()
        }
    }
}

/// Ends with the first signal, and so ends the others.
private struct Stop: Service {
    let signals: StopSignals

    func run() async { await signals.first() }
}
