import Testing

@testable import Outbox

/// A pattern of a rule: any characters, one character, and itself.
@Suite(.timeLimit(.minutes(15))) struct GlobTests {
    @Test(arguments: [
        ("", "", true), ("", "a", false), ("*", "", true), ("*", "abc", true), ("?", "", false), ("?", "a", true),
        ("a*c", "ac", true), ("a*c", "abbc", true), ("a*c", "abcd", false), ("a?c", "abc", true), ("a?c", "ac", false),
        ("**a**", "xax", true), ("*.example.?om", "www.example.com", true), ("caf\u{E9}", "cafe\u{301}", false),
        ("?", "\u{1F600}", true), ("*ab*ab*", "abab", true), ("*ab*ab*", "aba", false),
    ])
    func `it takes the whole text or nothing`(pattern: String, text: String, isTaken: Bool) {
        #expect(Glob(pattern).matches(text) == isTaken)
    }

    /// As it is defined, by trying everything.
    private func plain(_ pattern: ArraySlice<Character>, _ text: ArraySlice<Character>) -> Bool {
        guard let first = pattern.first else { return text.isEmpty }
        if first == "*" { return plain(pattern.dropFirst(), text) || !text.isEmpty && plain(pattern, text.dropFirst()) }
        guard let letter = text.first, first == "?" || first == letter else { return false }
        return plain(pattern.dropFirst(), text.dropFirst())
    }

    @Test func `it says what the definition says, of any pattern and any text`() {
        for _ in 0..<20_000 {
            let pattern = String((0..<Int.random(in: 0...8)).map { _ in "ab*?".randomElement() ?? "a" })
            let text = String((0..<Int.random(in: 0...10)).map { _ in "ab".randomElement() ?? "a" })
            #expect(Glob(pattern).matches(text) == plain(Array(pattern)[...], Array(text)[...]), "\(pattern) \(text)")
        }
    }

    @Test func `a pattern may be longer than a word of bits`() {
        let long = String(repeating: "ab?", count: 80)
        #expect(Glob(long + "*").matches(String(repeating: "abx", count: 80) + "rest"))
        #expect(!Glob(long).matches(String(repeating: "abx", count: 79) + "aax"))
        #expect(Glob("*" + long).matches("x" + String(repeating: "abx", count: 80)))
    }

    @Test func `rules cost so many steps at most, and the one that passes them is named`() throws {
        var rules = ResponseRules()
        let body = Array(#"{"v":"\#(String(repeating: "ab", count: 125_000))"}"#.utf8)
        // Patterns of fewer than 64 characters: all of them fit, whatever they are.
        rules.checks = try (1...32).map { try Check("deny glob v *a*b*a*b*a*b*\($0)*z") }
        try rules.validate()
        #expect(rules.judge(body, isComplete: true) == .success)
        #expect(rules.cost(of: body.count) <= ResponseRules.maxSteps)

        let long = "*" + String(repeating: "a*", count: 100)
        rules.checks = try (1...32).map { try Check("deny glob v \(long)\($0)*z") }
        try rules.validate()
        guard case .failure(let text) = rules.judge(body, isComplete: true) else {
            Issue.record("it was judged")
            return
        }
        // 250,008 bytes are compared once, and four times for each rule: 16 rules fit.
        #expect(text.hasPrefix("rule 17 (deny glob v *a*a*"), "\(text.prefix(40))")
        #expect(text.contains("take more than 16777216 steps for a response of 250008 bytes"))
        // A small response costs less.
        #expect(rules.judge(Array(#"{"v":"b"}"#.utf8), isComplete: true) == .success)
    }
}
