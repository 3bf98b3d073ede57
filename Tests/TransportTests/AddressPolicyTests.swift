import Testing
import Transport

@Suite(.timeLimit(.minutes(15))) struct AddressPolicyTests {
    @Test(arguments: [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.255",
        "169.254.169.254",
        "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1",
        "198.18.0.1",
        "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "100.100.100.200",
        "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:a9fe:a9fe", "::127.0.0.1", "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::169.254.169.254", "64:ff9b:1::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1",
        "2001:0:7f00:1::", "2001:db8::1", "fe80::1", "fe80::5efe:127.0.0.1", "2600::5efe:7f00:1",
        "2600::200:5efe:a9fe:a9fe",
        "fec0::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "ff02::1", "100::1", "5f00::1", "3fff::1",
    ])
    func `special addresses are refused`(text: String) throws {
        let address = try #require(IPAddress(text))
        #expect(!AddressPolicy().allows(address))
    }

    @Test(arguments: [
        "8.8.8.8", "1.1.1.1", "100.63.255.254", "100.128.0.1", "172.15.255.255", "172.32.0.0", "192.167.255.255",
        "198.17.255.255",
        "223.255.255.255", "2606:4700:4700::1111", "64:ff9b::808:808", "2600::5efe:808:808",
    ])
    func `public addresses are allowed`(text: String) throws {
        let address = try #require(IPAddress(text))
        #expect(AddressPolicy().allows(address))
    }

    @Test func `a network that is let through ends at its edges`() throws {
        let policy = AddressPolicy(allowing: ["10.1.0.0/16", "fd00::/8"].compactMap(Network.init))
        #expect(policy.allows(try #require(IPAddress("10.1.255.255"))))
        #expect(!policy.allows(try #require(IPAddress("10.2.0.0"))))
        #expect(policy.allows(try #require(IPAddress("fdff::1"))))
        #expect(!policy.allows(try #require(IPAddress("fe80::1"))))
        #expect(!policy.allows(try #require(IPAddress("::ffff:10.1.0.1"))))
    }

    @Test(arguments: ["10.0.0.0/33", "10.0.0/8", "::/129", "x", "", "10.0.0.0/-1", "10.0.0.0/"])
    func `what is not a network is refused`(text: String) {
        #expect(Network(text) == nil)
    }
}

@Suite(.timeLimit(.minutes(15))) struct TargetURLTests {
    @Test(arguments: [
        "", "127.0.0.1", "127.0.0.1:22", "//127.0.0.1/", "file:///etc/passwd", "gopher://x/", "ftp://x/", "ws://x/",
        "http:/127.0.0.1/",
        "http:///127.0.0.1/", "http:\\\\127.0.0.1\\", "http://user@example.com/", "http://ok.example:80@127.0.0.1:22/",
        "http://127.0.0.1#@ok.example/", "http://ok.example\\@127.0.0.1/", "http://①②⑦.⓪.⓪.①/", "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/",
        "http://h%00.example/", "http://%31%32%37.0.0.1/", "http://example.com:/", "http://example.com:00080/",
        "http://127.0.0.1./", "http://256.0.0.1/", "http://4294967296/", "http://0x17f000001/",
        "http://[fe80::1%25lo]/", "http://h%0d%0a/", "http://a b/", "http://example.com/a b",
        "http://example.com:65536/",
        "http://example.com:0/", "http://example.com:-1/", "http://[127.0.0.1]/", "http://[::1]x/",
        "http://example.com/\r\nX: y",
    ])
    func `what cannot be an endpoint's URL is refused with a reason`(text: String) {
        let refusal = #expect(throws: TargetURL.ValidationError.self) { try TargetURL(text) }
        #expect(refusal?.description.isEmpty == false)
    }

    @Test(arguments: [
        ("http://0x7f000001/", "127.0.0.1"), ("http://2130706433/", "127.0.0.1"), ("http://0177.0.0.01/", "127.0.0.1"),
        ("http://127.1/", "127.0.0.1"), ("http://[::1]/", "::1"),
    ])
    func `an address is recognised in every spelling that libcurl understands`(text: String, address: String) throws {
        #expect(try TargetURL(text).address == IPAddress(address))
    }

    @Test func `the parts are those that the request will use`() throws {
        let url = try TargetURL("https://Example.com/hook?token=a%20b&x=1")
        #expect(url.scheme == "https")
        #expect(url.host == "Example.com")
        #expect(url.port == 443)
        #expect(url.address == nil)
    }
}

@Suite(.timeLimit(.minutes(15))) struct HTTPHeaderTests {
    @Test(arguments: [
        ("", "x"), ("Bad Name", "x"), ("Bad\r\nName", "x"), ("Nämé", "x"), ("X:Y", "x"), ("Host", "evil.internal"),
        ("content-length", "0"), ("Transfer-Encoding", "chunked"), ("Connection", "close"),
        ("Proxy-Authorization", "x"),
        ("Webhook-Id", "x"), ("webhook-signature", "x"), ("Outbox-Attempt", "1"), ("Expect", "100-continue"),
        ("User-Agent", "x"),
        ("X-A", "a\r\nX-B: c"), ("X-A", "a\nb"), ("X-A", "a\0b"), ("X-A", "\u{1}"), ("X-A", "\u{7F}"), ("X-A", " a"),
        ("X-A", "a "),
        ("X-A", String(repeating: "a", count: 4097)), (String(repeating: "a", count: 257), "x"),
    ])
    func `an unsafe header cannot be made, and the reason does not tell its value`(name: String, value: String) {
        let refusal = #expect(throws: HTTPHeader.ValidationError.self) { try HTTPHeader(name: name, value: value) }
        #expect(refusal?.description.contains("evil") == false)
    }

    @Test func `ordinary headers are made as given`() throws {
        let header = try HTTPHeader(name: "X-Api-Key", value: "a\tb: c; ü")
        #expect(header.name == "X-Api-Key")
        #expect(header.value == "a\tb: c; ü")
        #expect(try HTTPHeader(name: "X-Empty", value: "").value.isEmpty)
    }
}

/// Every spelling of a forbidden address that is known (docs/destinations.md, "Where requests may
/// go").
@Suite(.timeLimit(.minutes(15))) struct SpellingTests {
    private static let spellings = [
        "http://127.0.0.1/", "http://127.1/", "http://127.0.1/", "http://127.000.000.001/", "http://2130706433/",
        "http://0x7f000001/", "http://0X7F.1/", "http://0x7f.0x0.0x0.0x1/", "http://017700000001/",
        "http://0177.0.0.01/", "http://0177.0x0.1/", "http://00000177.0.0.1/", "http://127.0.0.1./",
        "http://127.65535/", "http://127.0.0.2/", "http://0/", "http://0.0.0.0/", "http://0x0/",
        "http://00000000000000/", "http://0.1.2.3/", "http://10.1/", "http://3232235777/", "http://0xc0a80101/",
        "http://192.168.257/", "http://172.16.0.1/", "http://172.31.255.255/", "http://2852039166/",
        "http://0xa9fea9fe/", "http://0251.0376.0251.0376/", "http://169.254.43518/", "http://169.16689662/",
        "http://169.254.170.2/", "http://100.100.100.200/", "http://192.0.0.192/", "http://4294967295/",
        "http://198.18.0.1/", "http://240.0.0.1/", "http://224.0.0.1/", "http://4294967296/", "http://0x17f000001/",
        "http://256.0.0.1/", "http://[::1]/", "http://[0:0:0:0:0:0:0:1]/", "http://[0000::0001]/", "http://[::]/",
        "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[::FFFF:A9FE:A9FE]/",
        "http://[0:0:0:0:0:ffff:169.254.169.254]/", "http://[::127.0.0.1]/", "http://[::ffff:0:127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/", "http://[64:ff9b::169.254.169.254]/", "http://[64:ff9b:1::a9fe:a9fe]/",
        "http://[2002:7f00:1::]/", "http://[2002:a9fe:a9fe::1]/", "http://[2001:0:7f00:1::]/", "http://[fe80::1]/",
        "http://[fe80::1%25lo]/", "http://[fe80::1%251]/", "http://[fe80::5efe:127.0.0.1]/", "http://[fec0::1]/",
        "http://[fc00::1]/", "http://[fd00:ec2::254]/", "http://[fd20:ce::254]/", "http://[ff02::1]/",
        "http://[100::1]/", "http://[5f00::1]/", "http://[3fff::1]/", "http://localhost/", "http://LOCALHOST./",
        "http://foo.localhost/", "http://ip6-localhost/", "http://localhost.localdomain/", "http://①②⑦.⓪.⓪.①/",
        "http://127。0。0。1/", "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/", "http://１２７.0.0.1/", "http://%31%32%37.0.0.1/",
        "http://user@127.0.0.1/", "http://ok.example@127.0.0.1/", "http://ok.example:80@127.0.0.1:22/",
        "http://127.0.0.1#@ok.example/", "http://ok.example\\@127.0.0.1/", "http://127.0.0.1\\@ok.example/",
        "http:/127.0.0.1/", "http:///127.0.0.1/", "http:\\\\127.0.0.1\\", "http:127.0.0.1/", "http:////127.0.0.1/",
        "127.0.0.1", "127.0.0.1:22", "//127.0.0.1/", "file:///etc/passwd", "gopher://127.0.0.1/", "ftp://127.0.0.1/",
        "dict://127.0.0.1/", "smb://127.0.0.1/", "ldap://127.0.0.1/", "telnet://127.0.0.1/", "ws://127.0.0.1/",
        "http://8.8.8.8:0/", "http://8.8.8.8:22/", "http://8.8.8.8:25/", "http://8.8.8.8:5432/",
        "http://8.8.8.8:6379/", "http://8.8.8.8:00080/", "http://8.8.8.8:/", "http://8.8.8.8:65536/",
        "http://8.8.8.8:-1/", "http://8.8.8.8: 80/", "http://[127.0.0.1]/", "http://[::1]x/", "http://h%00.example/",
        "http://h%0d%0a/", "http://h%2f.example/", "http://h .example/", "http://h\t.example/",
    ]

    @Test(arguments: spellings) func `is refused when it is saved`(url: String) {
        let policy = AddressPolicy()
        let reason: String?
        do { reason = policy.refusal(of: try TargetURL(url)) } catch { reason = error.description }
        #expect(reason?.isEmpty == false)
    }

    /// As if it had been saved by somebody else: no connection is even tried. Only spellings of
    /// special addresses that need no name server: a test leaves this machine neither when it
    /// passes nor when it fails. Names are tried in a network namespace (DestinationTests).
    @Test func `is refused when it is called`() async throws {
        let transport = try Transport(policy: AddressPolicy())
        let names = ["127.0.0.1.", "4294967296", "0x17f000001", "256.0.0.1"]
        let literal = Self.spellings.filter { url in
            let host = url.dropFirst("http://".count).prefix { $0 != "/" }
            return url.hasPrefix("http://") && !host.isEmpty && !host.contains("8.8.8.8")
                && !names.contains(String(host))
                && host.allSatisfy { $0.isHexDigit && $0.isASCII || "xX.:[]".contains($0) }
        }
        #expect(literal.count > 50)
        for url in literal {
            let exchange = await transport.send(
                HTTPRequest(url: url, timeout: .seconds(3), connectTimeout: .seconds(2)))
            let harmless: [HTTPExchange.Failure] = [.blockedAddress, .invalidRequest]
            #expect(exchange.failure.map { harmless.contains($0) } == true, "\(url) \(exchange.message ?? "")")
            #expect(!exchange.mayHaveBeenSent, "\(url)")
        }
        await transport.stop()
    }

    @Test(arguments: [
        "http://8.8.8.8/", "https://1.1.1.1:8443/", "http://[2606:4700:4700::1111]/", "http://[64:ff9b::808:808]/",
        "https://example.com/", "https://xn--mnchen-3ya.example:1024/", "http://100.63.255.254/", "http://172.32.0.0/",
    ])
    func `what is public is not refused`(url: String) throws {
        #expect(AddressPolicy().refusal(of: try TargetURL(url)) == nil)
    }

    @Test func `the database and our own sockets are refused inside a network that is let through`() throws {
        let networks = ["127.0.0.0/8", "10.0.0.0/8"].compactMap(Network.init)
        let database = SocketAddress(try #require(IPAddress("10.1.1.1")), port: 5432)
        let policy = AddressPolicy(allowing: networks, refusing: [database, SocketAddress(.v4(0), port: 8080)])
        #expect(policy.refusal(of: try TargetURL("http://10.1.1.1:5433/")) == nil)
        #expect(policy.refusal(of: try TargetURL("http://10.1.1.1:5432/"))?.contains("its database") == true)
        #expect(policy.refusal(of: try TargetURL("http://127.0.0.1:8080/"))?.contains("itself") == true)
        #expect(policy.refusal(of: try TargetURL("http://localhost:8080/"))?.contains("itself") == true)
        #expect(policy.refusal(of: try TargetURL("http://127.0.0.1:8081/")) == nil)
        #expect(!policy.allows(try #require(IPAddress("127.0.0.1")), port: 8080))
    }

    /// Against a classifier that works on the bytes, one condition per line of the IANA registries.
    @Test
    func `random addresses, and those at the edges of every range, are judged as an independent reader judges them`() {
        var generator = SystemRandomNumberGenerator()
        var edges: [UInt32] = []
        for (base, length) in Oracle.ranges4 {
            let size = UInt32(1) << (32 - length)
            edges += [base &- 1, base, base &+ size &- 1, base &+ size]
        }
        for round in 0..<20_000 {
            let four = round < edges.count ? edges[round] : UInt32.random(in: 0 ... .max, using: &generator)
            let isGlobal = Oracle.isGlobal4(four)
            #expect(AddressPolicy().allows(.v4(four)) == isGlobal, "\(four)")
            let low = UInt64(four)
            // NAT64 carries it: allowed as it is. Everything else that carries an IPv4 address is
            // not for the Internet.
            #expect(AddressPolicy().allows(.v6(high: 0x0064_FF9B_0000_0000, low: low)) == isGlobal)
            for (high, rest) in [
                (0, 0xFFFF_0000_0000 | low), (0, low), (0, 0xFFFF_0000_0000_0000 | low),
                (0x2002_0000_0000_0000 | low << 16, 1),
                (0x0064_FF9B_0001_0000, low), (0x2001_0000_0000_0000 | low, 1),
            ] as [(UInt64, UInt64)] {
                #expect(!AddressPolicy().allows(.v6(high: high, low: rest)), "\(high) \(rest)")
            }
            let six = (
                UInt64.random(in: 0 ... .max, using: &generator), UInt64.random(in: 0 ... .max, using: &generator)
            )
            #expect(AddressPolicy().allows(.v6(high: six.0, low: six.1)) == Oracle.isGlobal6(six.0, six.1), "\(six)")
        }
    }
}

private enum Oracle {
    static let ranges4: [(UInt32, Int)] = [
        (0x0000_0000, 8), (0x0A00_0000, 8), (0x6440_0000, 10), (0x7F00_0000, 8), (0xA9FE_0000, 16), (0xAC10_0000, 12),
        (0xC000_0000, 24), (0xC000_0200, 24), (0xC058_6300, 24), (0xC0A8_0000, 16), (0xC612_0000, 15),
        (0xC633_6400, 24), (0xCB00_7100, 24), (0xE000_0000, 3),
    ]

    static func isGlobal4(_ address: UInt32) -> Bool {
        let (a, b, c) = (address >> 24, address >> 16 & 255, address >> 8 & 255)
        switch (a, b, c) {
        case (0, _, _), (10, _, _), (127, _, _), (224..., _, _): return false
        case (100, 64...127, _), (169, 254, _), (172, 16...31, _), (192, 168, _), (198, 18...19, _): return false
        case (192, 0, 0), (192, 0, 2), (192, 88, 99), (198, 51, 100), (203, 0, 113): return false
        default: return true
        }
    }

    static func isGlobal6(_ high: UInt64, _ low: UInt64) -> Bool {
        let words = [high >> 48, high >> 32 & 0xFFFF, high >> 16 & 0xFFFF, low >> 32]
        guard (0x2000...0x3FFF).contains(words[0]) else { return false }
        if words[0] == 0x2001, words[1] < 0x0200 || words[1] == 0x0DB8 { return false }
        if words[0] == 0x2002 || words[0] == 0x3FFF && words[1] < 0x1000 { return false }
        if words[3] == 0x0000_5EFE || words[3] == 0x0200_5EFE { return isGlobal4(UInt32(truncatingIfNeeded: low)) }
        return true
    }
}
