package import Postgres

/// What a receiver asks for with `Retry-After` (RFC 9110 10.2.3): seconds, or a date in any of the
/// three forms of RFC 9110 5.6.7. libcurl's own reading is not used: it overflows, accepts
/// `3600abc` and turns past dates negative.
package enum RetryAfter {
    /// The longest rest that a receiver can ask for.
    static let maxRest = Duration.seconds(24 * 3600)

    /// The rest, 0 to 24 hours; nil when the value is not valid, which means that there is no wish.
    package static func parse(_ value: String, now: Timestamp) -> Duration? {
        let text = value.utf8
        guard !text.isEmpty, text.count <= 64 else { return nil }
        if text.allSatisfy({ $0 >= 48 && $0 <= 57 }) {
            // Any number of digits is a valid number of seconds; beyond a day it makes no
            // difference how many.
            let seconds = text.reduce(Int64(0)) { min($0 * 10 + Int64($1 - 48), 10_000_000) }
            return min(.seconds(seconds), maxRest)
        }
        guard let date = date(value) else { return nil }
        let rest = Duration.microseconds(date.microseconds - now.microseconds)
        return max(.zero, min(rest, maxRest))
    }

    private static let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    private static let days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
    private static let longDays = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

    private static func date(_ value: String) -> Timestamp? {
        let words = value.split(separator: " ").map(String.init)
        // Sun, 06 Nov 1994 08:49:37 GMT
        if words.count == 6, words[5] == "GMT", words[0].hasSuffix(","), days.contains(String(words[0].dropLast())) {
            return time(year: digits(words[3], 4), month: words[2], day: digits(words[1], 2), clock: words[4])
        }
        // Sunday, 06-Nov-94 08:49:37 GMT; two digits mean the nearest such year, not more than 50
        // ahead
        if words.count == 4, words[3] == "GMT", words[0].hasSuffix(","), longDays.contains(String(words[0].dropLast()))
        {
            let parts = words[1].split(separator: "-").map(String.init)
            guard parts.count == 3, let year = digits(parts[2], 2) else { return nil }
            return time(
                year: year < 70 ? 2000 + year : 1900 + year, month: parts[1], day: digits(parts[0], 2), clock: words[2])
        }
        // Sun Nov  6 08:49:37 1994
        if words.count == 5, days.contains(words[0]) {
            let day = words[2].utf8.count == 1 ? digits(words[2], 1) : digits(words[2], 2)
            return time(year: digits(words[4], 4), month: words[1], day: day, clock: words[3])
        }
        return nil
    }

    private static func time(year: Int64?, month: String, day: Int64?, clock: String) -> Timestamp? {
        let parts = clock.split(separator: ":", omittingEmptySubsequences: false).map(String.init)
        guard let year, let day, let month = months.firstIndex(of: month), (1...31).contains(day), parts.count == 3,
            let hour = digits(parts[0], 2), let minute = digits(parts[1], 2), let second = digits(parts[2], 2),
            day <= Timestamp.days(of: Int64(month + 1), year), hour < 24, minute < 60, second <= 60
        else { return nil }
        return Timestamp(year: year, month: Int64(month + 1), day: day, hour: hour, minute: minute, second: second)
    }

    private static func digits(_ text: String, _ count: Int) -> Int64? {
        guard text.utf8.count == count, text.utf8.allSatisfy({ $0 >= 48 && $0 <= 57 }) else { return nil }
        return Int64(text)
    }
}
