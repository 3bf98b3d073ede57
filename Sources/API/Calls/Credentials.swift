import Outbox

/// What a request says of who calls: `Authorization: Bearer <token>`, or as Citrix Cloud writes it,
/// `CwsAuth Bearer=<token>`. Both are read on every route, and a token in a query is never read.
enum Credentials: Equatable {
    case none
    case token(TokenText)
    /// Something that was never a token: it costs no query.
    case invalid

    /// - Parameter fields: the values of all `Authorization` fields.
    init(_ fields: [String]) throws(Refusal) {
        guard fields.count <= 1 else {
            throw Refusal(.malformedRequest, "Authorization is given twice", at: .header("Authorization"))
        }
        guard let field = fields.first else { self = .none; return }
        let parts = field.split(separator: " ", maxSplits: 1).map { String($0).trimmed }
        guard parts.count == 2 else { self = .invalid; return }
        var text = parts[1]
        switch parts[0].lowercased() {
        case "bearer": break
        case "cwsauth":
            let pair = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map {
                String($0).trimmed
            }
            guard pair.count == 2, pair[0].lowercased() == "bearer" else { self = .invalid; return }
            text = pair[1]
            if text.count > 1, text.hasPrefix("\""), text.hasSuffix("\"") { text = String(text.dropFirst().dropLast()) }
        default: self = .invalid; return
        }
        self = TokenText(text).map(Credentials.token) ?? .invalid
    }
}

extension String {
    /// Without the spaces and tabs around it (RFC 9110 5.6.3).
    var trimmed: String {
        let bytes = utf8.drop { $0 == 0x20 || $0 == 0x09 }
        let count = bytes.reversed().prefix { $0 == 0x20 || $0 == 0x09 }.count
        return String(decoding: bytes.dropLast(count), as: UTF8.self)
    }
}
