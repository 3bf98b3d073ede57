import Bytewise

extension JSON {
    /// The value inside a JSONP response, `callback({...});`: parsed, never evaluated. A comment
    /// `/**/` may precede it and a semicolon follow it, and Express's check that the function
    /// exists; plain JSON is refused.
    package init(callback bytes: some Collection<UInt8>) throws(ParseError) {
        let all = Array(bytes)
        func isSpace(_ byte: UInt8) -> Bool { byte == 0x20 || (0x09...0x0D).contains(byte) }
        func refusal(_ place: Int, _ reason: String) -> ParseError {
            let (line, column) = position(of: place, in: all)
            return ParseError(line: line, column: column, reason: reason)
        }
        var place = 0
        func skipSpace() { while place < all.count, isSpace(all[place]) { place += 1 } }
        skipSpace()
        if all[place...].starts(with: "/**/".utf8) { place += 4 }
        skipSpace()
        func take(_ text: String) -> Bool {
            guard all[place...].starts(with: text.utf8) else { return false }
            place += text.utf8.count
            skipSpace()
            return true
        }
        func name() throws(ParseError) -> ArraySlice<UInt8> {
            let start = place
            while place < all.count, isLetterOrDigit(all[place]) || "_$.".utf8.contains(all[place]) { place += 1 }
            guard place > start, !isDigit(all[start]) else {
                throw refusal(start, "expected the name of a callback function")
            }
            defer { skipSpace() }
            return all[start..<place]
        }
        // As Express writes it: typeof callback === 'function' && callback({...});
        if take("typeof ") {
            let asked = try name()
            guard take("==="), take("'function'"), take("&&") else {
                throw refusal(place, "expected === 'function' && after the name")
            }
            let called = place
            guard try name() == asked else { throw refusal(called, "expected the same name again") }
        } else {
            _ = try name()
        }
        guard place < all.count, all[place] == UInt8(ascii: "(") else {
            throw refusal(place, "expected ( after the name")
        }
        place += 1
        // The reader counts lines from its own beginning: give it blanks in place of the text
        // before.
        let blanks = all[..<place].map { $0 == 0x0A ? $0 : 0x20 }
        var reader = JSONReader(blanks + all[place...])
        let value = try reader.value(depth: 0)
        place = all.count - reader.rest.count
        skipSpace()
        guard place < all.count, all[place] == UInt8(ascii: ")") else {
            throw refusal(place, "expected ) after the value")
        }
        place += 1
        skipSpace()
        if place < all.count, all[place] == UInt8(ascii: ";") { place += 1 }
        skipSpace()
        guard place == all.count else { throw refusal(place, "nothing may follow the call") }
        self = value
    }
}
