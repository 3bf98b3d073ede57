import Bytewise
import Crypto
import FoundationEssentials
import StandardWebhooks

/// The keys that endpoint secrets are sealed with (AES-256-GCM). The first one seals; all of them
/// open, so that a key is rotated by putting a new one in front. The database never sees a key: a
/// dump of it holds no usable secret.
package struct Keyring: Sendable {
    private let keys: [(id: String, key: SymmetricKey)]

    /// Why keys cannot be read or a secret cannot be opened; it names key ids, never keys.
    package struct KeyError: Error, Sendable, CustomStringConvertible {
        package let description: String
    }

    /// A keyring without keys: it seals and opens nothing.
    package static let empty = Keyring(keys: [])
    package var isEmpty: Bool { keys.isEmpty }

    private init(keys: [(id: String, key: SymmetricKey)]) { self.keys = keys }

    /// Reads a key file's text: one key a line, 32 bytes in base64, newest first; lines that begin
    /// with `#` are comments.
    package init(text: String) throws(KeyError) {
        var keys: [(id: String, key: SymmetricKey)] = []
        for (number, line) in text.split(omittingEmptySubsequences: false, whereSeparator: \.isNewline).enumerated() {
            let trimmed = line.filter { !$0.isWhitespace }
            if trimmed.isEmpty || trimmed.hasPrefix("#") { continue }
            guard let bytes = Data(base64Encoded: trimmed), bytes.count == 32 else {
                throw KeyError(description: "line \(number + 1) is not a key: expected 32 bytes in base64")
            }
            keys.append((Self.identifier(of: bytes), SymmetricKey(data: bytes)))
        }
        guard !keys.isEmpty else {
            throw KeyError(description: "it holds no key: expected a line with 32 bytes in base64")
        }
        self.keys = keys
    }

    /// The id of the sealing key; nil for none.
    package var sealingKey: String? { keys.first?.id }

    /// A line for a key file with a new random key.
    package static func newKeyLine() -> String {
        let key = SymmetricKey(size: .bits256)
        return key.withUnsafeBytes { Data($0) }.base64EncodedString() + "\n"
    }

    /// The first bytes of the key's hash: they name a key without revealing it.
    private static func identifier(of key: Data) -> String {
        hexadecimal(SHA256.hash(data: key).prefix(4))
    }

    /// The kind of a sealed text; each kind opens only as itself.
    enum Purpose {
        case signing(SigningSecret.Scheme)
        case credentials

        /// The kind as stored, and as bound into the seal: a secret of one scheme does not open as
        /// one of another.
        var kind: String {
            switch self {
            case .signing(let scheme): scheme.rawValue
            case .credentials: "credentials"
            }
        }
    }

    /// Seals bytes for one endpoint: in another endpoint's row they cannot be opened.
    func seal(
        _ bytes: [UInt8], _ purpose: Purpose, for endpoint: EndpointID
    ) throws(KeyError) -> (keyID: String, bytes: [UInt8]) {
        guard let (id, key) = keys.first else {
            throw KeyError(description: "there is no key to seal the secret with; set OUTBOX_SECRET_KEY_FILE")
        }
        guard let box = try? AES.GCM.seal(bytes, using: key, authenticating: context(purpose, endpoint)).combined else {
            throw KeyError(description: "the secret could not be sealed with key \(id)")
        }
        return (id, Array(box))
    }

    /// Opens bytes that `seal` sealed.
    func open(
        _ bytes: [UInt8], _ purpose: Purpose, keyID: String, for endpoint: EndpointID
    ) throws(KeyError) -> [UInt8] {
        guard let key = keys.first(where: { $0.id == keyID })?.key else {
            throw KeyError(
                description: "its secret is sealed with key \(keyID), which OUTBOX_SECRET_KEY_FILE does not hold")
        }
        guard let box = try? AES.GCM.SealedBox(combined: bytes),
            let opened = try? AES.GCM.open(box, using: key, authenticating: context(purpose, endpoint))
        else { throw KeyError(description: "its sealed secret was damaged or belongs to another endpoint") }
        return Array(opened)
    }

    private func context(_ purpose: Purpose, _ endpoint: EndpointID) -> [UInt8] {
        Array("outbox/\(purpose.kind)/\(endpoint)".utf8)
    }
}
