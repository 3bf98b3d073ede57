import Crypto
import FoundationEssentials

/// A symmetric secret of Standard Webhooks: 24 to 64 random bytes, written as `whsec_` and base64.
public struct SigningSecret: Sendable {
    private let key: SymmetricKey

    /// Why a text is no secret. It never repeats the text.
    public struct Refusal: Error, Sendable, CustomStringConvertible {
        /// What is wrong, without the text itself.
        public let description: String
    }

    /// A new secret of 32 random bytes.
    public static func generate() -> SigningSecret {
        SigningSecret(key: SymmetricKey(size: .bits256))
    }

    /// Reads the `whsec_` form; surrounding white space, as files have it, is ignored.
    public init(_ text: String) throws(Refusal) {
        let trimmed = text.split(whereSeparator: \.isWhitespace)
        guard trimmed.count == 1, trimmed[0].hasPrefix("whsec_") else {
            throw Refusal(description: "a signing secret is one line that begins with whsec_")
        }
        guard let bytes = Data(base64Encoded: String(trimmed[0].dropFirst("whsec_".count))) else {
            throw Refusal(description: "the part of the signing secret after whsec_ is not base64")
        }
        try self.init(bytes: Array(bytes))
    }

    init(bytes: [UInt8]) throws(Refusal) {
        guard (24...64).contains(bytes.count) else {
            throw Refusal(description: "a signing secret has 24 to 64 bytes, this one has \(bytes.count)")
        }
        key = SymmetricKey(data: bytes)
    }

    private init(key: SymmetricKey) { self.key = key }

    var bytes: [UInt8] { key.withUnsafeBytes { Array($0) } }

    /// The secret itself: to be shown once, when it is made.
    public var revealed: String { "whsec_" + Data(bytes).base64EncodedString() }

    /// The signature `v1,…` over `id.timestamp.body` (Standard Webhooks, symmetric scheme).
    public func signature(id: String, timestamp: Int64, body: [UInt8]) -> String {
        var head: [UInt8] = []
        head.reserveCapacity(64)
        head += id.utf8
        head.append(UInt8(ascii: "."))
        head.appendDecimal(timestamp)
        head.append(UInt8(ascii: "."))
        var authentication = HMAC<SHA256>(key: key)
        authentication.update(data: head)
        authentication.update(data: body)
        return "v1," + Data(authentication.finalize()).base64EncodedString()
    }

    /// True when one of the space-separated signatures is ours for exactly these bytes. The comparison takes the same
    /// time wherever a difference is. The timestamp's age is the caller's to judge.
    public func verifies(_ signatures: String, id: String, timestamp: Int64, body: [UInt8]) -> Bool {
        var content = Array("\(id).\(timestamp).".utf8)
        content += body
        return signatures.split(separator: " ").contains { signature in
            guard signature.hasPrefix("v1,"), let code = Data(base64Encoded: String(signature.dropFirst(3))) else {
                return false
            }
            return HMAC<SHA256>.isValidAuthenticationCode(code, authenticating: content, using: key)
        }
    }
}
