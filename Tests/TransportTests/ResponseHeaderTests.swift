import Testing

@testable import Transport

/// What a header says, line by line, as it came over the wire.
@Suite(.timeLimit(.minutes(15))) struct ResponseHeaderTests {
    private func read(_ lines: String...) -> ResponseHeader {
        var header = ResponseHeader()
        for line in lines + [""] {
            let bytes = Array((line + "\r\n").utf8)
            _ = bytes.withUnsafeBytes { header.read($0) }
        }
        return header
    }

    @Test(arguments: [
        ("HTTP/1.1 200 OK", 200), ("HTTP/1.1 503", 503), ("http/1.1 500 lower case", 500), ("Http/1.1 201 mixed", 201),
        ("HTTP/2 404", 404), ("HTTP/1.1 999 X", nil), ("HTTP/1.1 600 X", nil), ("HTTP/1.1 099 X", nil),
        ("HTTP/1.1  200 X", nil),
    ]) func `the status is the one of the status line`(line: String, status: Int?) {
        #expect(read(line).answered == status)
    }

    @Test func `a field whose name begins like a status line is a field`() {
        #expect(read("HTTP/1.1 500 X", "HTTP/1.1 200 OK: y").answered == 500)
        #expect(read("HTTP/1.1 200 OK", "HTTP/: 1", "Retry-After: 3").answered == 200)
    }

    @Test func `an interim response is followed by the final one, which says nothing of it`() {
        let header = read("HTTP/1.1 103 Early Hints", "Retry-After: 9", "", "http/1.1 503 No", "X-Request-Id: r")
        #expect(header.answered == 503 && header.retryAfter == nil && header.requestID == "r")
    }

    @Test(arguments: ["3", " 3", "3 ", "\t3\t", "  3 \t "]) func `white space around a value is no part of it`(
        value: String
    ) {
        #expect(read("HTTP/1.1 503 X", "Retry-After:\(value)").retryAfter == "3")
    }
}
