/// A text that is its bytes: two are equal, and hash alike, when their UTF-8 is the same.
///
/// Swift's own comparison takes texts for equal that are canonically equivalent (Unicode 3.7), such as é in one scalar and in two,
/// or the sign of the kelvin and the letter K. To a database, a receiver and their owner they are two. So what comes from outside
/// and decides something, such as whose event it is, is one of these.
public struct ExactText: Hashable, Sendable, ExpressibleByStringLiteral, CustomStringConvertible {
    /// The text.
    public let text: String

    /// The text as it is: nothing is normalised.
    public init(_ text: String) { self.text = text }

    /// A constant of ours.
    public init(stringLiteral text: String) { self.text = text }

    /// Its bytes.
    public var utf8: String.UTF8View { text.utf8 }

    /// The text.
    public var description: String { text }

    /// True when the bytes are the same.
    public static func == (left: ExactText, right: ExactText) -> Bool {
        guard left.text.utf8.count == right.text.utf8.count else { return false }
        return left.text.utf8.elementsEqual(right.text.utf8)
    }

    /// Hashes the bytes.
    public func hash(into hasher: inout Hasher) {
        hasher.combine(text.utf8.count)
        var text = text
        text.withUTF8 { unsafe hasher.combine(bytes: UnsafeRawBufferPointer($0)) }
    }

    /// With the letters A to Z as a to z, and everything else as it is: what has no case in a protocol has none there only.
    public var lowercasedASCII: ExactText {
        let bytes = text.utf8.map { (0x41...0x5A).contains($0) ? $0 + 0x20 : $0 }
        return ExactText(String(decoding: bytes, as: UTF8.self))
    }
}

extension ExactText: Codable {
    /// Reads a string.
    public init(from decoder: any Decoder) throws {
        text = try decoder.singleValueContainer().decode(String.self)
    }

    /// Writes a string.
    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(text)
    }
}
