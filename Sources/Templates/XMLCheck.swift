import Foundation
import FoundationXML

/// Whether a text is well-formed XML without a document type.
enum XMLCheck {
    static func check(_ bytes: [UInt8], _ prefix: String) throws(Template.ValidationError) {
        // No entity is ever declared, so none can be expanded or fetched.
        if let place = bytes.firstRange(of: "<!DOCTYPE".utf8)?.lowerBound {
            let (line, column) = position(of: place, in: bytes)
            throw Template.ValidationError(
                line: line, column: column, reason: prefix + "a document type is not allowed")
        }
        if let encoding = declaredEncoding(bytes), !["utf-8", "us-ascii"].contains(encoding) {
            throw Template.ValidationError(
                line: 1, column: 1,
                reason: prefix + "the XML declaration says \(encoding.prefix(40)), and what is sent is UTF-8")
        }
        let parser = XMLParser(data: Data(bytes))
        parser.shouldResolveExternalEntities = false
        let reading = Reading()
        parser.delegate = reading
        // Its return value is not enough: it continues after errors that it can repair.
        let isParsed = parser.parse()
        if isParsed, reading.error == nil, reading.hasElement { return }
        let (line, column) = reading.error ?? (parser.lineNumber, parser.columnNumber)
        throw Template.ValidationError(
            line: max(1, line), column: max(1, column), reason: prefix + "not well-formed XML")
    }

    /// The encoding that the text says it has (XML 1.0 4.3.3), in lower case; nil when it does not
    /// say.
    private static func declaredEncoding(_ bytes: [UInt8]) -> String? {
        guard bytes.starts(with: "<?xml".utf8), let end = bytes.firstRange(of: "?>".utf8)?.lowerBound,
            let name = bytes[..<end].firstRange(of: "encoding".utf8)?.upperBound
        else { return nil }
        let rest = bytes[name..<end].drop { $0 != UInt8(ascii: "\"") && $0 != UInt8(ascii: "'") }
        guard let quote = rest.first else { return nil }
        return String(decoding: rest.dropFirst().prefix { $0 != quote }, as: UTF8.self).lowercased()
    }

    /// Notes the first error.
    private final class Reading: NSObject, XMLParserDelegate {
        private(set) var error: (line: Int, column: Int)?
        private(set) var hasElement = false

        func parser(_ parser: XMLParser, parseErrorOccurred parseError: any Error) {
            error = error ?? (parser.lineNumber, parser.columnNumber)
        }

        func parser(
            _ parser: XMLParser, didStartElement elementName: String, namespaceURI: String?,
            qualifiedName: String?, attributes: [String: String]
        ) {
            hasElement = true
        }
    }
}
