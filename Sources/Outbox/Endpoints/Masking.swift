/// The parts of endpoints that are shown on request only. The database masks by the same rules
/// (`outbox.masked_url`, `outbox.masked_headers`); MaskingTests compares the two.
package enum Masking {
    private static let suspicious = ["auth", "token", "secret", "key", "cookie", "password", "signature"]

    /// True for a header's name that suggests a secret value.
    package static func soundsSecret(_ name: String) -> Bool {
        let name = name.lowercased()
        return suspicious.contains { name.contains($0) }
    }

    /// The placeholder for a value that is not shown. Written back, it means the stored value.
    package static let mask = "***"

    /// True when a value of the URL's query is the mask.
    static func isMasked(_ url: String) -> Bool {
        guard let mark = url.firstIndex(of: "?") else { return false }
        return url[url.index(after: mark)...].split(separator: "&").contains { pair in
            pair.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).last.map { $0 == mask } ?? false
        }
    }

    /// The URL with the values of its query masked, since they may be tokens.
    package static func url(_ url: String) -> String {
        guard let mark = url.firstIndex(of: "?") else { return url }
        let pairs = url[url.index(after: mark)...].split(separator: "&", omittingEmptySubsequences: false).map { pair in
            pair.firstIndex(of: "=").map { pair[...$0] + mask } ?? (pair.isEmpty ? "" : Substring(mask))
        }
        return url[...mark] + pairs.joined(separator: "&")
    }
}
