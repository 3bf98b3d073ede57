import CCurl

/// The list of header lines that libcurl reads while a request is sent: a copy of the request's
/// block, and one node per line that points into it. Memory is kept for the next request; libcurl's
/// own list would take some twenty allocations for each request.
@safe
final class HeaderList {
    /// Without this line libcurl asks receivers of large bodies for permission first and waits a
    /// second for it.
    private static let last = Array("Expect:\0".utf8)

    private var text = UnsafeMutableRawBufferPointer.allocate(byteCount: 1024, alignment: 1)
    private var nodes = UnsafeMutableBufferPointer<curl_slist>.allocate(capacity: 16)

    deinit {
        unsafe text.deallocate()
        unsafe nodes.deallocate()
    }

    /// Replaces the lines; the list is valid until the next call.
    func load(_ headers: HTTPHeaders) -> UnsafeMutablePointer<curl_slist>? {
        let size = headers.lines.count + Self.last.count
        if unsafe text.count < size {
            unsafe text.deallocate()
            unsafe text = .allocate(byteCount: size * 2, alignment: 1)
        }
        if unsafe nodes.count < headers.count + 1 {
            unsafe nodes.deallocate()
            unsafe nodes = .allocate(capacity: (headers.count + 1) * 2)
        }
        unsafe text.copyBytes(from: headers.lines)
        unsafe UnsafeMutableRawBufferPointer(rebasing: text[headers.lines.count...]).copyBytes(from: Self.last)
        guard let base = unsafe text.baseAddress, let first = unsafe nodes.baseAddress else { return nil }
        var start = 0
        for number in 0...headers.count {
            let line = unsafe (base + start).assumingMemoryBound(to: CChar.self)
            let next = unsafe number < headers.count ? first + number + 1 : nil
            unsafe (first + number).initialize(to: curl_slist(data: line, next: next))
            while unsafe text[start] != 0 { start += 1 }
            start += 1
        }
        return unsafe first
    }
}

/// A short list of texts that libcurl reads while a request is sent.
@safe
final class LineList {
    private var list: UnsafeMutablePointer<curl_slist>?

    var isEmpty: Bool { unsafe list == nil }

    deinit { unsafe curl_slist_free_all(list) }

    /// Replaces the lines; the list is valid until the next call.
    func load(_ lines: [String]) -> UnsafeMutablePointer<curl_slist>? {
        unsafe curl_slist_free_all(list)
        unsafe list = nil
        for line in lines {
            if let longer = unsafe curl_slist_append(list, line) { unsafe list = longer }
        }
        return unsafe list
    }
}
