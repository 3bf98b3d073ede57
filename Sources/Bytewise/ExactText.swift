/// A text compared by its bytes: two texts are equal, and hash alike, when their UTF-8 is the same.
///
/// Swift's own comparison treats canonically equivalent texts as equal (Unicode 3.7), such as é in
/// one scalar and in two, or the kelvin sign and the letter K. For a database, a receiver and their
/// owner they are two texts. So texts from outside that decide something, such as the customer of
/// an event, use this type.
public struct ExactText: Hashable, Sendable, ExpressibleByStringLiteral, CustomStringConvertible {
    /// The text.
    public let text: String

    /// The text as it is: nothing is normalised.
    public init(_ text: String) { self.text = text }

    /// One of our constants.
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

    /// With the letters A to Z as a to z, and everything else unchanged: protocols ignore case in
    /// these letters only.
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
