import Bytewise
import Crypto
import FoundationEssentials

/// A key that deliveries are signed with, in one of the two schemes of Standard Webhooks: a
/// symmetric secret (`v1`: 24 to 64 random bytes, written `whsec_` and base64) or an ed25519
/// private key (`v1a`: written `whsk_` and base64).
public struct SigningSecret: Sendable {
    private enum Key: Sendable {
        case symmetric(SymmetricKey)
        case ed25519(Curve25519.Signing.PrivateKey)
    }

    private let key: Key

    /// Why a text is not a secret. It never repeats the text.
    public struct ValidationError: Error, Sendable, CustomStringConvertible {
        /// The error, without the text itself.
        public let description: String
    }

    /// A new symmetric secret of 32 random bytes.
    public static func generate() -> SigningSecret {
        SigningSecret(key: .symmetric(SymmetricKey(size: .bits256)))
    }

    /// A new ed25519 key.
    public static func generateAsymmetric() -> SigningSecret {
        SigningSecret(key: .ed25519(Curve25519.Signing.PrivateKey()))
    }

    /// Reads the `whsec_` or `whsk_` form; surrounding white space, as files have it, is ignored. A
    /// private key is the seed of 32 bytes, with or without the public key after it.
    public init(_ text: String) throws(ValidationError) {
        let trimmed = text.split(whereSeparator: \.isWhitespace)
        guard trimmed.count == 1, let prefix = ["whsec_", "whsk_"].first(where: { trimmed[0].hasPrefix($0) }) else {
            throw ValidationError(description: "a signing secret is one line that begins with whsec_ or whsk_")
        }
        guard let bytes = Data(base64Encoded: String(trimmed[0].dropFirst(prefix.count))) else {
            throw ValidationError(description: "the part of the signing secret after \(prefix) is not base64")
        }
        try self.init(bytes: Array(bytes), scheme: prefix == "whsk_" ? .v1a : .v1)
    }

    /// The signature schemes of Standard Webhooks.
    package enum Scheme: String, Sendable {
        case v1, v1a
    }

    package var scheme: Scheme { if case .ed25519 = key { .v1a } else { .v1 } }

    package init(bytes: [UInt8], scheme: Scheme) throws(ValidationError) {
        switch scheme {
        case .v1:
            guard (24...64).contains(bytes.count) else {
                throw ValidationError(description: "a signing secret has 24 to 64 bytes, this one has \(bytes.count)")
            }
            key = .symmetric(SymmetricKey(data: bytes))
        case .v1a:
            guard bytes.count == 32 || bytes.count == 64,
                let private32 = try? Curve25519.Signing.PrivateKey(rawRepresentation: bytes.prefix(32)),
                bytes.count == 32 || Array(private32.publicKey.rawRepresentation) == Array(bytes[32...])
            else {
                throw ValidationError(
                    description: "an ed25519 signing key has a seed of 32 bytes and, after it, at most its public key")
            }
            key = .ed25519(private32)
        }
    }

    private init(key: Key) { self.key = key }

    /// The bytes to be sealed.
    package var bytes: [UInt8] {
        switch key {
        case .symmetric(let key): key.withUnsafeBytes { Array($0) }
        case .ed25519(let key): Array(key.rawRepresentation)
        }
    }

    /// The secret itself: to be shown once, when it is made.
    public var revealed: String {
        switch key {
        case .symmetric: "whsec_" + Data(bytes).base64EncodedString()
        case .ed25519(let key):
            "whsk_" + (key.rawRepresentation + key.publicKey.rawRepresentation).base64EncodedString()
        }
    }

    /// The key with which receivers verify: `whpk_…` of an ed25519 key; nil for a symmetric secret,
    /// with which they verify directly.
    public var publicKey: String? {
        guard case .ed25519(let key) = key else { return nil }
        return "whpk_" + key.publicKey.rawRepresentation.base64EncodedString()
    }

    /// The part that may be shown: the form and the last four characters.
    public var masked: String {
        let text = revealed
        return text.prefix { $0 != "_" } + "_…" + text.suffix(4)
    }

    /// The first bytes of its hash: they distinguish two secrets without revealing either.
    public var fingerprint: String { hexadecimal(SHA256.hash(data: bytes).prefix(8)) }

    /// The signature `v1,…` or `v1a,…` over `id.timestamp.body` (Standard Webhooks).
    public func signature(id: String, timestamp: Int64, body: [UInt8]) -> String {
        var head: [UInt8] = []
        head.reserveCapacity(64)
        head += id.utf8
        head.append(UInt8(ascii: "."))
        head += String(timestamp).utf8
        head.append(UInt8(ascii: "."))
        switch key {
        case .symmetric(let key):
            var authentication = HMAC<SHA256>(key: key)
            authentication.update(data: head)
            authentication.update(data: body)
            return "v1," + Data(authentication.finalize()).base64EncodedString()
        case .ed25519(let key):
            // Signing with a valid key fails only when memory does.
            guard let signature = try? key.signature(for: head + body) else {
                preconditionFailure("ed25519 signing failed")
            }
            return "v1a," + signature.base64EncodedString()
        }
    }

    /// The key that verifies what this one signs.
    public var verificationKey: VerificationKey {
        switch key {
        case .symmetric(let key): VerificationKey(key: .symmetric(key))
        case .ed25519(let key): VerificationKey(key: .ed25519(key.publicKey))
        }
    }

    /// True when one of the space-separated signatures is ours for exactly these bytes. The caller
    /// checks the timestamp's age; receivers use `WebhookVerifier`.
    package func verifies(_ signatures: String, id: String, timestamp: Int64, body: [UInt8]) -> Bool {
        do {
            try WebhookVerifier(keys: [verificationKey])
                .verify(body, id: id, timestamp: "\(timestamp)", signatures: signatures, now: timestamp)
            return true
        } catch { return false }
    }
}
