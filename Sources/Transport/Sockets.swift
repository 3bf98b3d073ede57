import CCurl
import COpenSSL
import Glibc

/// The sockets of a transport's connections, by their local ports. libcurl does not tell which socket a connection that it takes up
/// again has. Belongs to the transport thread; connections that are left are closed when that has ended.
@safe
final class Sockets {
    private var byPort: [Int: [Int32]] = [:]
    private var ports: [Int32: Int] = [:]

    /// A connection was made on one of these sockets.
    func note(_ descriptors: [Int32], port: Int) {
        for descriptor in descriptors where localPort(descriptor) == port {
            forget(descriptor)
            ports[descriptor] = port
            byPort[port, default: []].append(descriptor)
        }
    }

    /// The socket is closed.
    func forget(_ descriptor: Int32) {
        guard let port = ports.removeValue(forKey: descriptor) else { return }
        byPort[port]?.removeAll { $0 == descriptor }
        if byPort[port]?.isEmpty == true { byPort[port] = nil }
    }

    /// True when a connection that is to be used again is quiet: nobody has ended it, and no bytes wait in it that an answer to the
    /// next request would be taken for.
    ///
    /// - Parameter session: its TLS session, nil without TLS.
    func isQuiet(port: Int, session: UnsafeMutableRawPointer?) -> Bool {
        // Answers in HTTP/2 name the stream that they are for.
        if let session = unsafe session, unsafe tls_speaks_http2(session) == 1 { return true }
        return (byPort[port] ?? []).allSatisfy { descriptor in
            var byte: UInt8 = 0
            let count = unsafe recv(descriptor, &byte, 1, Int32(MSG_PEEK) | Int32(MSG_DONTWAIT))
            if count < 0, errno == EAGAIN || errno == EWOULDBLOCK { return true }
            // What is readable may be records of TLS itself.
            guard count > 0, let session = unsafe session else { return false }
            return unsafe tls_is_quiet(session, descriptor) == 1
        }
    }

    private func localPort(_ descriptor: Int32) -> Int? {
        unsafe withUnsafeTemporaryAllocation(byteCount: MemoryLayout<sockaddr_storage>.size, alignment: 8) { buffer in
            guard let base = unsafe buffer.baseAddress else { return nil }
            var length = socklen_t(buffer.count)
            let address = unsafe base.assumingMemoryBound(to: sockaddr.self)
            guard unsafe getsockname(descriptor, address, &length) == 0 else { return nil }
            return unsafe IPAddress.port(UnsafeRawPointer(base))
        }
    }
}
