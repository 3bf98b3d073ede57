import CCurl
import Glibc

/// An HTTP proxy that all requests go through (`CONNECT`, even for http). The proxy resolves names
/// and so decides on their addresses; here only literal addresses can still be refused, and the
/// only connection is to the proxy itself.
package struct EgressProxy: Sendable {
    /// The proxy's URL without credentials.
    let url: String
    /// Our credentials at the proxy (Basic).
    let user: String?
    let password: String?
    let sockets: [SocketAddress]

    /// Why a proxy cannot be used.
    package struct ValidationError: Error, Sendable, CustomStringConvertible {
        package let description: String
    }

    /// Reads `http://host:port` or `http://user:password@host:port`, both percent-encoded where
    /// they have to be, and resolves the host, once: a proxy that moves needs a restart.
    package init(_ text: String) throws(ValidationError) {
        let (url, userInfo) = Self.split(text)
        let parts =
            userInfo?.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false).map(String.init) ?? []
        user = try parts.first.map(Self.decoded)
        password = try parts.dropFirst().first.map(Self.decoded)
        let target: TargetURL
        do throws(TargetURL.ValidationError) { target = try TargetURL(url) } catch {
            throw ValidationError(description: "the proxy's URL \(error)")
        }
        guard target.scheme == "http" else {
            throw ValidationError(description: "the proxy's URL must begin with http://")
        }
        self.url = url
        sockets = Self.resolve(target)
        if sockets.isEmpty { throw ValidationError(description: "the proxy's host \(target.host) has no address") }
    }

    /// The URL without the part before its last at sign, which only credentials can contain.
    private static func split(_ text: String) -> (url: String, userInfo: String?) {
        guard let scheme = text.firstRange(of: "://") else { return (text, nil) }
        let authority = text[scheme.upperBound...].prefix { $0 != "/" && $0 != "?" }
        guard let at = authority.lastIndex(of: "@") else { return (text, nil) }
        return (String(text[..<scheme.upperBound] + text[authority.index(after: at)...]), String(authority[..<at]))
    }

    private static func decoded(_ text: String) throws(ValidationError) -> String {
        var bytes: [UInt8] = []
        var rest = Array(text.utf8)[...]
        while let byte = rest.popFirst() {
            if byte != UInt8(ascii: "%") {
                bytes.append(byte)
            } else if rest.count >= 2, let value = UInt8(String(decoding: rest.prefix(2), as: UTF8.self), radix: 16) {
                bytes.append(value)
                rest = rest.dropFirst(2)
            } else {
                throw ValidationError(
                    description: "the proxy's user or password has a percent sign that encodes nothing")
            }
        }
        guard bytes.allSatisfy({ $0 >= 0x20 && $0 != 0x7F }), let text = String(validating: bytes, as: UTF8.self) else {
            throw ValidationError(
                description: "the proxy's user or password contains a control character, or is not UTF-8")
        }
        return text
    }

    private static func resolve(_ target: TargetURL) -> [SocketAddress] {
        let host = target.host.hasPrefix("[") ? String(target.host.dropFirst().dropLast()) : target.host
        return IPAddress.resolve(host).map { SocketAddress($0, port: target.port) }
    }
}
