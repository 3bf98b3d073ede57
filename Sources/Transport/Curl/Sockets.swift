import CCurl
import COpenSSL
import Glibc

/// The sockets of a transport's connections, by both their ends. libcurl does not report the socket
/// of a connection that it reuses. Belongs to the transport thread; remaining connections are
/// closed when that has ended.
@safe
final class Sockets {
    /// Both ends of a connection: several connections to different hosts may have the same local
    /// port.
    struct Ends: Hashable {
        let local: SocketAddress
        let remote: SocketAddress

        /// The ends as reported by libcurl; nil for anything but IP addresses.
        init?(local: (address: String, port: Int), remote: (address: String, port: Int)) {
            guard let here = IPAddress(local.address), let there = IPAddress(remote.address) else { return nil }
            self.local = SocketAddress(here, port: local.port)
            self.remote = SocketAddress(there, port: remote.port)
        }

        /// The ends as reported by the system; nil for a socket that is not connected.
        fileprivate init?(_ descriptor: Int32) {
            guard let local = unsafe socketAddress({ unsafe getsockname(descriptor, $0, $1) }),
                let remote = unsafe socketAddress({ unsafe getpeername(descriptor, $0, $1) })
            else { return nil }
            (self.local, self.remote) = (local, remote)
        }
    }

    private let floods: Floods

    init(floods: Floods) { self.floods = floods }

    /// A request is sent on a connection, which may bring its response.
    func expectResponse(on ends: Ends) {
        if let descriptor = descriptors[ends] { floods.expectResponse(on: descriptor) }
    }

    /// A request on the connection is over, with a response of so many bytes.
    func responseEnded(on ends: Ends, bytes: Int) {
        if let descriptor = descriptors[ends] { floods.responseEnded(on: descriptor, bytes: bytes) }
    }

    /// True when the connection has brought more than it may, or was ended and closed for that.
    func isFlooded(_ ends: Ends) -> Bool { descriptors[ends].map(floods.isFlooded) ?? ended.contains(ends) }

    /// Connections that were closed because they brought too much, and whose requests are not over.
    private var ended: Set<Ends> = []

    private var descriptors: [Ends: Int32] = [:]
    private var ends: [Int32: Ends] = [:]

    /// Notes that a connection with these ends was made on one of these sockets.
    func note(_ opened: [Int32], _ wanted: Ends) {
        for descriptor in opened where Ends(descriptor) == wanted {
            forget(descriptor)
            ended.remove(wanted)
            ends[descriptor] = wanted
            descriptors[wanted] = descriptor
        }
    }

    /// Forgets a socket that is closed.
    func forget(_ descriptor: Int32) {
        let isFlood = floods.forget(descriptor)
        guard let known = ends.removeValue(forKey: descriptor) else { return }
        if isFlood {
            // Ends come again some day.
            if ended.count >= 1000 { ended = [] }
            ended.insert(known)
        }
        if descriptors[known] == descriptor { descriptors[known] = nil }
    }

    /// Called when a response was read to its end, and the connection may be used again: the
    /// receiver's bytes are acknowledged at once. The system would acknowledge them only with the
    /// next request, and a receiver's system holds a second small piece back until then (RFC 9293
    /// 3.7.4): that request would release the piece, which would then be taken for its response.
    ///
    /// - Parameter isEmpty: nothing can follow; otherwise the connection is not used again.
    func rest(_ ends: Ends, isEmpty: Bool) {
        guard let descriptor = descriptors[ends] else { return }
        if !isEmpty { return forget(descriptor) }
        var on: Int32 = 1
        _ = unsafe setsockopt(descriptor, Int32(IPPROTO_TCP), TCP_QUICKACK, &on, socklen_t(MemoryLayout<Int32>.size))
    }

    /// True for one of the last descriptors that this process may have: they are reserved for the
    /// database, the log and the runtime, which ends the process when it cannot open a file.
    static func isReserved(_ descriptor: Int32) -> Bool {
        var limit = rlimit()
        guard unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return false }
        return UInt(descriptor) + 32 >= limit.rlim_cur
    }

    /// Whether the system has a route to an address. Checked with a datagram socket, which sends
    /// nothing.
    static func hasRoute(to address: UnsafeRawPointer, length: UInt32) -> Bool {
        let family = unsafe Int32(address.assumingMemoryBound(to: sockaddr.self).pointee.sa_family)
        let descriptor = socket(family, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        // Without a descriptor the failure says nothing about the route.
        guard descriptor >= 0 else { return errno != EAFNOSUPPORT }
        defer { close(descriptor) }
        return unsafe connect(descriptor, address.assumingMemoryBound(to: sockaddr.self), length) == 0
            || ![EADDRNOTAVAIL, ENETUNREACH, EAFNOSUPPORT].contains(errno)
    }

    /// True when a connection that is to be used again is quiet: it is not closed, and has no
    /// unread bytes that would be taken for the response to the next request. An unknown connection
    /// is not quiet.
    ///
    /// - Parameter session: its TLS session, nil without TLS.
    func isQuiet(_ ends: Ends, session: UnsafeMutableRawPointer?) -> Bool {
        // Responses in HTTP/2 name their stream.
        if let session = unsafe session, unsafe tls_speaks_http2(session) == 1 { return true }
        guard let descriptor = descriptors[ends] else { return false }
        var byte: UInt8 = 0
        let count = unsafe recv(descriptor, &byte, 1, Int32(MSG_PEEK) | Int32(MSG_DONTWAIT))
        let isEmpty = count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)
        guard let session = unsafe session else { return isEmpty }
        if isEmpty { return unsafe tls_has_pending(session) == 0 }
        // The readable bytes may be records of TLS itself.
        return unsafe count > 0 && tls_is_quiet(session, descriptor) == 1
    }
}

private func socketAddress(
    _ ask: (UnsafeMutablePointer<sockaddr>, UnsafeMutablePointer<socklen_t>) -> Int32
) -> SocketAddress? {
    var storage = sockaddr_storage()
    var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
    return unsafe withUnsafeMutableBytes(of: &storage) { bytes in
        guard let base = bytes.baseAddress,
            unsafe ask(base.assumingMemoryBound(to: sockaddr.self), &length) == 0
        else { return nil }
        let family = unsafe Int32(base.assumingMemoryBound(to: sockaddr.self).pointee.sa_family)
        guard let address = unsafe IPAddress(UnsafeRawPointer(base), family: family) else { return nil }
        return SocketAddress(address, port: unsafe IPAddress.port(UnsafeRawPointer(base)))
    }
}
