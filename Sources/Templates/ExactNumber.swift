/// A JSON number (RFC 8259 6) as the exact value of its digits: compared without losing any of
/// them. A floating-point number would take 9007199254740993 for 9007199254740992.
package struct ExactNumber: Equatable, Sendable {
    private let isNegative: Bool
    /// Without zeros at either end; none for zero.
    private let digits: [UInt8]
    /// The power of ten of the last digit. An exponent that is out of range stays as it was
    /// written.
    private let exponent: Exponent

    private enum Exponent: Equatable { case number(Int), text([UInt8]) }

    /// Nil for a text that is not a JSON number.
    package init?(_ text: some Collection<UInt8>) {
        guard let json = try? JSON(text), case .number = json.kind else { return nil }
        var rest = json.source[...]
        let isMinus = rest.first == UInt8(ascii: "-")
        if isMinus { rest.removeFirst() }
        let mantissa = rest.prefix { $0 != UInt8(ascii: "e") && $0 != UInt8(ascii: "E") }
        let written = rest.dropFirst(mantissa.count + 1)
        let whole = mantissa.prefix { $0 != UInt8(ascii: ".") }
        let fraction = mantissa.dropFirst(whole.count + 1)
        var digits = Array((whole + fraction).drop { $0 == UInt8(ascii: "0") })
        let length = digits.count
        while digits.last == UInt8(ascii: "0") { digits.removeLast() }
        self.digits = digits
        isNegative = isMinus && !digits.isEmpty
        if digits.isEmpty {
            exponent = .number(0)
        } else if let power = written.isEmpty ? 0 : Int(String(decoding: written, as: UTF8.self)),
            power.magnitude < 1 << 40
        {
            exponent = .number(power - fraction.count + length - digits.count)
        } else {
            exponent = .text(Array(written) + [UInt8(ascii: " ")] + String(fraction.count - length + digits.count).utf8)
        }
    }
}
