/// A sequence of bytes to search for in others: in time proportional to the sum of both lengths,
/// for any bytes (Knuth, Morris and Pratt 1977). A search that starts over at every place takes the
/// product, and both texts may come from strangers.
public struct ByteSearch: Sendable, Equatable {
    private let pattern: [UInt8]
    /// For each place, the length of the prefix that ends there.
    private let borders: [Int]

    /// Prepares a search for these bytes.
    public init(_ pattern: some Sequence<UInt8>) {
        let pattern = Array(pattern)
        var borders = Array(repeating: 0, count: pattern.count)
        var length = 0
        for place in pattern.indices.dropFirst() {
            while length > 0, pattern[place] != pattern[length] { length = borders[length - 1] }
            if pattern[place] == pattern[length] { length += 1 }
            borders[place] = length
        }
        (self.pattern, self.borders) = (pattern, borders)
    }

    /// True when the data contains the bytes.
    public func isFound(in text: some Sequence<UInt8>) -> Bool {
        if pattern.isEmpty { return true }
        var length = 0
        for byte in text {
            while length > 0, byte != pattern[length] { length = borders[length - 1] }
            if byte == pattern[length] { length += 1 }
            if length == pattern.count { return true }
        }
        return false
    }
}
