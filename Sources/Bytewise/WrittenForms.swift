extension Duration {
    /// Reads a number and a unit, as in `500ms`, `1.5s`, `2m`, `1h` or `1d`, of less than a
    /// thousand days or so; nil for anything else.
    public init?(written text: String) {
        let number = text.prefix { $0.isASCII && ($0.isNumber || $0 == ".") }
        let seconds: [String: Double] = ["us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400]
        guard let value = Double(number), value.isFinite, value >= 0, value < 1e9,
            let unit = seconds[String(text.dropFirst(number.count))], value * unit < 1e8
        else { return nil }
        self = .microseconds(Int64((value * unit * 1e6).rounded()))
    }
}

/// True of ASCII's letters and digits.
public func isLetterOrDigit(_ byte: UInt8) -> Bool {
    (0x30...0x39).contains(byte) || (0x41...0x5A).contains(byte) || (0x61...0x7A).contains(byte)
}

extension [UInt8] {
    /// Appends bytes as a component of a URL: all but the unreserved characters are encoded (RFC
    /// 3986 2.3).
    public mutating func appendPercentEncoded(_ bytes: some Sequence<UInt8>) {
        let digits = [UInt8]("0123456789ABCDEF".utf8)
        for byte in bytes {
            if isLetterOrDigit(byte) || "-._~".utf8.contains(byte) {
                append(byte)
            } else {
                self += [UInt8(ascii: "%"), digits[Int(byte >> 4)], digits[Int(byte & 15)]]
            }
        }
    }
}
