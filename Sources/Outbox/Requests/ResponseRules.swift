import Bytewise
import Templates

/// When a response is a success, and which failures are final: the rules for the status and the
/// body.
package struct ResponseRules: Sendable, Equatable {
    /// The required form of the body.
    package enum Form: String, Sendable, Codable, CaseIterable {
        /// Any body.
        case any
        /// JSON, regardless of its content type.
        case json
        /// JSON inside a call, `callback({...});`.
        case jsonp
    }

    /// Statuses that mean success, before the body is checked.
    package var success = StatusSet([200...299])
    /// Statuses after which the same event is not tried again: 413 and 415 say that it will never
    /// be accepted (RFC 9110 15.5.14, 15.5.16).
    package var permanent = StatusSet([413...413, 415...415])
    package var form = Form.any
    /// The checks, which must all hold.
    package var checks: [Check] = []
    /// Texts that make a response a 429 in disguise, as Microsoft Teams sends them.
    package var throttled: [String] = []
    /// The event is not tried again when a check fails.
    package var isFailureFinal = false

    package init() {}

    /// These bounds limit what is stored and shown; what judging a response may cost, `maxSteps`
    /// does.
    func validate() throws {
        guard checks.count <= 32, throttled.count <= 8 else {
            throw Problem(.invalidValue, "more than 32 rules, or more than 8 texts that mean too many requests")
        }
        let texts = checks.map(\.description) + throttled
        guard texts.allSatisfy({ (1...256).contains($0.utf8.count) }) else {
            throw Problem(.invalidValue, "a rule or a text has more than 256 bytes, or none")
        }
    }

    /// True when a response with this status is a success, as far as the status goes.
    package func takes(_ status: Int) -> Bool { success.contains(status) }

    /// True when the event is not tried again after this status.
    package func isFinal(_ status: Int) -> Bool { permanent.contains(status) }

    /// True when the body decides, too: then more of it is read.
    package var readBody: Bool { form != .any || !checks.isEmpty || !throttled.isEmpty }

    /// The rules in words.
    package var summary: String {
        let body = form == .any ? [] : ["\(form.rawValue.uppercased()) body"]
        return (["status \(success)"] + body + checks.map(\.description)).joined(separator: ", ")
    }

    /// The result for the body of a response with a success status.
    package enum Finding: Sendable, Equatable {
        case success
        case throttled
        /// With the failed rule and the value that it found.
        case failure(String)
    }

    /// What judging one response may cost: a step is a comparison of a byte of the response, or of
    /// a character with 64 places of a pattern. Thirty-two patterns of 64 characters on a response
    /// of 256 KiB fit; a slow machine judges as a fast one does.
    static let maxSteps = 16 << 20

    /// At most so many steps are needed for a body of that size.
    package func cost(of size: Int) -> Int {
        checks.reduce((1 + throttled.count) * size) { $0 + $1.steps(on: size) }
    }

    /// Judges the body of a response whose status is a success.
    package func judge(_ body: [UInt8], isComplete: Bool) -> Finding {
        guard readBody else { return .success }
        guard isComplete else { return .failure("the response's body was cut off or is too long to be judged") }
        var steps = Self.maxSteps - (1 + throttled.count) * body.count
        if throttled.contains(where: { ByteSearch($0.utf8).isFound(in: body) }) { return .throttled }
        var document: JSON?
        do throws(JSON.ParseError) {
            switch form {
            case .json: document = try JSON(body)
            case .jsonp: document = try JSON(callback: body)
            case .any: if checks.contains(where: \.readsJSON) { document = try JSON(body) }
            }
        } catch {
            return .failure("response is not \(form == .jsonp ? "JSONP" : "JSON") (\(error))")
        }
        for (index, check) in checks.enumerated() {
            steps -= check.steps(on: body.count)
            if steps < 0 {
                return .failure(
                    "rule \(index + 1) (\(check)) was not judged: the rules up to it take more than \(Self.maxSteps) steps "
                        + "for a response of \(body.count) bytes; use fewer of them, or shorter patterns")
            }
            if let found = check.failure(in: body, document) {
                return .failure("rule \(index + 1) (\(check)) failed: \(found)")
            }
        }
        return .success
    }
}

/// One check on a response: a type, a key and a value, as in Safous.
package struct Check: Sendable, Equatable, CustomStringConvertible {
    /// How the value at the key is compared. `glob` has `*` for any characters and `?` for one
    /// (`Glob`), and `contains` searches in one pass: time follows the length of the body, where a
    /// regular expression of an endpoint's owner could take forever.
    package enum Kind: String, Sendable, CaseIterable {
        case string, number, boolean, null, exists, glob
        /// The whole body, without white space around it.
        case text
        /// Anywhere in the body.
        case contains
    }

    package let kind: Kind
    /// A path into the JSON response; empty for `text` and `contains`.
    package let key: String
    package let value: String
    /// True when the opposite must hold.
    package let isDenial: Bool

    /// Reads `[deny] TYPE KEY VALUE`, as in `string status granted`, `exists data.id`, `text ok` or
    /// `deny boolean error true`.
    package init(_ text: String) throws(Problem) {
        // A combining mark after a space does not hide the space.
        func divided(_ text: String) -> [String] {
            text.unicodeScalars.split(separator: " ", maxSplits: 1).map { String($0) }
        }
        var words = divided(text)
        isDenial = words.first == "deny"
        if isDenial { words = divided(words.count > 1 ? words[1] : "") }
        let rest = words.count > 1 ? words[1] : ""
        guard let kind = words.first.flatMap(Kind.init) else {
            throw Problem(
                .invalidValue, "\"\(text.prefix(64))\" is not a rule",
                hint: "Expected TYPE KEY VALUE, TYPE one of \(Kind.allCases.map(\.rawValue).joined(separator: ", "))")
        }
        self.kind = kind
        let parts = divided(rest)
        switch kind {
        case .text, .contains: (key, value) = ("", rest)
        default: (key, value) = (parts.first ?? "", parts.count > 1 ? parts[1] : "")
        }
        let isValid =
            switch kind {
            case .text, .contains: !value.isEmpty
            case .exists, .null: !key.isEmpty && value.isEmpty
            case .boolean: !key.isEmpty && (value == "true" || value == "false")
            case .number: !key.isEmpty && ExactNumber(value.utf8) != nil
            case .string, .glob: !key.isEmpty && parts.count > 1
            }
        guard isValid else {
            throw Problem(
                .invalidValue, "the rule \"\(text.prefix(64))\" lacks its key or has the wrong value",
                hint: "Expected something like: string status ok, number code 0, exists data.id, text ok")
        }
    }

    package var description: String {
        ((isDenial ? ["deny"] : []) + [kind.rawValue, key, value]).filter { !$0.isEmpty }.joined(separator: " ")
    }

    /// What it costs at most on a body of so many bytes.
    fileprivate func steps(on size: Int) -> Int {
        switch kind {
        case .glob: size * (1 + value.utf8.count / 64)
        case .text, .contains, .string: size
        case .number, .boolean, .null, .exists: 0
        }
    }

    var readsJSON: Bool { kind != .text && kind != .contains }

    /// The value that was found when the check fails; nil when it holds.
    fileprivate func failure(in body: [UInt8], _ document: JSON?) -> String? {
        let found = document?.value(at: JSON.path(key))
        let holds: Bool =
            switch (kind, found?.kind) {
            case (.text, _): trimmed(body).elementsEqual(value.utf8)
            case (.contains, _): ByteSearch(value.utf8).isFound(in: body)
            case (.exists, let found): found != nil
            case (.string, .string(let string)?): ExactText(string) == ExactText(value)
            case (.glob, .string(let string)?): Glob(value).matches(string)
            case (.number, .number?): found.map { ExactNumber($0.source) == ExactNumber(value.utf8) } ?? false
            case (.boolean, .boolean(let flag)?): flag == (value == "true")
            case (.null, .null?): true
            default: false
            }
        if holds != isDenial { return nil }
        switch kind {
        case .text, .contains:
            return body.isEmpty
                ? "the response is empty" : "the response is \(shortened(String(decoding: body, as: UTF8.self)))"
        default:
            return found.map { "the response has \(shortened(String(decoding: $0.source, as: UTF8.self)))" }
                ?? "the response has no such key"
        }
    }

    /// Without ASCII's white space at both ends.
    private func trimmed(_ body: [UInt8]) -> ArraySlice<UInt8> {
        func isSpace(_ byte: UInt8) -> Bool { byte == 0x20 || 0x09...0x0D ~= byte }
        var rest = body.drop(while: isSpace)
        while rest.last.map(isSpace) == true { rest.removeLast() }
        return rest
    }

    private func shortened(_ text: String) -> String { text.count <= 64 ? text : text.prefix(64) + "…" }
}

extension Check: Codable {
    package init(from decoder: any Decoder) throws {
        self = try Check(try decoder.singleValueContainer().decode(String.self))
    }

    package func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(description)
    }
}

/// A set of HTTP statuses, written `200-299,304`.
package struct StatusSet: Sendable, Equatable, Codable, CustomStringConvertible {
    private let ranges: [ClosedRange<Int>]

    package init(_ ranges: [ClosedRange<Int>]) { self.ranges = ranges }

    /// Reads the written form; `none` is the empty set.
    package init(_ text: String) throws(Problem) {
        if text == "none" { self.init([]); return }
        var ranges: [ClosedRange<Int>] = []
        for part in text.split(separator: ",", omittingEmptySubsequences: false) {
            let ends = part.split(separator: "-", omittingEmptySubsequences: false).map { Int($0) }
            guard (1...2).contains(ends.count), let low = ends[0], let high = ends[ends.count - 1], low <= high,
                low >= 100, high <= 599
            else {
                throw Problem(
                    .invalidValue, "\"\(text.prefix(64))\" is not a set of statuses",
                    hint: "Expected something like 200-299,304")
            }
            ranges.append(low...high)
        }
        self.init(ranges)
    }

    package func contains(_ status: Int) -> Bool { ranges.contains { $0.contains(status) } }

    package var description: String {
        if ranges.isEmpty { return "none" }
        return ranges.map { $0.count == 1 ? "\($0.lowerBound)" : "\($0.lowerBound)-\($0.upperBound)" }.joined(
            separator: ",")
    }

    package init(from decoder: any Decoder) throws {
        try self.init(try decoder.singleValueContainer().decode(String.self))
    }

    package func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(description)
    }
}
