/// The header of a response, as libcurl delivers it line by line.
struct ResponseHeader {
    private(set) var status = 0
    /// True after the header of the final response; those of 1xx responses are followed by another.
    private(set) var isComplete = false
    /// True when the next line is a status line.
    private var isBeginning = true
    /// Of all lines: of interim responses and trailers, too.
    private(set) var length = 0
    /// More than libcurl itself takes of the header (300 KiB).
    static let maxLength = 512 * 1024
    /// True when it announces a body.
    private(set) var announcesBody = false
    private(set) var retryAfter: String?
    private(set) var requestID: String?

    /// True when a line has come.
    var hasBegun: Bool { length > 0 }

    /// The status of a received response; nil for no response, and for an invalid status.
    var answered: Int? { isComplete && (100...599).contains(status) ? status : nil }

    /// The fault of a complete header without a valid status.
    var defect: String {
        (100...599).contains(status)
            ? "the connection ended before the response's header did, or a line in it is no field"
            : "the response's first line is no status line of HTTP/1.1 with a status of 100 to 599"
    }

    /// True when a body is announced where none may be: it comes later if at all, and would be
    /// taken for the next response (RFC 9112 6.3).
    var hasForbiddenBody: Bool { announcesBody && (status == 204 || status == 304) }

    /// Reads a line; false when the response must not be read on.
    mutating func read(_ line: UnsafeRawBufferPointer) -> Bool {
        length += line.count
        if length > Self.maxLength { return false }
        // Trailers are not header fields (RFC 9110 6.5).
        if isComplete { return true }
        // A field may have a name that begins like a status line.
        if isBeginning, unsafe line.starts(with: "http/".utf8, by: { $0 | 0x20 == $1 | 0x20 }) {
            // The fields of an interim response do not belong to the final one.
            let length = length
            self = ResponseHeader()
            self.length = length
            isBeginning = false
            // "HTTP/1.1 200": three digits after the first space.
            let digits = unsafe line.drop { $0 != UInt8(ascii: " ") }.dropFirst().prefix(3)
            status = unsafe digits.reduce(0) { $0 * 10 + Int($1 &- 48) }
        } else if line.count <= 2 {
            isComplete = status >= 200
            isBeginning = !isComplete
        } else if let colon = unsafe line.firstIndex(of: UInt8(ascii: ":")) {
            guard unsafe keep(unsafe line[..<colon], value: unsafe line[(colon + 1)...]) else {
                // The status is still valid.
                isComplete = status >= 200
                return false
            }
        }
        return true
    }

    private static let requestIDNames = [
        "x-request-id", "request-id", "x-cws-transactionid", "citrix-transactionid", "x-amzn-requestid",
        "x-ms-request-id", "x-correlation-id", "x-trace-id",
    ]

    /// Keeps the fields that are used; false when the response must not be read on.
    ///
    /// No request asks for a compressed response, and libcurl would decompress one that is
    /// compressed for the transfer (RFC 9112 7.2) on the thread that serves all endpoints, without
    /// a limit on the input that produces no output.
    private mutating func keep(_ name: Slice<UnsafeRawBufferPointer>, value: Slice<UnsafeRawBufferPointer>) -> Bool {
        // Compared in place: strings of every name of every response would cost a hundredth of a
        // delivery.
        func isNamed(_ text: String) -> Bool {
            unsafe name.count == text.utf8.count
                && name.elementsEqual(text.utf8) { (0x41...0x5A).contains($0) ? $0 | 0x20 == $1 : $0 == $1 }
        }
        guard let first = unsafe name.first, "xXrRcCtT".utf8.contains(first) else { return true }
        if isNamed("content-length") {
            announcesBody = unsafe value.contains { UInt8(ascii: "1")...UInt8(ascii: "9") ~= $0 }
        } else if isNamed("transfer-encoding") {
            announcesBody = true
            let coding = unsafe String(decoding: value.prefix(200), as: UTF8.self).filter { !$0.isWhitespace }
            return ["chunked", "identity"].contains(coding.lowercased())
        } else if isNamed("retry-after") {
            retryAfter = unsafe retryAfter ?? text(value)
        } else if Self.requestIDNames.contains(where: isNamed) {
            requestID = unsafe requestID ?? text(value)
        }
        return true
    }

    /// The beginning of a field's value, without the white space around it and the end of its line
    /// (RFC 9110 5.5).
    private func text(_ value: Slice<UnsafeRawBufferPointer>) -> String {
        func isSpace(_ byte: UInt8) -> Bool { byte == 0x20 || (0x09...0x0D).contains(byte) }
        var text = unsafe value.prefix(200).drop(while: isSpace)
        while let last = unsafe text.last, isSpace(last) { unsafe text.removeLast() }
        return unsafe String(decoding: text, as: UTF8.self)
    }
}
