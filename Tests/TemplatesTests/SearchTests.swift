import Bytewise
import Templates
import Testing

/// Searches that strangers' texts cannot slow down find what the plain ones find.
@Suite(.timeLimit(.minutes(15))) struct SearchTests {
    /// Few letters, so that much of it repeats.
    private func letters(_ count: Int) -> [UInt8] { (0..<count).map { _ in UInt8.random(in: 0x61...0x62) } }

    @Test func `bytes are found where they are, and nowhere else`() {
        for _ in 0..<5000 {
            let (text, pattern) = (letters(.random(in: 0...20)), letters(.random(in: 0...6)))
            let isThere = text.indices.contains { text[$0...].starts(with: pattern) } || pattern.isEmpty
            #expect(ByteSearch(pattern).isFound(in: text) == isThere, "\(pattern) in \(text)")
        }
        #expect(
            ByteSearch("aaab".utf8).isFound(in: Array(repeating: UInt8(ascii: "a"), count: 9) + [UInt8(ascii: "b")]))
    }

    @Test func `a finder finds what reading the document finds`() throws {
        let members = (0..<40).map { "\"m\($0 % 30)\":{\"a\":[\($0),{\"b\":\"\($0)\"}],\"caf\u{E9}\":1}" }
        let document = try JSON("{\(members.joined(separator: ",")),\"cafe\u{301}\":2,\"caf\u{E9}\":3}".utf8)
        let finder = JSONFinder(document)
        let paths: [[String]] = [
            [], ["m3"], ["m3", "a", "0"], ["m3", "a", "1", "b"], ["m29", "a", "0"], ["m30"], ["m3", "a", "x"],
            ["m3", "a", "0", "y"], ["m3", "caf\u{E9}"], ["m3", "cafe\u{301}"], ["caf\u{E9}"], ["cafe\u{301}"],
        ]
        for path in paths + paths {
            #expect(finder.value(at: path)?.source == document.value(at: path)?.source, "\(path)")
        }
        // The last one of a name counts.
        #expect(finder.value(at: ["m3", "a", "0"])?.text == "33")
    }
}
