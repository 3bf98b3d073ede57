import Testing
import Transport

@Suite struct AddressPolicyTests {
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

@Suite struct TargetURLTests {
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
        let refusal = #expect(throws: TargetURL.Refusal.self) { try TargetURL(text) }
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

@Suite struct HTTPHeaderTests {
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
        let refusal = #expect(throws: HTTPHeader.Refusal.self) { try HTTPHeader(name: name, value: value) }
        #expect(refusal?.description.contains("evil") == false)
    }

    @Test func `ordinary headers are made as given`() throws {
        let header = try HTTPHeader(name: "X-Api-Key", value: "a\tb: c; ü")
        #expect(header.name == "X-Api-Key")
        #expect(header.value == "a\tb: c; ü")
        #expect(try HTTPHeader(name: "X-Empty", value: "").value.isEmpty)
    }
}
