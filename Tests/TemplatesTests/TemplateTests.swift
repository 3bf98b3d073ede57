import Foundation
import FoundationXML
import Templates
import Testing

private struct Values: ParameterValues {
    let values: [String: ParameterValue]
    func value(of parameter: Parameter) -> ParameterValue? { values[parameter.name] }
}

@Suite(.timeLimit(.minutes(15))) struct TemplateTests {
    private func render(_ text: String, _ kind: Template.Kind, _ values: [String: ParameterValue] = [:]) throws
        -> String
    {
        String(decoding: try Template(text, kind: kind).render(Values(values: values)).bytes, as: UTF8.self)
    }

    @Test func `a value in JSON keeps its type outside quotes and is text inside`() throws {
        let number = ParameterValue.json(try JSON("1.50".utf8))
        let object = ParameterValue.json(try JSON(#"{"z":1, "a":2}"#.utf8))
        #expect(try render(#"{"a":%after%,"b":"%after%"}"#, .json, ["after": number]) == #"{"a":1.50,"b":"1.50"}"#)
        #expect(try render(#"{"a":%after%}"#, .json, ["after": object]) == #"{"a":{"z":1, "a":2}}"#)
        #expect(try render(#"{"a":%type%}"#, .json, ["type": .text("x\"y")]) == #"{"a":"x\"y"}"#)
        #expect(try render(#"{"a":%identity%,"b":"%identity%"}"#, .json) == #"{"a":null,"b":""}"#)
    }

    @Test func `a default stands in for what is missing or null, as JSON where it is JSON`() throws {
        #expect(
            try render(#"{"a":%after.n|0%,"b":%after.n|none%,"c":"%after.n|none%"}"#, .json)
                == #"{"a":0,"b":"none","c":"none"}"#)
        #expect(try render("%type|%.", .text) == ".")
    }

    @Test(arguments: [
        ("%usrname%", Template.Kind.text), ("%after", .text), ("{\"a\":1%type%}", .json),
        ("{\"a\":%type%%type%}", .json),
        ("{\"a\":-%type%}", .json), ("{\"a\":\"\\%type%\"}", .json), ("{\"a\":\"%type%}", .json), ("[%type%", .json),
        ("<%type%/>", .xml), ("<a %type%='1'/>", .xml), ("<!-- %type% --><a/>", .xml),
        ("<a><![CDATA[%type%]]></a>", .xml),
        ("<?x %type%?><a/>", .xml), ("<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;</a>", .xml),
        ("<a>&unknown;</a>", .xml), ("<a></b>", .xml), ("", .json), ("", .xml), ("http://%type%/", .url),
        ("%type%://x/", .url), ("http://x:%type%/", .url), ("%context%", .text), ("%headers%", .text),
    ])
    func `what cannot be a template is refused`(text: String, kind: Template.Kind) throws {
        // A percent sign that nothing follows is one.
        if text == "%after" {
            #expect(try Template(text, kind: kind).isConstant)
        } else {
            #expect(throws: Template.ValidationError.self) { try Template(text, kind: kind) }
        }
    }

    @Test func `a refusal names line and column of the template`() {
        let unknown = #expect(throws: Template.ValidationError.self) {
            try Template("{\n  \"a\": \"%tpye%\"\n}", kind: .json)
        }
        #expect(unknown?.line == 2 && unknown?.column == 9)
        #expect(unknown?.reason.contains("Did you mean %type%?") == true)
        // The parameter before the mistake does not shift the column.
        let comma = #expect(throws: Template.ValidationError.self) {
            try Template(#"{"a":%event_id% "b":1}"#, kind: .json)
        }
        #expect(comma?.column == 17, "\(String(describing: comma))")
    }

    @Test func `values cannot leave their place, whatever they are`() throws {
        let pieces = [
            "\"", "\\", "<", "&", "'", "]]>", "\n", "\r", "\t", "\u{1}", "%", "%type%", "{", "}", "é", "\u{2028}", "😀",
            "--", "x",
        ]
        for _ in 0..<2000 {
            let text = (0..<Int.random(in: 0..<6)).map { _ in pieces.randomElement()! }.joined()
            let value = ["type": ParameterValue.text(text)]
            let json = try render(#"{"a":"%type%","b":%type%}"#, .json, value)
            let object = try #require(try JSONSerialization.jsonObject(with: Data(json.utf8)) as? [String: String])
            #expect(object == ["a": text, "b": text])
            if text.contains("\u{1}") {
                #expect(throws: Template.ValidationError.self) { try render("<a>%type%</a>", .xml, value) }
            } else {
                let xml = try render("<a b=\"%type%\" c='%type%'>%type%</a>", .xml, value)
                let found = try XMLReading(xml)
                #expect(found.attributes == ["b": text, "c": text], "\(xml)")
                #expect(found.text == text, "\(xml)")
            }
            let url = try render("http://x/%type%?q=%type%", .url, value)
            #expect(url.utf8.allSatisfy { $0 > 0x20 && $0 < 0x7F })
            #expect(URL(string: url)?.host() == "x")
        }
    }

    @Test func `a rendering has a largest size`() throws {
        let large = ParameterValue.text(String(repeating: "x", count: 600_000))
        #expect(throws: Template.ValidationError.self) { try render("%type%%type%", .text, ["type": large]) }
        #expect(throws: Template.ValidationError.self) {
            try Template(String(repeating: "x", count: Template.maxLength + 1), kind: .text)
        }
    }
}

/// One element, as an independent reader sees it.
private final class XMLReading: NSObject, XMLParserDelegate {
    private(set) var attributes: [String: String] = [:]
    private(set) var text = ""

    init(_ xml: String) throws {
        super.init()
        let parser = XMLParser(data: Data(xml.utf8))
        parser.delegate = self
        guard parser.parse() else { throw CocoaError(.coderReadCorrupt) }
    }

    func parser(
        _ parser: XMLParser, didStartElement elementName: String, namespaceURI: String?, qualifiedName: String?,
        attributes: [String: String]
    ) { self.attributes = attributes }

    func parser(_ parser: XMLParser, foundCharacters string: String) { text += string }
}
