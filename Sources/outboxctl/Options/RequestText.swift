import Outbox
import Transport

extension Endpoint {
    /// False for headers that hold a secret, or sound as if they did.
    func mayShow(_ header: HTTPHeader) -> Bool {
        let name = header.name.lowercased()
        if configuration.headers.contains(where: { $0.isSecret && $0.name.lowercased() == name }) { return false }
        if configuration.authentication.header?.lowercased() == name { return false }
        return !Masking.soundsSecret(name)
    }
}

extension HTTPRequest {
    /// A command line that sends this request, for any shell; secrets are masked unless they are to
    /// be shown.
    func curl(for endpoint: Endpoint, revealing: Bool) -> String {
        var words = ["curl", "--silent", "--show-error", "--globoff", "--path-as-is", "--request", method.rawValue]
        words += ["--url", quoted(revealing ? url : Masking.url(url))]
        for header in headers.all {
            let value = revealing || endpoint.mayShow(header) ? header.value : "***"
            words += ["--header", quoted(value.isEmpty ? "\(header.name);" : "\(header.name): \(value)")]
        }
        if method != .get { words += ["--data-raw", quoted(String(decoding: body, as: UTF8.self))] }
        return words.joined(separator: " ")
    }

    /// One word for a shell. Whoever pastes it sees all that is in it: what could move the cursor
    /// or hide text is escaped.
    private func quoted(_ text: String) -> String {
        guard text.unicodeScalars.contains(where: isTreacherous) else {
            // Scalar by scalar: a quote with a mark behind it is another character, and the same
            // quote to a shell.
            return "'" + text.unicodeScalars.map { $0 == "'" ? "'\\''" : String($0) }.joined() + "'"
        }
        let escaped = text.unicodeScalars.map { scalar in
            switch scalar {
            case "\\", "'": "\\\(scalar)"
            case "\n": "\\n"
            case "\t": "\\t"
            case _ where isTreacherous(scalar):
                String(scalar).utf8.map { "\\x" + ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
            default: String(scalar)
            }
        }
        return "$'" + escaped.joined() + "'"
    }
}
