import Foundation
import Templates
import Yams

/// The configuration file: `outbox.json`, which may have comments, or YAML.
enum SettingsFile {
    /// What is looked for when none is named.
    static let names = ["outbox.json", "outbox.yaml", "outbox.yml"]

    /// The members of the file by their keys, as text: a number or a truth value as it is written,
    /// a list joined by commas.
    ///
    /// Throws a `SettingError` that names the file, and the key that is unknown or of a type that
    /// no setting has.
    ///
    /// - Parameter named: the path that was asked for; nil for one of `names`, if there is one.
    static func read(_ named: String?) throws -> (path: String, values: [String: String]) {
        var found: [(path: String, data: Data)] = []
        for path in named.map({ [$0] }) ?? names {
            if let data = try TrustedFile.read(path, "the configuration file", .readable) { found.append((path, data)) }
        }
        guard found.count < 2 else {
            throw SettingError(
                description:
                    "there are two configuration files, \(found.map(\.path).joined(separator: " and ")); keep one")
        }
        guard let (path, data) = found.first else {
            if let named {
                throw SettingError(description: "the configuration file \(named) does not exist and cannot be read")
            }
            return (names[0], [:])
        }
        let isYAML = path.hasSuffix(".yaml") || path.hasSuffix(".yml")
        let values = try isYAML ? yaml(data, path) : json(data, path)
        for key in values.keys where !Settings.all.contains(where: { $0.key.utf8.elementsEqual(key.utf8) }) {
            throw SettingError(
                description: "the configuration file \(path) has an unknown key \"\(printable(key))\"; "
                    + "did you mean \"\(Settings.closest(to: key, \.key))\"?")
        }
        return (path, values)
    }

    private static func json(_ data: Data, _ path: String) throws -> [String: String] {
        let decoder = JSONDecoder()
        decoder.allowsJSON5 = true
        do {
            return try decoder.decode([String: SettingText].self, from: data).mapValues(\.text)
        } catch let error as DecodingError {
            if let key = error.path.first { throw badMember(key.stringValue, path) }
            throw SettingError(description: "the configuration file \(path) is not a JSON object")
        }
    }

    private static func yaml(_ data: Data, _ path: String) throws -> [String: String] {
        let root: Node?
        do { root = try Yams.Parser(yaml: data).singleRoot() } catch {
            throw SettingError(description: "the configuration file \(path) is not YAML: \(firstLine("\(error)"))")
        }
        guard let root else { return [:] }
        guard let mapping = root.mapping else {
            throw SettingError(description: "the configuration file \(path) is not a YAML mapping")
        }
        var values: [String: String] = [:]
        for (key, value) in mapping {
            let name = key.string ?? "?"
            if let scalar = value.scalar, value.null == nil {
                values[name] = scalar.string
            } else if let parts = value.sequence?.map(\.scalar?.string), !parts.contains(nil) {
                values[name] = parts.compactMap(\.self).joined(separator: ",")
            } else {
                throw badMember(name, path)
            }
        }
        return values
    }

    private static func badMember(_ key: String, _ path: String) -> SettingError {
        SettingError(
            description:
                "the configuration file \(path) has neither a text, a number, a truth value nor a list of them "
                + "for the key \"\(printable(key))\"")
    }

    /// Yams shows the line in question after the first one of its own: it may hold a secret.
    private static func firstLine(_ text: String) -> String {
        String(text.split(separator: "\n").first ?? "").filter { $0.isASCII }
    }
}

/// A member of the file, as text.
private struct SettingText: Decodable {
    let text: String

    init(from decoder: any Decoder) throws {
        if var list = try? decoder.unkeyedContainer() {
            var parts: [String] = []
            while !list.isAtEnd { parts.append(try list.decode(Scalar.self).text) }
            text = parts.joined(separator: ",")
        } else {
            text = try Scalar(from: decoder).text
        }
    }

    private struct Scalar: Decodable {
        let text: String

        init(from decoder: any Decoder) throws {
            let value = try decoder.singleValueContainer()
            if let text = try? value.decode(String.self) {
                self.text = text
            } else if let truth = try? value.decode(Bool.self) {
                text = "\(truth)"
            } else if let number = try? value.decode(Int.self) {
                text = "\(number)"
            } else {
                text = "\(try value.decode(Double.self))"
            }
        }
    }
}

extension DecodingError {
    fileprivate var path: [any CodingKey] {
        switch self {
        case .typeMismatch(_, let context), .valueNotFound(_, let context), .keyNotFound(_, let context),
            .dataCorrupted(let context):
            context.codingPath
        @unknown default: []
        }
    }
}
