import Crypto
public import FoundationEssentials

/// The key that a receiver verifies with: a shared secret (`whsec_…`) or a public key (`whpk_…`).
public struct VerificationKey: Sendable {
    enum Key: Sendable {
        case symmetric(SymmetricKey)
        case ed25519(Curve25519.Signing.PublicKey)
    }

    private let key: Key

    init(key: Key) { self.key = key }

    /// Reads a shared secret, a private key or a public key. Throws a
    /// `SigningSecret.ValidationError` that says what is wrong without repeating the text.
    public init(_ text: String) throws(SigningSecret.ValidationError) {
        let trimmed = text.split(whereSeparator: \.isWhitespace)
        guard trimmed.count == 1, trimmed[0].hasPrefix("whpk_") else {
            self = try SigningSecret(text).verificationKey
            return
        }
        guard let bytes = Data(base64Encoded: String(trimmed[0].dropFirst("whpk_".count))),
            let key = try? Curve25519.Signing.PublicKey(rawRepresentation: bytes)
        else {
            throw SigningSecret.ValidationError(
                description: "what follows whpk_ is not an ed25519 public key in base64")
        }
        guard !Self.hasSmallOrder(bytes) else {
            throw SigningSecret.ValidationError(
                description: "the public key is a point of small order, with which anybody can sign")
        }
        self.key = .ed25519(key)
    }

    /// The points whose order divides 8, in every encoding that decoders take, without the sign of
    /// x (RFC 8032 5.1.3): y of 0, of 1, of -1, and of the points of order 8, and those of them
    /// that fit below 2^255 once more with p = 2^255 - 19 added.
    private static let smallOrders: Set<[UInt8]> = {
        func bytes(_ first: UInt8, _ middle: UInt8, _ last: UInt8) -> [UInt8] {
            [first] + Array(repeating: middle, count: 30) + [last]
        }
        let eighth = [
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        ].map { text in
            let digits = Array(text).compactMap(\.hexDigitValue).map(UInt8.init)
            return stride(from: 0, to: 64, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }
        }
        return Set(
            [
                bytes(0, 0, 0), bytes(1, 0, 0), bytes(0xEC, 0xFF, 0x7F), bytes(0xED, 0xFF, 0x7F),
                bytes(0xEE, 0xFF, 0x7F),
            ] + eighth)
    }()

    private static func hasSmallOrder(_ point: Data) -> Bool {
        var bytes = Array(point)
        bytes[31] &= 0x7F
        return smallOrders.contains(bytes)
    }

    /// True when the signature, with its scheme in front, is this key's for exactly these bytes.
    /// The digests are compared in constant time.
    func verifies(_ signature: Substring, _ content: [UInt8]) -> Bool {
        guard let comma = signature.firstIndex(of: ","),
            let code = Data(base64Encoded: String(signature[signature.index(after: comma)...]))
        else { return false }
        switch (key, signature[..<comma]) {
        case (.symmetric(let key), "v1"):
            return HMAC<SHA256>.isValidAuthenticationCode(code, authenticating: content, using: key)
        case (.ed25519(let key), "v1a"): return key.isValidSignature(code, for: content)
        default: return false
        }
    }
}

/// Verifies webhooks on the receiver's side (Standard Webhooks, both schemes).
///
///     let verifier = WebhookVerifier(keys: [try VerificationKey(secret)])
///     try verifier.verify(body, headers: { request.headers[$0] })
///
/// A verified request may still come twice: keep the ids of the last days and skip known ones.
public struct WebhookVerifier: Sendable {
    private let keys: [VerificationKey]
    private let tolerance: Duration

    /// Why a request is not trusted.
    public enum VerificationError: Error, Sendable, Equatable, CustomStringConvertible {
        /// One of the three headers is missing or malformed.
        case malformed(String)
        /// Signed longer ago than the tolerance: possibly a replay.
        case tooOld
        /// Signed further in the future than the tolerance.
        case tooNew
        /// None of the signatures is by one of our keys for these bytes.
        case wrongSignature

        /// The error in words.
        public var description: String {
            switch self {
            case .malformed(let what): what
            case .tooOld: "the timestamp is too old"
            case .tooNew: "the timestamp is too far in the future"
            case .wrongSignature: "no signature is valid for this body, id and timestamp"
            }
        }
    }

    /// - Parameters:
    ///   - keys: all that are valid now; several during a rotation.
    ///   - tolerance: how far the timestamp may be from now, both ways. 300 s, as in the reference
    ///     libraries: enough for clocks that drift, too little for a replay to be of use.
    public init(keys: [VerificationKey], tolerance: Duration = .seconds(300)) {
        self.keys = keys
        self.tolerance = tolerance
    }

    /// Verifies a request. The body must be the bytes as received, before any parsing.
    ///
    /// - Parameters:
    ///   - headers: gives the value of a header by its lower-case name.
    ///   - now: seconds since the epoch.
    /// - Throws: a `VerificationError`.
    public func verify(
        _ body: [UInt8], headers: (String) -> String?, now: Int64 = Int64(Date().timeIntervalSince1970)
    ) throws(VerificationError) {
        func header(_ name: String) throws(VerificationError) -> String {
            guard let value = headers(name), !value.isEmpty else { throw .malformed("the header \(name) is missing") }
            return value
        }
        try verify(
            body, id: try header("webhook-id"), timestamp: try header("webhook-timestamp"),
            signatures: try header("webhook-signature"), now: now)
    }

    /// Verifies a body with the values of the three headers.
    public func verify(
        _ body: [UInt8], id: String, timestamp: String, signatures: String,
        now: Int64 = Int64(Date().timeIntervalSince1970)
    ) throws(VerificationError) {
        // A dot in the id would let one signature stand for another split of the same bytes.
        guard !id.utf8.contains(UInt8(ascii: ".")) else { throw .malformed("webhook-id contains a dot") }
        guard (1...15).contains(timestamp.utf8.count), timestamp.utf8.allSatisfy({ (0x30...0x39).contains($0) }),
            let signedAt = Int64(timestamp)
        else { throw .malformed("webhook-timestamp is not a number of seconds") }
        if now - signedAt > tolerance.components.seconds { throw .tooOld }
        if signedAt - now > tolerance.components.seconds { throw .tooNew }
        let content = Array("\(id).\(timestamp).".utf8) + body
        let isValid = signatures.split(separator: " ").prefix(32).contains { signature in
            keys.contains { $0.verifies(signature, content) }
        }
        if !isValid { throw .wrongSignature }
    }
}
