import Bytewise
import Crypto
package import Postgres

/// The right to call the HTTP API, as it is stored: never the token itself, only its hash.
package struct Token: Sendable {
    /// What a token's holder may do. Operators may do all that readers may, and administrators all
    /// that operators and producers may.
    package enum Scope: String, Sendable, CaseIterable {
        /// Publish events, and nothing else.
        case publish = "events:write"
        /// Ask an endpoint for a decision.
        case evaluate
        /// Fetch the events of endpoints that are not called.
        case pull
        case read
        case operate
        case admin
        /// Read secrets in clear; no other scope implies it, and each use is audited.
        case reveal = "secrets:reveal"

        /// The scope of this name.
        package init(named name: String, at place: Problem.Place? = nil) throws(Problem) {
            guard let scope = Scope(rawValue: name) else {
                throw Problem(.invalidValue, "\"\(name.prefix(64))\" is no scope", hint: Self.known, at: place)
            }
            self = scope
        }

        static var known: String { "Expected some of: \(allCases.map(\.rawValue).joined(separator: ", "))" }

        /// The scopes that this one contains, with itself.
        package var implied: Set<Scope> {
            switch self {
            case .publish, .evaluate, .pull, .read, .reveal: [self]
            case .operate: [.operate, .read, .evaluate]
            case .admin: [.admin, .operate, .read, .evaluate, .publish, .pull]
            }
        }
    }

    package let id: UniqueID
    package let name: String
    /// Who its holder is, in events and in the audit log.
    package let identity: String
    package let scopes: Set<Scope>
    /// The only customer whose data it reaches; nil for all.
    package let customerID: String?
    /// The only endpoints that it may pull from or evaluate; nil for all.
    package let endpoints: [UniqueID]?
    /// How many calls it may make; nil for the usual.
    package let rate: RateLimit?
    package let expiresAt: Timestamp

    /// True when it has the scope, or one that contains it.
    package func allows(_ scope: Scope) -> Bool { scopes.contains { $0.implied.contains(scope) } }
}

/// A token as its holder has it: `obx_`, 40 random letters and digits, and a checksum of six, so
/// that a mistyped one costs no query and scanners find a lost one.
package struct TokenText: Sendable, Equatable {
    package let text: String

    private static let beginning = "obx_"
    private static let random = 40
    private static let digits = Array("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz".utf8)

    /// Nil for anything that was never a token.
    package init?(_ text: String) {
        let bytes = Array(text.utf8)
        let end = Self.beginning.utf8.count + Self.random
        guard bytes.count == end + 6, text.hasPrefix(Self.beginning), bytes[4...].allSatisfy(Self.digits.contains),
            Self.checksum(bytes[..<end]) == Array(bytes[end...])
        else { return nil }
        self.text = text
    }

    private init(random: some Sequence<UInt8>) {
        var bytes = Array(Self.beginning.utf8) + random
        bytes += Self.checksum(bytes[...])
        text = String(decoding: bytes, as: UTF8.self)
    }

    /// A new one, of 238 random bits.
    package static func new() -> TokenText {
        TokenText(random: (0..<random).map { _ in digits[Int.random(in: 0..<digits.count)] })
    }

    /// How it is stored. Without salt: nobody can guess 238 bits, and it is looked up by this.
    package var hash: [UInt8] { Array(SHA256.hash(data: Array(text.utf8))) }

    /// So much of it is shown, to tell tokens apart.
    package var prefix: String { String(text.prefix(8)) }

    /// CRC-32 (IEEE 802.3) in six digits of base 62.
    private static func checksum(_ bytes: ArraySlice<UInt8>) -> [UInt8] {
        var remainder = UInt32.max
        for byte in bytes {
            remainder ^= UInt32(byte)
            for _ in 0..<8 { remainder = remainder >> 1 ^ (remainder & 1 == 1 ? 0xEDB8_8320 : 0) }
        }
        var (rest, text) = (~remainder, [UInt8]())
        for _ in 0..<6 {
            text.append(digits[Int(rest % 62)])
            rest /= 62
        }
        return text.reversed()
    }
}
