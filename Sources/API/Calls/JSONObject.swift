import Templates

/// A JSON object that is written member by member.
struct JSONObject {
    private(set) var bytes: [UInt8] = [UInt8(ascii: "{")]

    /// The whole object.
    var closed: [UInt8] { bytes + [UInt8(ascii: "}")] }

    mutating func add(_ name: String, raw value: some Sequence<UInt8>) {
        if bytes.count > 1 { bytes.append(UInt8(ascii: ",")) }
        bytes.appendJSONString(name.utf8)
        bytes.append(UInt8(ascii: ":"))
        bytes += value
    }

    mutating func add(_ name: String, _ value: String?) {
        guard let value else { return add(name, raw: "null".utf8) }
        var text: [UInt8] = []
        text.appendJSONString(value.utf8)
        add(name, raw: text)
    }

    mutating func add(_ name: String, _ value: Int) { add(name, raw: "\(value)".utf8) }
    mutating func add(_ name: String, _ value: Bool) { add(name, raw: (value ? "true" : "false").utf8) }
}
