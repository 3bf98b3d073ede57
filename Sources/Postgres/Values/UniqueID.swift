/// A 128-bit universally unique identifier (RFC 9562), written in the canonical lower-case form.
///
/// Foundation's `UUID` would bring Foundation into the targets that wrap C; this is all we need of
/// it.
public struct UniqueID: Hashable, Sendable, CustomStringConvertible {
    let high: UInt64
    let low: UInt64

    init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }

    /// The last 53 bits as a number: every JSON reader holds it exactly.
    package var number: Int64 { Int64(low & (1 << 53 - 1)) }

    /// A random identifier (version 4).
    public static func random() -> UniqueID {
        var generator = SystemRandomNumberGenerator()
        let high = generator.next() & 0xFFFF_FFFF_FFFF_0FFF | 0x4000
        let low = generator.next() & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000
        return UniqueID(high: high, low: low)
    }

    /// Reads the canonical form, 8-4-4-4-12 hexadecimal digits of either case; nil for anything
    /// else.
    public init?(_ text: String) {
        var text = text
        let value: UniqueID? = text.withUTF8 { unsafe UniqueID(ascii: $0) }
        guard let value else { return nil }
        self = value
    }

    init?(ascii bytes: some Collection<UInt8>) {
        guard bytes.count == 36 else { return nil }
        var words: [UInt64] = [0, 0]
        var digits = 0
        for (position, byte) in bytes.enumerated() {
            if position == 8 || position == 13 || position == 18 || position == 23 {
                guard byte == UInt8(ascii: "-") else { return nil }
                continue
            }
            guard let digit = hexadecimalValue(byte) else { return nil }
            words[digits / 16] = words[digits / 16] << 4 | UInt64(digit)
            digits += 1
        }
        self.init(high: words[0], low: words[1])
    }

    /// The canonical form, in lower case.
    public var description: String { String(decoding: text, as: UTF8.self) }

    /// The canonical form as ASCII bytes.
    public var text: [UInt8] {
        var text: [UInt8] = []
        text.reserveCapacity(36)
        for position in 0..<32 {
            if position == 8 || position == 12 || position == 16 || position == 20 { text.append(UInt8(ascii: "-")) }
            let word = position < 16 ? high : low
            text.append(hexadecimalDigits[Int(word >> UInt64(60 - position % 16 * 4) & 0xF)])
        }
        return text
    }
}

let hexadecimalDigits = Array("0123456789abcdef".utf8)

func hexadecimalValue(_ byte: UInt8) -> UInt8? {
    switch byte {
    case UInt8(ascii: "0")...UInt8(ascii: "9"): byte - UInt8(ascii: "0")
    case UInt8(ascii: "a")...UInt8(ascii: "f"): byte - UInt8(ascii: "a") + 10
    case UInt8(ascii: "A")...UInt8(ascii: "F"): byte - UInt8(ascii: "A") + 10
    default: nil
    }
}
