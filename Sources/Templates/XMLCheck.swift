import Foundation
import FoundationXML

/// Whether a text is well-formed XML without a document type.
enum XMLCheck {
    static func check(_ bytes: [UInt8], _ prefix: String) throws(Template.Refusal) {
        // No entity is ever declared, so none can be expanded or fetched.
        if let place = bytes.firstRange(of: "<!DOCTYPE".utf8)?.lowerBound {
            let (line, column) = position(of: place, in: bytes)
            throw Template.Refusal(line: line, column: column, reason: prefix + "a document type is not allowed")
        }
        let parser = XMLParser(data: Data(bytes))
        parser.shouldResolveExternalEntities = false
        if parser.parse() { return }
        throw Template.Refusal(
            line: max(1, parser.lineNumber), column: max(1, parser.columnNumber), reason: prefix + "not well-formed XML"
        )
    }
}
