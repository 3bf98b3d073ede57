import Glibc

/// Which addresses a request may connect to. Checked on the socket's address at every new connection, where neither a
/// spelling, nor a name that resolves elsewhere the second time, nor a redirect can get around it.
///
/// Refused are all addresses that are not globally reachable unicast (IANA special-purpose registries, RFC 6890 and its
/// updates), and IPv6 forms that carry such an IPv4 address; `allowing` lets networks of one's own through.
package struct AddressPolicy: Sendable {
    private let allowed: [Network]
    private let refused: [SocketAddress]

    /// A policy that lets the given networks through although they are special, on every port.
    ///
    /// - Parameter sockets: never to be called, also inside those networks: the database, and what this service itself
    ///   listens on.
    package init(allowing networks: [Network] = [], refusing sockets: [SocketAddress] = []) {
        allowed = networks
        refused = sockets
    }

    /// The same policy that also refuses these sockets.
    package func refusing(_ sockets: [SocketAddress]) -> AddressPolicy {
        AddressPolicy(allowing: allowed, refusing: refused + sockets)
    }

    /// True when a connection to the address and port may be made.
    package func allows(_ address: IPAddress, port: Int = 443) -> Bool {
        if refused.contains(where: { $0.includes(address, port) }) { return false }
        return allowed.contains { $0.contains(address) } || (isGlobal(address) && Self.isUsual(port))
    }

    /// What is wrong with a URL before its host is resolved, as the end of a sentence that begins with the URL; nil when
    /// nothing is. What a name resolves to is decided when a connection is made.
    package func refusal(of target: TargetURL) -> String? {
        let loopback = IPAddress.v4(0x7F00_0001)
        if let address = target.address ?? (target.isLocalName ? loopback : nil) {
            if allows(address, port: target.port) { return nil }
            if refused.contains(where: { $0.includes(address, target.port) }) {
                return "leads to this service itself or to its database"
            }
            if !isGlobal(address) { return "leads to \(target.host), a private, local or otherwise special address" }
        }
        if !Self.isUsual(target.port),
            target.address.map({ address in !allowed.contains { $0.contains(address) } }) ?? allowed.isEmpty
        {
            return "has the port \(target.port); allowed are 80, 443 and those from 1024 on that no database uses"
        }
        return nil
    }

    /// Ports below 1024 belong to services that are no receivers (mail, shells, files), and so do the others here.
    private static func isUsual(_ port: Int) -> Bool {
        port == 80 || port == 443 || (1024...65535).contains(port) && !unusualPorts.contains(port)
    }

    private static let unusualPorts: Set<Int> = [
        1433, 1521, 2049, 2375, 2376, 2379, 2380, 3306, 5432, 5672, 6000, 6379, 6667, 9042, 9092, 9200, 9300, 11211,
        27017,
    ]

    private func isGlobal(_ address: IPAddress) -> Bool {
        switch address {
        case .v4: return !Self.special4.contains { $0.contains(address) }
        case .v6(let high, let low):
            // NAT64 (RFC 6052) reaches the IPv4 address that it carries: that address decides.
            if high == 0x0064_FF9B_0000_0000, low >> 32 == 0 { return isGlobal(.v4(UInt32(truncatingIfNeeded: low))) }
            // ISATAP (RFC 5214) interface identifiers carry one, too.
            if low >> 32 == 0x0000_5EFE || low >> 32 == 0x0200_5EFE, !isGlobal(.v4(UInt32(truncatingIfNeeded: low))) {
                return false
            }
            // Everything outside 2000::/3 is special, and a few ranges inside it.
            return high >> 61 == 1 && !Self.special6.contains { $0.contains(address) }
        }
    }

    private static let special4 = [
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
    ].compactMap(Network.init)

    private static let special6 = ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"].compactMap(Network.init)
}

/// An IPv4 or IPv6 address.
package enum IPAddress: Hashable, Sendable {
    case v4(UInt32)
    case v6(high: UInt64, low: UInt64)

    /// Reads the usual text forms (`inet_pton`); shortened and non-decimal IPv4 spellings are not addresses here.
    package init?(_ text: String) {
        var bytes4 = in_addr()
        var bytes6 = in6_addr()
        if unsafe inet_pton(AF_INET, text, &bytes4) == 1 {
            self = .v4(UInt32(bigEndian: bytes4.s_addr))
        } else if unsafe inet_pton(AF_INET6, text, &bytes6) == 1 {
            self.init(bytes6)
        } else {
            return nil
        }
    }

    init(_ bytes: in6_addr) {
        let (high, low) = unsafe withUnsafeBytes(of: bytes) { raw in
            (unsafe raw.loadUnaligned(as: UInt64.self), unsafe raw.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
        }
        self = .v6(high: UInt64(bigEndian: high), low: UInt64(bigEndian: low))
    }

    /// Reads a socket address; nil for families that are not the Internet's.
    init?(_ address: UnsafeRawPointer, family: Int32) {
        switch family {
        case AF_INET:
            self = .v4(UInt32(bigEndian: unsafe address.loadUnaligned(as: sockaddr_in.self).sin_addr.s_addr))
        case AF_INET6:
            self.init(unsafe address.loadUnaligned(as: sockaddr_in6.self).sin6_addr)
        default: return nil
        }
    }

    /// The port of a socket address; both families have it at the same place.
    static func port(_ address: UnsafeRawPointer) -> Int {
        Int(UInt16(bigEndian: unsafe address.loadUnaligned(as: sockaddr_in.self).sin_port))
    }

    var isLoopback: Bool {
        switch self {
        case .v4(let bits): bits >> 24 == 127 || bits == 0
        case .v6(let high, let low): high == 0 && low <= 1
        }
    }

    /// The addresses of this machine's interfaces, as they are now.
    static var ofThisMachine: Set<IPAddress> {
        var list: UnsafeMutablePointer<ifaddrs>?
        guard unsafe getifaddrs(&list) == 0 else { return [] }
        defer { unsafe freeifaddrs(list) }
        var found: Set<IPAddress> = []
        var next = unsafe list
        while let entry = unsafe next {
            if let address = unsafe entry.pointee.ifa_addr,
                let ip = unsafe IPAddress(UnsafeRawPointer(address), family: Int32(address.pointee.sa_family))
            {
                found.insert(ip)
            }
            unsafe next = entry.pointee.ifa_next
        }
        return found
    }
}

/// An address and a port that something listens on; an unspecified address (`0.0.0.0`, `::`) stands for every address of
/// this machine.
package struct SocketAddress: Hashable, Sendable {
    package let address: IPAddress
    package let port: Int

    package init(_ address: IPAddress, port: Int) {
        self.address = address
        self.port = port
    }

    func includes(_ other: IPAddress, _ port: Int) -> Bool {
        guard port == self.port else { return false }
        switch address {
        case .v4(0), .v6(high: 0, low: 0): return other.isLoopback || IPAddress.ofThisMachine.contains(other)
        default: return address == other
        }
    }
}

/// A network in CIDR notation, such as `10.0.0.0/8` or `fd00::/8`; a bare address is a network of one.
package struct Network: Sendable, CustomStringConvertible {
    package let description: String
    private let base: IPAddress
    private let length: Int

    /// Reads the notation; nil when the address or the length is not valid.
    package init?(_ text: String) {
        let parts = text.split(separator: "/", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
        guard let base = IPAddress(parts[0]) else { return nil }
        let most = if case .v4 = base { 32 } else { 128 }
        let length = parts.count == 1 ? most : Int(parts[1]) ?? -1
        guard (0...most).contains(length) else { return nil }
        description = text
        self.base = base
        self.length = length
    }

    /// True when the address lies in the network; addresses of the other family never do.
    package func contains(_ address: IPAddress) -> Bool {
        switch (base, address) {
        case (.v4(let base), .v4(let address)):
            return length == 0 || (base ^ address) >> UInt32(32 - length) == 0
        case (.v6(let baseHigh, let baseLow), .v6(let high, let low)):
            if length <= 64 { return length == 0 || (baseHigh ^ high) >> UInt64(64 - length) == 0 }
            return baseHigh == high && (baseLow ^ low) >> UInt64(128 - length) == 0
        default: return false
        }
    }
}
