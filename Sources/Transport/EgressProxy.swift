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

extension IPAddress {
    /// The addresses of a name, or the address itself, as this machine resolves it; blocks.
    package static func resolve(_ host: String) -> [IPAddress] {
        var hints = unsafe addrinfo()
        unsafe hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var list: UnsafeMutablePointer<addrinfo>?
        guard unsafe getaddrinfo(host, nil, &hints, &list) == 0 else { return [] }
        defer { unsafe freeaddrinfo(list) }
        var found: [IPAddress] = []
        var next = unsafe list
        while let entry = unsafe next {
            if let address = unsafe entry.pointee.ai_addr,
                let ip = unsafe IPAddress(UnsafeRawPointer(address), family: entry.pointee.ai_family)
            {
                found.append(ip)
            }
            unsafe next = entry.pointee.ai_next
        }
        return found
    }
}
