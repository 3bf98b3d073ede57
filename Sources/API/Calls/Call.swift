import Bytewise
import Operator
import Outbox
import Postgres
import Templates

/// One request to one route, by a caller who may make it.
struct Call: Sendable {
    let target: Target
    /// What the path says for the names in the route's pattern.
    let names: [String: String]
    let ifMatch: String?
    let idempotencyKey: String?
    let contentType: String?
    let body: [UInt8]
    let token: Token?
    let outbox: Operator

    /// The value of a name in the route's pattern.
    func name(_ name: String) -> String {
        guard let value = names[name] else { preconditionFailure("the route has no \(name)") }
        return value
    }

    /// A parameter of the query; nil when it is left out.
    func parameter(_ name: String) -> String? {
        target.parameters.first { ExactText($0.name) == ExactText(name) }?.value
    }

    /// Reads what a caller sent as JSON.
    static func json(_ bytes: some Collection<UInt8>) throws -> JSON {
        do { return try JSON(bytes) } catch { throw Problem(.malformedJSON, "the body is not JSON: \(error)") }
    }

    /// The body as one JSON object whose members are among these; nothing is an empty object.
    func object(_ known: [String]) throws -> [String: JSON] {
        body.isEmpty ? [:] : try members(of: try Self.json(body), known, at: [])
    }

    /// The members of an object in the body, each once.
    func members(of json: JSON, _ known: [String], at path: [String]) throws -> [String: JSON] {
        guard case .object(let members) = json.kind else {
            throw Problem(.invalidValue, "an object is expected", at: path.isEmpty ? nil : .member(path), .type)
        }
        var found: [String: JSON] = [:]
        for (name, value) in members {
            guard let known = known.first(where: { ExactText($0) == name }) else {
                // A name of megabytes is neither compared nor given back.
                let shown = String(name.text.unicodeScalars.prefix(64).map(Character.init))
                let close = known.min { editDistance($0, shown) < editDistance($1, shown) }
                throw Problem(
                    .unknownMember, "there is no member \"\(shown)\"",
                    hint: close.flatMap { editDistance($0, shown) <= 3 ? "Did you mean \($0)?" : nil },
                    at: .member(path + [shown]), .unknown)
            }
            guard found.updateValue(value, forKey: known) == nil else {
                throw Problem(.malformedJSON, "\(known) is given twice", at: .member(path + [known]))
            }
        }
        return found
    }
}

extension [String: JSON] {
    /// A member that is a text; nil when it is left out or null.
    func text(_ name: String, at path: [String] = []) throws -> String? {
        switch self[name]?.kind {
        case nil, .null: return nil
        case .string(let text): return text
        default: throw Problem(.invalidValue, "\(name) must be a text", at: .member(path + [name]), .type)
        }
    }

    /// A member that is a time.
    func time(_ name: String, at path: [String] = []) throws -> Timestamp? {
        guard let text = try text(name, at: path) else { return nil }
        guard let time = Timestamp(rfc3339: text) else {
            throw Problem(
                .invalidValue, "\(name) must be a time, as in 2026-11-26T17:36:58Z", at: .member(path + [name]),
                .format)
        }
        return time
    }

    /// A member that is a UUID.
    func uuid(_ name: String, at path: [String] = []) throws -> UniqueID? {
        guard let text = try text(name, at: path) else { return nil }
        guard let id = UniqueID(text) else {
            throw Problem(.invalidValue, "\(name) must be a UUID", at: .member(path + [name]), .format)
        }
        return id
    }
}
