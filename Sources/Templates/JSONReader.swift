import Bytewise

/// Reads JSON by recursive descent (RFC 8259).
struct JSONReader {
    private let bytes: [UInt8]
    private var place = 0

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    mutating func document() throws(JSON.ParseError) -> JSON {
        let value = try value(depth: 0)
        skipSpace()
        guard place == bytes.count else { throw refusal("nothing may follow the value") }
        return value
    }

    /// Reads one value and leaves the rest; for a value inside another text, such as JSONP.
    mutating func value(depth: Int) throws(JSON.ParseError) -> JSON {
        guard depth <= JSON.maxDepth else { throw refusal("nested deeper than \(JSON.maxDepth) levels") }
        skipSpace()
        let start = place
        let kind: JSON.Kind
        switch peek {
        case UInt8(ascii: "{"): kind = .object(try members(depth: depth))
        case UInt8(ascii: "["): kind = .array(try elements(depth: depth))
        case UInt8(ascii: "\""): kind = .string(try string())
        case UInt8(ascii: "t"): try word("true"); kind = .boolean(true)
        case UInt8(ascii: "f"): try word("false"); kind = .boolean(false)
        case UInt8(ascii: "n"): try word("null"); kind = .null
        case let byte? where byte == UInt8(ascii: "-") || isDigit(byte): try number(); kind = .number
        case nil: throw refusal("the text ends where a value was expected")
        default: throw refusal("expected a value")
        }
        return JSON(kind: kind, source: bytes[start..<place])
    }

    /// The text after the last value that was read.
    var rest: ArraySlice<UInt8> { bytes[place...] }

    private var peek: UInt8? { place < bytes.count ? bytes[place] : nil }

    private mutating func take(_ byte: UInt8) -> Bool {
        guard peek == byte else { return false }
        place += 1
        return true
    }

    private mutating func skipSpace() {
        while let byte = peek, byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09 { place += 1 }
    }

    private mutating func members(depth: Int) throws(JSON.ParseError) -> [(name: ExactText, value: JSON)] {
        place += 1
        skipSpace()
        var members: [(name: ExactText, value: JSON)] = []
        if take(UInt8(ascii: "}")) { return members }
        while true {
            skipSpace()
            guard peek == UInt8(ascii: "\"") else { throw refusal("expected a member's name in quotes") }
            let name = try string()
            skipSpace()
            guard take(UInt8(ascii: ":")) else { throw refusal("expected a colon after the member's name") }
            members.append((ExactText(name), try value(depth: depth + 1)))
            skipSpace()
            if take(UInt8(ascii: "}")) { return members }
            guard take(UInt8(ascii: ",")) else { throw refusal("expected a comma or } after a member") }
        }
    }

    private mutating func elements(depth: Int) throws(JSON.ParseError) -> [JSON] {
        place += 1
        skipSpace()
        var elements: [JSON] = []
        if take(UInt8(ascii: "]")) { return elements }
        while true {
            elements.append(try value(depth: depth + 1))
            skipSpace()
            if take(UInt8(ascii: "]")) { return elements }
            guard take(UInt8(ascii: ",")) else { throw refusal("expected a comma or ] after an element") }
        }
    }

    private mutating func string() throws(JSON.ParseError) -> String {
        place += 1
        var text: [UInt8] = []
        let start = place
        while let byte = peek {
            switch byte {
            case UInt8(ascii: "\""):
                guard let string = String(validating: text, as: UTF8.self) else {
                    place = start
                    throw refusal("the string is not UTF-8")
                }
                place += 1
                return string
            case UInt8(ascii: "\\"):
                place += 1
                try escape(into: &text)
            case 0..<0x20: throw refusal("a control character must be escaped in a string")
            default:
                text.append(byte)
                place += 1
            }
        }
        throw refusal("the string does not end")
    }

    private mutating func escape(into text: inout [UInt8]) throws(JSON.ParseError) {
        guard let byte = peek else { throw refusal("the string does not end") }
        place += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): text.append(byte)
        case UInt8(ascii: "b"): text.append(0x08)
        case UInt8(ascii: "f"): text.append(0x0C)
        case UInt8(ascii: "n"): text.append(0x0A)
        case UInt8(ascii: "r"): text.append(0x0D)
        case UInt8(ascii: "t"): text.append(0x09)
        case UInt8(ascii: "u"):
            var code = UInt32(try unit())
            if (0xD800..<0xDC00).contains(code), bytes[place...].starts(with: #"\u"#.utf8) {
                let before = place
                place += 2
                let low = UInt32(try unit())
                if (0xDC00..<0xE000).contains(low) {
                    code = 0x10000 + (code - 0xD800) << 10 + (low - 0xDC00)
                } else {
                    place = before
                }
            }
            // Half a surrogate pair is not a character.
            let scalar = Unicode.Scalar(code) ?? "\u{FFFD}"
            text += String(Character(scalar)).utf8
        default:
            place -= 1
            throw refusal("\\ is followed by what is no escape")
        }
    }

    /// Four hexadecimal digits.
    private mutating func unit() throws(JSON.ParseError) -> UInt16 {
        var value: UInt16 = 0
        for _ in 0..<4 {
            guard let byte = peek, let digit = Character(Unicode.Scalar(byte)).hexDigitValue, byte < 0x80 else {
                throw refusal("\\u needs four hexadecimal digits")
            }
            value = value << 4 | UInt16(digit)
            place += 1
        }
        return value
    }

    private mutating func word(_ word: String) throws(JSON.ParseError) {
        guard bytes[place...].starts(with: word.utf8) else { throw refusal("expected a value") }
        place += word.utf8.count
    }

    private mutating func number() throws(JSON.ParseError) {
        _ = take(UInt8(ascii: "-"))
        if !take(UInt8(ascii: "0")) { try digits() }
        if take(UInt8(ascii: ".")) { try digits() }
        if peek == UInt8(ascii: "e") || peek == UInt8(ascii: "E") {
            place += 1
            if peek == UInt8(ascii: "+") || peek == UInt8(ascii: "-") { place += 1 }
            try digits()
        }
    }

    private mutating func digits() throws(JSON.ParseError) {
        let start = place
        while let byte = peek, isDigit(byte) { place += 1 }
        guard place > start else { throw refusal("expected a digit") }
    }

    private func refusal(_ reason: String) -> JSON.ParseError {
        let (line, column) = position(of: place, in: bytes)
        return JSON.ParseError(line: line, column: column, reason: reason)
    }
}

func isDigit(_ byte: UInt8) -> Bool { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) }

/// The line and the column, both counted from 1, of a place in a text.
func position(of place: Int, in bytes: some BidirectionalCollection<UInt8>) -> (line: Int, column: Int) {
    let before = bytes.prefix(place)
    let line = before.count { $0 == 0x0A } + 1
    let column = before.reversed().prefix { $0 != 0x0A }.count + 1
    return (line, column)
}
