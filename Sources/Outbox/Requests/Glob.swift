/// A pattern with `*` for any characters and `?` for one.
///
/// It is matched as a nondeterministic automaton whose states are bits (Baeza-Yates and Gonnet
/// 1992): for each character of the text one step over a few words, so the time is proportional to
/// the length of the text, for any pattern and text.
struct Glob: Sendable, Equatable {
    /// How many characters it has, stars aside: the number of the last state.
    private let length: Int
    /// States that remain at any character: a star stands there.
    private let loops: [UInt64]
    /// For each character of ASCII its places, a few words each; then those of all other
    /// characters.
    private let ascii: [UInt64]
    private let others: [Unicode.Scalar: [UInt64]]
    private let any: [UInt64]

    init(_ text: String) {
        let scalars = Array(text.unicodeScalars)
        let length = scalars.count { $0 != "*" }
        let words = length / 64 + 1
        let none = [UInt64](repeating: 0, count: words)
        var (loops, any, places) = (none, none, [Unicode.Scalar: [UInt64]]())
        var place = 0
        for scalar in scalars {
            switch scalar {
            case "*": loops[place / 64] |= 1 << UInt64(place % 64)
            case "?":
                any[place / 64] |= 1 << UInt64(place % 64)
                place += 1
            default:
                places[scalar, default: none][place / 64] |= 1 << UInt64(place % 64)
                place += 1
            }
        }
        (self.length, self.loops, self.any) = (length, loops, any)
        others = places.mapValues { own in own.indices.map { own[$0] | any[$0] } }
        ascii = (0..<128).flatMap { [others] in others[Unicode.Scalar(UInt8($0))] ?? any }
    }

    /// True when the pattern takes the whole text.
    func matches(_ text: String) -> Bool {
        var text = text
        return text.withUTF8 { bytes in
            loops.count == 1 ? matchesInOneWord(bytes) : matchesInWords(bytes)
        }
    }

    /// Most patterns have fewer than 64 characters.
    private func matchesInOneWord(_ text: UnsafeBufferPointer<UInt8>) -> Bool {
        let loops = loops[0]
        // State n: the first n characters of the pattern are matched.
        var states: UInt64 = 1
        var place = 0
        while place < text.count {
            let byte = text[place]
            let taken: UInt64
            if byte < 0x80 {
                taken = ascii[Int(byte)]
                place += 1
            } else {
                taken = (others[Self.scalar(in: text, at: &place)] ?? any)[0]
            }
            states = (states & taken) << 1 | states & loops
            if states == 0 { return false }
        }
        return states >> UInt64(length) & 1 == 1
    }

    private func matchesInWords(_ text: UnsafeBufferPointer<UInt8>) -> Bool {
        let words = loops.count
        var states = [UInt64](repeating: 0, count: words)
        states[0] = 1
        var place = 0
        while place < text.count {
            let byte = text[place]
            let other: [UInt64]?
            if byte < 0x80 {
                other = nil
                place += 1
            } else {
                other = others[Self.scalar(in: text, at: &place)] ?? any
            }
            var carry: UInt64 = 0
            var isAlive: UInt64 = 0
            for word in 0..<words {
                let moved = states[word] & (other.map { $0[word] } ?? ascii[Int(byte) * words + word])
                let next = moved << 1 | carry | states[word] & loops[word]
                carry = moved >> 63
                states[word] = next
                isAlive |= next
            }
            if isAlive == 0 { return false }
        }
        return states[length / 64] >> UInt64(length % 64) & 1 == 1
    }

    /// The character that begins here with a byte of at least 0x80, in valid UTF-8, and moves the
    /// place behind it.
    private static func scalar(in text: UnsafeBufferPointer<UInt8>, at place: inout Int) -> Unicode.Scalar {
        let first = text[place]
        let count = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4
        var value = UInt32(first) & (0x7F >> UInt32(count))
        for next in text[(place + 1)..<(place + count)] { value = value << 6 | UInt32(next & 0x3F) }
        place += count
        return Unicode.Scalar(value) ?? "\u{FFFD}"
    }
}
