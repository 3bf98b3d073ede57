import CCurl

/// The parts of a URL that a request can be sent to, read by the same parser that will send it.
package struct TargetURL: Sendable {
    package let scheme: String
    package let host: String
    package let port: Int
    /// The host as an address, when it is an address in any spelling that libcurl understands.
    package let address: IPAddress?
    /// True for names that mean this machine without a lookup (RFC 6761 6.3, and usual hosts
    /// files).
    package let isLocalName: Bool

    /// Why a URL cannot be an endpoint's. The description does not repeat the URL: it may hold a
    /// token.
    package struct ValidationError: Error, Sendable, CustomStringConvertible {
        package let description: String
    }

    /// The longest URL in bytes.
    package static let maxLength = 2048

    /// Checks the URL without resolving its host.
    package init(_ text: String) throws(ValidationError) {
        guard text.utf8.count <= Self.maxLength else {
            throw ValidationError(description: "is longer than \(Self.maxLength) bytes")
        }
        guard text.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F }) else {
            throw ValidationError(
                description:
                    "contains white space, a control character or a non-ASCII character; write the host as an A-label (xn--…) and percent-encode the rest"
            )
        }
        let lower = text.lowercased()
        guard lower.hasPrefix("http://") || lower.hasPrefix("https://") else {
            throw ValidationError(description: "must begin with https:// or http://")
        }
        guard !text.contains("\\") else { throw ValidationError(description: "contains a backslash") }
        guard !text.contains("#") else {
            throw ValidationError(description: "has a fragment (#…), which is never sent")
        }
        let rest = text.drop { $0 != "/" }.dropFirst(2)
        guard rest.first != "/" else { throw ValidationError(description: "has no host") }
        try Self.checkAuthority(rest.prefix { $0 != "/" && $0 != "?" })

        guard let handle = unsafe curl_url() else {
            throw ValidationError(description: "cannot be parsed: out of memory")
        }
        defer { unsafe curl_url_cleanup(handle) }
        let code = unsafe curl_url_set(handle, CURLUPART_URL, text, UInt32(CURLU_DISALLOW_USER))
        if code == CURLUE_USER_NOT_ALLOWED {
            throw ValidationError(description: "contains a user name; give credentials as a header instead")
        }
        guard code == CURLUE_OK else {
            throw ValidationError(
                description: "is not a valid URL (\(unsafe String(cString: curl_url_strerror(code))))")
        }
        func part(_ part: CURLUPart, _ flags: Int32 = 0) -> String? {
            var value: UnsafeMutablePointer<CChar>?
            guard unsafe curl_url_get(handle, part, &value, UInt32(flags)) == CURLUE_OK, let value = unsafe value else {
                return nil
            }
            defer { unsafe curl_free(value) }
            return unsafe String(cString: value)
        }
        guard let scheme = part(CURLUPART_SCHEME), let host = part(CURLUPART_HOST), !host.isEmpty else {
            throw ValidationError(description: "has no host")
        }
        guard let port = part(CURLUPART_PORT, CURLU_DEFAULT_PORT).flatMap({ Int($0) }), port > 0 else {
            throw ValidationError(description: "has no usable port")
        }
        // A host that ends in a number is meant as an address (WHATWG URL 3.5), even when it is not
        // valid.
        let last = host.split(separator: ".").last ?? ""
        let isNumber = last.allSatisfy(\.isNumber) || last.lowercased().hasPrefix("0x")
        guard host.hasPrefix("[") || !isNumber || IPAddress(host) != nil else {
            throw ValidationError(description: "has a host that is neither a name nor an address")
        }
        self.scheme = scheme.lowercased()
        self.host = host
        self.port = port
        isLocalName = Self.isLocal(host)
        address = IPAddress(host.hasPrefix("[") ? String(host.dropFirst().dropLast().prefix { $0 != "%" }) : host)
    }

    /// Host and port as written: without the spellings that parsers read differently.
    private static func checkAuthority(_ authority: Substring) throws(ValidationError) {
        guard !authority.contains("%") else {
            throw ValidationError(description: "has a host that is neither a name nor an address")
        }
        // Userinfo has its own, clearer message later.
        guard !authority.contains("@") else { return }
        let end = authority.lastIndex(of: "]") ?? authority.startIndex
        guard let colon = authority[end...].firstIndex(of: ":") else { return }
        let port = authority[authority.index(after: colon)...]
        guard let first = port.utf8.first, (0x31...0x39).contains(first), port.utf8.count <= 5,
            port.utf8.allSatisfy({ (0x30...0x39).contains($0) })
        else { throw ValidationError(description: "has no usable port") }
    }

    private static func isLocal(_ host: String) -> Bool {
        let name = host.lowercased().split(separator: ".").joined(separator: ".")
        return name == "localhost" || name.hasSuffix(".localhost") || name == "localhost.localdomain"
            || name == "ip6-localhost" || name == "ip6-loopback"
    }
}
