import Glibc

/// An IPv4 or IPv6 address.
package enum IPAddress: Hashable, Sendable, CustomStringConvertible {
    case v4(UInt32)
    case v6(high: UInt64, low: UInt64)

    /// The usual text form; of IPv6 without the brackets, and with all its groups.
    package var description: String {
        switch self {
        case .v4(let bits):
            stride(from: 24, through: 0, by: -8).map { "\(bits >> UInt32($0) & 0xFF)" }.joined(separator: ".")
        case .v6(let high, let low):
            [high, low].flatMap { half in
                stride(from: 48, through: 0, by: -16).map { String(half >> UInt64($0) & 0xFFFF, radix: 16) }
            }.joined(separator: ":")
        }
    }

    /// Reads the usual text forms (`inet_pton`); shortened and non-decimal IPv4 spellings are not
    /// addresses here.
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
}

/// An address and a port that something listens on; an unspecified address (`0.0.0.0`, `::`) stands
/// for every address of this machine.
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
        case .v4(0), .v6(high: 0, low: 0): return other.isLoopback || OwnAddresses.current.contains(other)
        default: return address == other
        }
    }
}

/// A network in CIDR notation, such as `10.0.0.0/8` or `fd00::/8`; a bare address is a network of
/// one.
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

extension IPAddress {
    /// The addresses of a name, or the address itself, as this machine resolves it; blocks.
    package static func resolve(_ host: String) -> [IPAddress] {
        var hints = unsafe addrinfo()
        unsafe hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var list: UnsafeMutablePointer<addrinfo>?
        guard unsafe getaddrinfo(host, nil, &hints, &list) == 0 else { return [] }
        defer { unsafe freeaddrinfo(list) }
        return unsafe all(in: list)
    }

    static func all(in list: UnsafeMutablePointer<addrinfo>?) -> [IPAddress] {
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
