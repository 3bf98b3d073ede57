import Glibc
import Threads

/// One connection of a receiver: reads requests, writes responses, well or badly.
final class ReceiverConnection {
    private let descriptor: Int32
    private var buffer: [UInt8] = []

    init(_ descriptor: Int32) { self.descriptor = descriptor }

    /// The next request; nil when the peer closed or sent anything but HTTP/1.1 with a length.
    func readRequest(_ number: Int) -> Receiver.Request? {
        let end = Array("\r\n\r\n".utf8)
        var searched = 0
        while true {
            if let range = buffer[searched...].firstRange(of: end) {
                return finishReading(head: Array(buffer[..<range.lowerBound]), headLength: range.upperBound, number)
            }
            searched = max(0, buffer.count - 3)
            if buffer.count > 1 << 20 || !readMore() { return nil }
        }
    }

    private func finishReading(head: [UInt8], headLength: Int, _ number: Int) -> Receiver.Request? {
        let lines = String(decoding: head, as: UTF8.self).split(separator: "\r\n", omittingEmptySubsequences: false)
        let start = lines[0].split(separator: " ", maxSplits: 2)
        guard start.count == 3 else { return nil }
        let headers = lines.dropFirst().compactMap { line -> (name: String, value: String)? in
            guard let colon = line.firstIndex(of: ":") else { return nil }
            let value = line[line.index(after: colon)...].drop { $0 == " " || $0 == "\t" }
            return (String(line[..<colon]), String(value))
        }
        let length = headers.first { $0.name.lowercased() == "content-length" }.flatMap { Int($0.value) } ?? 0
        while buffer.count < headLength + length { if !readMore() { return nil } }
        let raw = Array(buffer[..<(headLength + length)])
        buffer.removeFirst(headLength + length)
        return Receiver.Request(
            method: String(start[0]), target: String(start[1]), headers: headers, body: Array(raw[headLength...]),
            raw: raw,
            connection: number)
    }

    private func readMore() -> Bool {
        var chunk = [UInt8](repeating: 0, count: 65536)
        let count = read(descriptor, &chunk, chunk.count)
        guard count > 0 else { return count < 0 && errno == EINTR }
        buffer += chunk[..<count]
        return true
    }

    /// Writes the response in its manner; false when the connection is over.
    func write(_ answer: Receiver.Response, isStopped: () -> Bool) -> Bool {
        var head = "HTTP/1.1 \(answer.status) \(answer.status == 200 ? "OK" : "Status")\r\n"
        for (name, value) in answer.headers { head += "\(name): \(value)\r\n" }
        let length = "Content-Length: \(answer.body.count)\r\n\r\n"
        switch answer.manner {
        case .proper:
            let hasNoBody = answer.status == 204 || answer.status == 304 || answer.status < 200
            return send(Array((head + (hasNoBody ? "\r\n" : length)).utf8) + (hasNoBody ? [] : answer.body))
        case .hangUp:
            return false
        case .silence:
            while !isStopped(), isOpen() { Thread.pause(.milliseconds(50)) }
            return false
        case .drip(let interval):
            guard send(Array((head + length).utf8)) else { return false }
            for byte in answer.body {
                Thread.pause(interval)
                if isStopped() || !send([byte]) { return false }
            }
            return true
        case .stall:
            guard send(Array((head + "Content-Length: 1000000\r\n\r\n").utf8)) else { return false }
            while !isStopped(), isOpen() { Thread.pause(.milliseconds(50)) }
            return false
        case .endlessBody:
            guard send(Array((head + "Connection: close\r\n\r\n").utf8)) else { return false }
            let chunk = [UInt8](repeating: UInt8(ascii: "x"), count: 65536)
            while !isStopped() { if !send(chunk) { return false } }
            return false
        case .endlessHeader:
            guard send(Array(head.utf8)) else { return false }
            let line = Array(("X-Flood: " + String(repeating: "x", count: 1000) + "\r\n").utf8)
            while !isStopped() { if !send(line) { return false } }
            return false
        case .bytes(let bytes):
            _ = send(bytes)
            return false
        }
    }

    /// False once the peer has gone.
    private func isOpen() -> Bool {
        var byte: UInt8 = 0
        let count = recv(descriptor, &byte, 1, Int32(MSG_PEEK) | Int32(MSG_DONTWAIT))
        return count > 0 || (count < 0 && (errno == EAGAIN || errno == EINTR))
    }

    func send(_ bytes: [UInt8]) -> Bool {
        var sent = 0
        while sent < bytes.count {
            let count = bytes.withUnsafeBytes { raw in
                Glibc.send(descriptor, raw.baseAddress.map { $0 + sent }, bytes.count - sent, Int32(MSG_NOSIGNAL))
            }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { return false }
            sent += count
        }
        return true
    }
}
