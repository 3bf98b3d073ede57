import Bytewise
import Foundation
import Templates
import Testing

@Suite(.timeLimit(.minutes(15))) struct JSONTests {
    @Test func `paths are split at their delimiters, whatever mark follows them`() throws {
        func bytes(_ steps: [String]) -> [[UInt8]] { steps.map { Array($0.utf8) } }
        #expect(bytes(JSON.path("a.\u{301}b")) == bytes(["a", "\u{301}b"]))
        #expect(bytes(JSON.path("/\u{301}a/b~1\u{301}c~0d~01~")) == bytes(["\u{301}a", "b/\u{301}c~d~1~"]))
        let json = try JSON("[10,11]".utf8)
        #expect(json.value(at: ["1"])?.text == "11")
        for step in ["+1", "01", "-0", "1 ", ""] { #expect(json.value(at: [step]) == nil, "\(step)") }
        let template = try Template("%after.text|\u{301}none%", kind: .text)
        #expect(template.parameters.first?.fallback.map { Array($0.utf8) } == Array("\u{301}none".utf8))
    }

    @Test(arguments: [
        "null", "true", "false", "0", "-0", "1e400", "-1.5E+3", "12345678901234567890", #""""#,
        #""\u00e9\ud83d\ude00\/""#,
        "[]", "{}", #"[1,[2,{"a":null}]]"#, " { \"a\" : 1 , \"a\" : 2 }\n",
    ])
    func `what is JSON is read, and its bytes are kept`(text: String) throws {
        #expect(
            String(decoding: try JSON(text.utf8).source, as: UTF8.self)
                == text.trimmingCharacters(in: .whitespacesAndNewlines))
    }

    @Test(arguments: [
        "", " ", "nul", "01", "1.", ".5", "+1", "1e", "NaN", "'a'", "\"a", "\"\\x\"", "\"\\u12\"", "\"\t\"", "[1,]",
        "[1 2]",
        "{\"a\"}", "{\"a\":}", "{a:1}", "{\"a\":1,}", "1 2", "{} x", "[", "{", "\u{FEFF}1",
        String(repeating: "[", count: 100_000),
    ])
    func `what is not JSON is refused with a place`(text: String) {
        let refusal = #expect(throws: JSON.ParseError.self) { try JSON(text.utf8) }
        #expect((refusal?.line ?? 0) >= 1 && (refusal?.column ?? 0) >= 1)
    }

    @Test func `bytes that are not UTF-8 are refused`() {
        #expect(throws: JSON.ParseError.self) { try JSON([0x22, 0xFF, 0x22]) }
    }

    @Test func `paths lead into objects and arrays, and of equal names the last counts`() throws {
        let json = try JSON(#"{"a":{"b":[10,{"c":"x"}]},"d":1,"d":2,"e/f~":3}"#.utf8)
        for (path, text) in [
            ("a.b[0]", "10"), ("a.b.1.c", "x"), ("/a/b/1/c", "x"), ("d", "2"), ("/e~1f~0", "3"), ("a.x", nil),
            ("a.b[2]", nil), ("d.x", nil),
        ] {
            #expect(json.value(at: JSON.path(path))?.text == text, "\(path)")
        }
    }

    /// Against Foundation's own reader, which is lax where this is strict, but never the other way
    /// round.
    @Test func `a random document that Foundation writes is read as the same`() throws {
        var generator = SystemRandomNumberGenerator()
        func value(_ depth: Int) -> Any {
            switch Int.random(in: 0..<(depth > 3 ? 4 : 6), using: &generator) {
            case 0: return NSNull()
            case 1: return Bool.random(using: &generator)
            case 2: return Int.random(in: -1000...1000, using: &generator)
            case 3:
                return String(
                    (0..<Int.random(in: 0..<8)).map { _ in "a\"\\\n\u{1}é😀\u{2028}".randomElement(using: &generator)! })
            case 4: return (0..<Int.random(in: 0..<4)).map { _ in value(depth + 1) }
            default:
                return Dictionary(
                    (0..<Int.random(in: 0..<4)).map { ("k\($0)", value(depth + 1)) }, uniquingKeysWith: { $1 })
            }
        }
        for _ in 0..<500 {
            let wanted = value(0)
            let data = try JSONSerialization.data(withJSONObject: wanted, options: .fragmentsAllowed)
            #expect(isSame(try JSON(data), wanted))
        }
    }

    private func isSame(_ json: JSON, _ value: Any) -> Bool {
        switch (json.kind, value) {
        case (.null, is NSNull): true
        case (.string(let text), let value as String): text == value
        case (.array(let elements), let value as [Any]):
            elements.count == value.count && zip(elements, value).allSatisfy { isSame($0, $1) }
        case (.object(let members), let value as [String: Any]):
            members.count == value.count
                && members.allSatisfy { member in value[member.name.text].map { isSame(member.value, $0) } ?? false }
        case (.boolean(let flag), let value as Bool): flag == value
        case (.number, let value as Int): json.text == "\(value)"
        default: false
        }
    }
}
