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
    /// For each character of the pattern, its places; `any` for all other characters.
    private let places: [Unicode.Scalar: [UInt64]]
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
        self.places = places.mapValues { own in own.indices.map { own[$0] | any[$0] } }
    }

    /// True when the pattern takes the whole text.
    func matches(_ text: String) -> Bool {
        // State n: the first n characters of the pattern are matched.
        var states = [UInt64](repeating: 0, count: loops.count)
        states[0] = 1
        for scalar in text.unicodeScalars {
            let taken = places[scalar] ?? any
            var carry: UInt64 = 0
            var isAlive = false
            for word in states.indices {
                let moved = states[word] & taken[word]
                let next = moved << 1 | carry | states[word] & loops[word]
                carry = moved >> 63
                states[word] = next
                isAlive = isAlive || next != 0
            }
            if !isAlive { return false }
        }
        return states[length / 64] >> UInt64(length % 64) & 1 == 1
    }
}
