import Glibc

/// A listening TCP socket on 127.0.0.1.
package struct LoopbackListener: Sendable {
    /// Why there is no socket.
    package struct ListenError: Error, CustomStringConvertible {
        package let description: String
    }

    package let descriptor: Int32
    package let port: UInt16

    /// Listens; the caller closes the descriptor.
    ///
    /// - Parameters:
    ///   - port: 0 for any free one.
    ///   - isNonBlocking: `accept` returns at once when no connection waits.
    package init(port: UInt16 = 0, isNonBlocking: Bool = false) throws(ListenError) {
        let kind = SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | (isNonBlocking ? SOCK_NONBLOCK.rawValue : 0)
        descriptor = socket(AF_INET, Int32(kind), 0)
        var on: Int32 = 1
        unsafe setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &on, socklen_t(MemoryLayout<Int32>.size))
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let isBound = unsafe withUnsafeMutablePointer(to: &address) { [descriptor] pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { pointer in
                unsafe bind(descriptor, pointer, length) == 0 && listen(descriptor, 8192) == 0
                    && getsockname(descriptor, pointer, &length) == 0
            }
        }
        guard isBound else {
            let reason = unsafe String(cString: strerror(errno))
            Glibc.close(descriptor)
            throw ListenError(description: "cannot listen on 127.0.0.1:\(port): \(reason)")
        }
        self.port = UInt16(bigEndian: address.sin_port)
    }

    /// Closes the socket, for a caller that never serves it.
    package func close() { Glibc.close(descriptor) }
}
