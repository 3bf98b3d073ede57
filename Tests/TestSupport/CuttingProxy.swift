import Glibc
import Synchronization
import Threads

/// Stands between a worker and PostgreSQL, and cuts connections around a COMMIT: before the server
/// hears of it, or after it has committed but before the client hears so.
package final class CuttingProxy: Sendable {
    package enum Cut: Sendable { case beforeCommit, afterCommit }

    package let port: UInt16
    private let listening: Int32
    private let socketPath: String
    private let plan: Mutex<[Cut]>
    private let cuts = Mutex(0)
    /// Connections up to this one are frozen, and so is every new one while `accepts` is false.
    private let freezing = Mutex((made: 0, frozen: 0, accepts: true))

    /// Relays 127.0.0.1:port to the server's unix socket, and cuts the next transactions that write
    /// attempts as planned.
    package init(socketPath: String, plan: [Cut]) throws {
        self.socketPath = socketPath
        self.plan = Mutex(plan)
        let listener = try LoopbackListener()
        let descriptor = listener.descriptor
        listening = descriptor
        port = listener.port
        try Thread("proxy") {
            while true {
                let client = accept(descriptor, nil, nil)
                guard client >= 0 else { return }
                _ = try? Thread("proxy") { self.relay(client) }
            }
        }
    }

    /// How many connections were cut.
    package var cutCount: Int { cuts.withLock { $0 } }

    /// From now on nothing passes on the connections that there are: they stay open, and nobody
    /// answers.
    ///
    /// - Parameter new: whether new ones pass.
    package func freeze(new passes: Bool) {
        freezing.withLock { $0 = ($0.made, $0.made, passes) }
    }

    /// New connections pass again.
    package func thaw() { freezing.withLock { $0.accepts = true } }

    package func stop() { shutdown(listening, Int32(SHUT_RDWR)) }

    private func relay(_ client: Int32) {
        let server = connectToServer()
        let number = freezing.withLock { state in
            state.made += 1
            if !state.accepts { state.frozen = max(state.frozen, state.made) }
            return state.made
        }
        defer {
            close(client)
            close(server)
        }
        var hasAttempts = false
        var buffer = [UInt8](repeating: 0, count: 65536)
        while true {
            var descriptors = [
                pollfd(fd: client, events: Int16(POLLIN), revents: 0),
                pollfd(fd: server, events: Int16(POLLIN), revents: 0),
            ]
            guard poll(&descriptors, 2, 20) > 0 else { continue }
            if freezing.withLock({ number <= $0.frozen }) {
                usleep(20_000)
                if descriptors[0].revents & Int16(POLLHUP) != 0 { return }
                continue
            }
            if descriptors[1].revents != 0 {
                let count = read(server, &buffer, buffer.count)
                guard count > 0, forward(buffer[..<count], to: client) else { return }
            }
            if descriptors[0].revents != 0 {
                let count = read(client, &buffer, buffer.count)
                guard count > 0 else { return }
                let bytes = buffer[..<count]
                // The statement's text passes only once; afterwards its recorder uses its name. One
                // recorder, one connection: what matters is that this connection records, and that
                // this message is its COMMIT.
                if bytes.firstRange(of: Array("INSERT INTO outbox.attempt".utf8)) != nil { hasAttempts = true }
                let isCommit =
                    hasAttempts && bytes.first == UInt8(ascii: "Q") && bytes.firstRange(of: Array("COMMIT".utf8)) != nil
                let cut = isCommit ? plan.withLock { $0.isEmpty ? nil : $0.removeFirst() } : nil
                if cut != nil { cuts.withLock { $0 += 1 } }
                if cut == .beforeCommit { return }
                guard forward(bytes, to: server) else { return }
                if cut == .afterCommit {
                    // The response proves that it is done; the client never sees it.
                    _ = read(server, &buffer, buffer.count)
                    return
                }
            }
        }
    }

    private func connectToServer() -> Int32 {
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { path in
            for (index, byte) in socketPath.utf8.enumerated() where index < path.count - 1 { path[index] = byte }
        }
        withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { pointer in
                _ = connect(descriptor, pointer, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        return descriptor
    }

    private func forward(_ bytes: ArraySlice<UInt8>, to descriptor: Int32) -> Bool {
        var rest = bytes
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { send(descriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
            guard count > 0 else { return false }
            rest = rest.dropFirst(count)
        }
        return true
    }
}
