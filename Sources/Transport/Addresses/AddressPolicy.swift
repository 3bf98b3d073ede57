import Glibc

/// Which addresses a request may connect to. It is checked on the socket's address at every new
/// connection, where neither a spelling, nor a name that resolves elsewhere the second time, nor a
/// redirect can get around it.
///
/// It refuses all addresses that are not globally reachable unicast (IANA special-purpose
/// registries, RFC 6890 and its updates), and IPv6 forms that carry such an IPv4 address;
/// `allowing` permits the operator's own networks.
package struct AddressPolicy: Sendable {
    private let allowed: [Network]
    private let refused: [SocketAddress]
    /// The addresses of this machine: as special as loopback.
    private let own: @Sendable () -> Set<IPAddress>

    /// A policy that permits the given networks although they are special, on every port.
    ///
    /// - Parameter sockets: never to be called, even inside those networks: the database, and the
    ///   sockets on which this service itself listens.
    ///   - own: the addresses of this machine.
    package init(
        allowing networks: [Network] = [], refusing sockets: [SocketAddress] = [],
        own: @escaping @Sendable () -> Set<IPAddress> = { OwnAddresses.current }
    ) {
        allowed = networks
        refused = sockets
        self.own = own
    }

    /// The same policy that also refuses these sockets.
    package func refusing(_ sockets: [SocketAddress]) -> AddressPolicy {
        AddressPolicy(allowing: allowed, refusing: refused + sockets, own: own)
    }

    /// True when a connection to the address and port may be made.
    package func allows(_ address: IPAddress, port: Int = 443) -> Bool {
        if refused.contains(where: { $0.includes(address, port) }) { return false }
        return allowed.contains { $0.contains(address) } || (isForeign(address) && Self.isUsual(port))
    }

    /// The fault of a URL before its host is resolved, as the end of a sentence that begins with
    /// the URL; nil when there is none. The addresses of a name are checked when a connection is
    /// made.
    package func refusal(of target: TargetURL) -> String? {
        let loopback = IPAddress.v4(0x7F00_0001)
        if let address = target.address ?? (target.isLocalName ? loopback : nil) {
            if allows(address, port: target.port) { return nil }
            if refused.contains(where: { $0.includes(address, target.port) }) {
                return "leads to this service itself or to its database"
            }
            if !isForeign(address) { return "leads to \(target.host), a private, local or otherwise special address" }
        }
        if !Self.isUsual(target.port),
            target.address.map({ address in !allowed.contains { $0.contains(address) } }) ?? allowed.isEmpty
        {
            return "has the port \(target.port); allowed are 80, 443 and those from 1024 on that no database uses"
        }
        return nil
    }

    /// Ports below 1024 belong to services that are not receivers (mail, shells, files), and so do
    /// the others here.
    private static func isUsual(_ port: Int) -> Bool {
        port == 80 || port == 443 || (1024...65535).contains(port) && !unusualPorts.contains(port)
    }

    private static let unusualPorts: Set<Int> = [
        1433, 1521, 2049, 2375, 2376, 2379, 2380, 3306, 5432, 5672, 6000, 6379, 6667, 9042, 9092, 9200, 9300, 11211,
        27017,
    ]

    private func isForeign(_ address: IPAddress) -> Bool { isGlobal(address) && !own().contains(address) }

    private func isGlobal(_ address: IPAddress) -> Bool {
        switch address {
        case .v4: return !Self.special4.contains { $0.contains(address) }
        case .v6(let high, let low):
            // NAT64 (RFC 6052) reaches the embedded IPv4 address: that address decides.
            if high == 0x0064_FF9B_0000_0000, low >> 32 == 0 { return isGlobal(.v4(UInt32(truncatingIfNeeded: low))) }
            // ISATAP (RFC 5214) interface identifiers embed one, too.
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
