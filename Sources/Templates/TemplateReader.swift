import Bytewise

/// Splits a template into literal text and parameters, and determines where each parameter stands.
struct TemplateReader {
    private let bytes: [UInt8]
    private let kind: Template.Kind
    private var scanner: PlaceScanner

    init(_ bytes: [UInt8], kind: Template.Kind) {
        self.bytes = bytes
        self.kind = kind
        scanner = PlaceScanner(kind: kind)
    }

    mutating func parts() throws(Template.ValidationError) -> [Template.Part] {
        var parts: [Template.Part] = []
        var literal: [UInt8] = []
        var place = 0
        while place < bytes.count {
            let byte = bytes[place]
            guard byte == UInt8(ascii: "%") else {
                try take(byte, at: place)
                literal.append(byte)
                place += 1
                continue
            }
            if place + 1 < bytes.count, bytes[place + 1] == UInt8(ascii: "%") {
                try take(byte, at: place)
                literal.append(byte)
                place += 2
                continue
            }
            guard let end = end(ofParameterAt: place) else {
                try take(byte, at: place)
                literal.append(byte)
                place += 1
                continue
            }
            let parameter = try parameter(place + 1..<end)
            let position: Place
            do throws(PlaceScanner.SyntaxError) { position = try scanner.place() } catch {
                throw refusal(at: place, "%\(parameter.name)% \(error.reason)")
            }
            if !literal.isEmpty { parts.append(.literal(literal)) }
            literal = []
            parts.append(.parameter(parameter, position, length: end + 1 - place))
            place = end + 1
        }
        if !literal.isEmpty { parts.append(.literal(literal)) }
        return parts
    }

    private mutating func take(_ byte: UInt8, at place: Int) throws(Template.ValidationError) {
        do throws(PlaceScanner.SyntaxError) { try scanner.take(byte) } catch { throw refusal(at: place, error.reason) }
    }

    /// The place of the percent sign that ends the parameter; nil when no parameter begins here.
    private func end(ofParameterAt start: Int) -> Int? {
        var place = start + 1
        guard place < bytes.count, isLetterOrDigit(bytes[place]) || bytes[place] == UInt8(ascii: "_") else {
            return nil
        }
        while place < bytes.count, isLetterOrDigit(bytes[place]) || "_.-[]".utf8.contains(bytes[place]) { place += 1 }
        if place < bytes.count, bytes[place] == UInt8(ascii: "|") {
            while place < bytes.count, bytes[place] != UInt8(ascii: "%"), bytes[place] != 0x0A { place += 1 }
        }
        return place < bytes.count && bytes[place] == UInt8(ascii: "%") ? place : nil
    }

    private func parameter(_ range: Range<Int>) throws(Template.ValidationError) -> Parameter {
        // By bytes: a bar followed by a combining mark is another character, but still a bar.
        let halves = bytes[range].split(separator: UInt8(ascii: "|"), maxSplits: 1, omittingEmptySubsequences: false)
            .map { String(decoding: $0, as: UTF8.self) }
        let path = JSON.path(halves[0])
        let start: ParameterName
        do throws(Template.ValidationError) { start = try ParameterName.named(path, written: halves[0]) } catch {
            throw refusal(at: range.lowerBound - 1, error.reason)
        }
        return Parameter(
            start: start, name: halves[0], path: path, fallback: halves.count > 1 ? halves[1] : nil)
    }

    private func refusal(at place: Int, _ reason: String) -> Template.ValidationError {
        let (line, column) = position(of: place, in: bytes)
        return Template.ValidationError(line: line, column: column, reason: reason)
    }
}

/// Follows a template's literal text as far as needed to know where a parameter stands.
struct PlaceScanner {
    struct SyntaxError: Error {
        let reason: String
    }

    private enum State {
        case plain
        case jsonString(isEscaped: Bool)
        case xmlTag
        case xmlAttribute(quote: UInt8)
        /// A comment, a CDATA section or a processing instruction, up to these bytes.
        case xmlOpaque(end: [UInt8], last: [UInt8])
        /// After `<`, until it is known what it begins.
        case xmlOpening([UInt8])
        /// How many slashes of a URL have been seen, up to the one that ends its host.
        case url(slashes: Int)
    }

    private let kind: Template.Kind
    private var state: State

    init(kind: Template.Kind) {
        self.kind = kind
        state = kind == .url ? .url(slashes: 0) : .plain
    }

    /// Where the next parameter stands.
    func place() throws(SyntaxError) -> Place {
        switch (kind, state) {
        case (.json, .jsonString(isEscaped: true)): throw SyntaxError(reason: "stands after a backslash")
        case (.json, .jsonString): return .jsonString
        case (.json, _): return .jsonValue
        case (.xml, .plain): return .xmlText
        case (.xml, .xmlAttribute): return .xmlAttribute
        case (.xml, _):
            throw SyntaxError(
                reason: "stands where no value can: only an element's text and an attribute's value can hold one")
        case (.text, _): return .text
        case (.header, _): return .header
        case (.url, .url(let slashes)) where slashes < 3:
            throw SyntaxError(reason: "stands in the URL's scheme, host or port, which are fixed")
        case (.url, _): return .urlComponent
        }
    }

    mutating func take(_ byte: UInt8) throws(SyntaxError) {
        switch (kind, state) {
        case (.json, .plain):
            if byte == UInt8(ascii: "\"") { state = .jsonString(isEscaped: false) }
        case (.json, .jsonString(let isEscaped)):
            if isEscaped {
                state = .jsonString(isEscaped: false)
            } else if byte == UInt8(ascii: "\\") {
                state = .jsonString(isEscaped: true)
            } else if byte == UInt8(ascii: "\"") {
                state = .plain
            }
        case (.xml, _): try takeXML(byte)
        case (.url, .url(let slashes)):
            if byte == UInt8(ascii: "/") { state = .url(slashes: slashes + 1) }
            // A query may follow the host at once.
            if byte == UInt8(ascii: "?"), slashes == 2 { state = .url(slashes: 3) }
        default: break
        }
    }

    private mutating func takeXML(_ byte: UInt8) throws(SyntaxError) {
        switch state {
        case .plain: if byte == UInt8(ascii: "<") { state = .xmlOpening([]) }
        case .xmlOpening(let begun): try open(begun + [byte])
        case .xmlTag:
            if byte == UInt8(ascii: ">") { state = .plain }
            if byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "'") { state = .xmlAttribute(quote: byte) }
        case .xmlAttribute(let quote): if byte == quote { state = .xmlTag }
        case .xmlOpaque(let end, var last):
            last = (last + [byte]).suffix(end.count)
            state = last == end ? .plain : .xmlOpaque(end: end, last: last)
        case .jsonString, .url: break
        }
    }

    private mutating func open(_ begun: [UInt8]) throws(SyntaxError) {
        let openings: [(begin: String, end: String)] = [("!--", "-->"), ("![CDATA[", "]]>"), ("?", "?>")]
        if let match = openings.first(where: { Array($0.begin.utf8) == begun }) {
            state = .xmlOpaque(end: Array(match.end.utf8), last: [])
        } else if openings.contains(where: { $0.begin.utf8.starts(with: begun) }) {
            state = .xmlOpening(begun)
        } else if begun.first == UInt8(ascii: "!") {
            throw SyntaxError(reason: "declarations (<!DOCTYPE, <!ENTITY) are not allowed")
        } else {
            state = .xmlTag
            for byte in begun { try takeXML(byte) }
        }
    }
}
