import Glibc
import Synchronization

/// The addresses that this machine has on its interfaces. A request to one of them would come from
/// inside the machine.
package enum OwnAddresses {
    private static let known = Mutex<(addresses: Set<IPAddress>, readAt: ContinuousClock.Instant)?>(nil)
    /// Interfaces rarely change; for this long a newly added address is not known.
    private static let validity = Duration.seconds(10)

    /// At most some seconds old. Empty where the system does not report them.
    package static var current: Set<IPAddress> {
        known.withLock { known in
            if let known, .now - known.readAt < validity { return known.addresses }
            let addresses = read()
            known = (addresses, .now)
            return addresses
        }
    }

    private static func read() -> Set<IPAddress> {
        var first: UnsafeMutablePointer<ifaddrs>?
        guard unsafe getifaddrs(&first) == 0 else { return [] }
        defer { unsafe freeifaddrs(first) }
        var addresses: Set<IPAddress> = []
        var next = unsafe first
        while let interface = unsafe next {
            if let address = unsafe interface.pointee.ifa_addr {
                let family = unsafe Int32(address.pointee.sa_family)
                if let ip = unsafe IPAddress(UnsafeRawPointer(address), family: family) { addresses.insert(ip) }
            }
            unsafe next = interface.pointee.ifa_next
        }
        return addresses
    }
}
