import Bytewise
import Postgres

/// How many requests an endpoint gets in a period, exactly and from all workers together. Written
/// `60/30s` for at most 60 in any 30 seconds, or `1/s burst 3` for one a second on average and up
/// to three at once after a pause.
package struct RateLimit: Sendable, Hashable, CustomStringConvertible {
    package let count: Int
    package let period: Duration
    /// The bucket's size; nil for a window, in which there is no average to catch up with.
    package let burst: Int?

    /// The longest period, since the requests sent in it have to be known.
    package static let maxPeriod = Duration.seconds(86_400)

    package init(_ text: String) throws(Problem) {
        let words = text.split(separator: " ").map(String.init)
        let parts = (words.first ?? "").split(separator: "/", omittingEmptySubsequences: false).map(String.init)
        var burst: Int?
        if words.count == 3, words[1] == "burst" { burst = Int(words[2]) ?? 0 }
        guard words.count == 1 || words.count == 3 && words[1] == "burst", parts.count == 2, let count = Int(parts[0]),
            (1...100_000).contains(count), let period = Self.period(parts[1]),
            burst.map({ (1...100_000).contains($0) }) ?? true
        else {
            throw Problem(
                .invalidValue, "\"\(text.prefix(64))\" is not a rate",
                hint: "Expected something like 1/s, 60/30s, 100/h or \"1/s burst 3\"; the longest period is 24h")
        }
        self.count = count
        self.period = period
        self.burst = burst
    }

    private static func period(_ text: String) -> Duration? {
        // A unit alone is one of it.
        guard let period = Duration(written: text.first?.isNumber == true ? text : "1" + text) else { return nil }
        return period >= .milliseconds(1) && period <= maxPeriod ? period : nil
    }

    package var description: String {
        let milliseconds = period.milliseconds
        let text = milliseconds % 1000 == 0 ? "\(milliseconds / 1000)s" : "\(milliseconds)ms"
        return "\(count)/\(text)" + (burst.map { " burst \($0)" } ?? "")
    }
}
