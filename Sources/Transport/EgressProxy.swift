import CCurl
import Glibc

/// An HTTP proxy that all requests leave through (`CONNECT`, also for http). The proxy resolves names and so decides what
/// they lead to; here only literal addresses can still be refused, and no connection is made but to the proxy itself.
package struct EgressProxy: Sendable {
    let url: String
    let sockets: [SocketAddress]

    /// Why a proxy cannot be used.
    package struct Refusal: Error, Sendable, CustomStringConvertible {
        package let description: String
    }

    /// Reads `http://host:port` and resolves the host, once: a proxy that moves needs a restart.
    package init(_ url: String) throws(Refusal) {
        let target: TargetURL
        do throws(TargetURL.Refusal) { target = try TargetURL(url) } catch {
            throw Refusal(description: "the proxy's URL \(error)")
        }
        guard target.scheme == "http" else { throw Refusal(description: "the proxy's URL must begin with http://") }
        self.url = url
        sockets = Self.resolve(target)
        if sockets.isEmpty { throw Refusal(description: "the proxy's host \(target.host) has no address") }
    }

    private static func resolve(_ target: TargetURL) -> [SocketAddress] {
        let host = target.host.hasPrefix("[") ? String(target.host.dropFirst().dropLast()) : target.host
        return IPAddress.resolve(host).map { SocketAddress($0, port: target.port) }
    }
}
