import Glibc
import TestSupport
import Testing
import Threads

@testable import Transport

/// How much a connection may bring, on a real one.
@Suite(.timeLimit(.minutes(15))) struct FloodsTests {
    /// Two ends of a connection.
    private func pair() throws -> (ours: Int32, theirs: Int32) {
        let listener = try LoopbackListener()
        defer { listener.close() }
        let ours = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = listener.port.bigEndian
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        let status = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(ours, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        #expect(status == 0)
        return (ours, accept(listener.descriptor, nil, nil))
    }

    /// Sends so many mebibytes and reads them.
    private func send(_ count: Int, _ pair: (ours: Int32, theirs: Int32)) {
        var bytes = [UInt8](repeating: 0, count: 65_536)
        for _ in 0..<(count * 16) {
            var left = bytes.count
            _ = bytes.withUnsafeBytes { Glibc.send(pair.theirs, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
            while left > 0 {
                let read = recv(pair.ours, &bytes, left, 0)
                if read <= 0 { return }
                left -= read
            }
        }
    }

    @Test func `a connection may bring four mebibytes for a response, and as much again for the next`() throws {
        let (floods, pair) = (Floods(), try pair())
        for _ in 1...3 {
            floods.expectResponse(on: pair.ours)
            send(3, pair)
            #expect(!floods.isFlooded(pair.ours))
            // Most of it were its chunks.
            floods.responseEnded(on: pair.ours, bytes: 500_000)
        }
        floods.expectResponse(on: pair.ours)
        send(8, pair)
        #expect(floods.isFlooded(pair.ours))
        floods.end()
        // Whoever reads finds the end.
        var byte: UInt8 = 0
        #expect(recv(pair.ours, &byte, 1, 0) == 0)
        let wasFlood = floods.forget(pair.ours)
        #expect(wasFlood && !floods.isFlooded(pair.ours))
        for descriptor in [pair.ours, pair.theirs] { close(descriptor) }
    }

    @Test func `a connection that brings several responses at a time may bring as much for each`() throws {
        let (floods, pair) = (Floods(), try pair())
        for _ in 1...34 { floods.expectResponse(on: pair.ours) }
        send(16, pair)
        #expect(!floods.isFlooded(pair.ours))
        for _ in 1...33 { floods.responseEnded(on: pair.ours, bytes: 100) }
        send(5, pair)
        #expect(floods.isFlooded(pair.ours))
        floods.end()
        #expect(floods.forget(pair.ours))
        // Nobody speaks of it any more.
        floods.responseEnded(on: pair.ours, bytes: 100)
        #expect(!floods.isFlooded(pair.ours))
        for descriptor in [pair.ours, pair.theirs] { close(descriptor) }
    }

    @Test func `who has flooded us is known for ten minutes, and not more than a thousand are`() {
        let (flooding, start) = (Flooding(), ContinuousClock.now)
        #expect(!flooding.contains(7, at: start))
        flooding.add(7, at: start)
        #expect(flooding.contains(7, at: start + .seconds(599)) && !flooding.contains(8, at: start))
        #expect(!flooding.contains(7, at: start + .seconds(601)))
        for affinity in 100..<(100 + 2 * Flooding.most) { flooding.add(affinity, at: start) }
        let known = (100..<(100 + 2 * Flooding.most)).count { flooding.contains($0, at: start) }
        #expect(known > 0 && known <= Flooding.most)
        #expect(flooding.contains(99 + 2 * Flooding.most, at: start))
    }
}
