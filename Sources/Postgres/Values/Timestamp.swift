/// A point in time as PostgreSQL keeps it: microseconds since 1970-01-01 00:00 UTC, with the two
/// infinities.
///
/// Stored timestamps always come from the database's clock. This type never reads a local clock.
public struct Timestamp: Hashable, Comparable, Sendable, CustomStringConvertible {
    /// Microseconds since the Unix epoch.
    public let microseconds: Int64

    /// The timestamp at this number of microseconds after the Unix epoch.
    public init(microseconds: Int64) {
        self.microseconds = microseconds
    }

    /// Later than every other timestamp (`infinity`).
    public static let distantFuture = Timestamp(microseconds: .max)
    /// Earlier than every other timestamp (`-infinity`).
    public static let distantPast = Timestamp(microseconds: .min)

    /// True when the left one is earlier.
    public static func < (left: Timestamp, right: Timestamp) -> Bool { left.microseconds < right.microseconds }

    /// The timestamp later by a duration; the infinities do not change.
    public static func + (time: Timestamp, duration: Duration) -> Timestamp {
        if time == .distantFuture || time == .distantPast { return time }
        let (sum, overflows) = time.microseconds.addingReportingOverflow(duration.microseconds)
        // The last timestamp before infinity.
        return Timestamp(microseconds: overflows ? (duration < .zero ? .min + 1 : .max - 1) : sum)
    }

    /// How much later it is than another timestamp; the longest duration when the difference is
    /// larger.
    public static func - (time: Timestamp, earlier: Timestamp) -> Duration {
        let (difference, overflows) = time.microseconds.subtractingReportingOverflow(earlier.microseconds)
        return .microseconds(overflows ? (time < earlier ? .min : .max) : difference)
    }

    /// Whole seconds since the Unix epoch, rounded down.
    public var seconds: Int64 { floorDivide(microseconds, 1_000_000) }

    /// RFC 3339 in UTC with microseconds, as in `2026-11-21T06:03:43.123456Z`.
    public var description: String { rfc3339(fractionDigits: 6) }

    /// RFC 3339 in UTC with 0 to 6 digits of fraction; digits beyond are cut off, not rounded.
    public func rfc3339(fractionDigits: Int) -> String {
        if self == .distantFuture { return "infinity" }
        if self == .distantPast { return "-infinity" }
        let days = floorDivide(seconds, 86_400)
        let secondOfDay = seconds - days * 86_400
        let (year, month, day) = civilDate(daysSinceEpoch: days)
        var text = "\(padded(year, 4))-\(padded(month, 2))-\(padded(day, 2))T"
        text += "\(padded(secondOfDay / 3600, 2)):\(padded(secondOfDay / 60 % 60, 2)):\(padded(secondOfDay % 60, 2))"
        if fractionDigits > 0 {
            text += "." + padded(microseconds - seconds * 1_000_000, 6).prefix(fractionDigits)
        }
        return text + "Z"
    }

    /// The UTC calendar time of the given fields, which must be in range (no leap second).
    public init(year: Int64, month: Int64, day: Int64, hour: Int64, minute: Int64, second: Int64) {
        let days = daysSinceEpoch(year: year, month: month, day: day)
        self.init(microseconds: ((days * 24 + hour) * 60 + minute) * 60_000_000 + second * 1_000_000)
    }
}

extension Timestamp {
    /// Reads RFC 3339, as in `2026-11-21T06:03:43.123Z` or with an offset such as `+02:00`, of the
    /// years 1 to 9999; nil for any other text, including a day that its month does not have.
    /// Digits of a second beyond the sixth are cut off.
    public init?(rfc3339 text: String) {
        var rest = Array(text.utf8)[...]
        func number(_ digits: Int, _ range: ClosedRange<Int64>) -> Int64? {
            let part = rest.prefix(digits)
            guard part.count == digits, part.allSatisfy({ (0x30...0x39).contains($0) }) else { return nil }
            rest = rest.dropFirst(digits)
            let value = part.reduce(Int64(0)) { $0 * 10 + Int64($1 - 0x30) }
            return range.contains(value) ? value : nil
        }
        func take(_ characters: String) -> UInt8? {
            guard let first = rest.first, characters.utf8.contains(first) else { return nil }
            rest = rest.dropFirst()
            return first
        }
        guard let year = number(4, 1...9999), take("-") != nil, let month = number(2, 1...12), take("-") != nil,
            let day = number(2, 1...Self.days(of: month, year)), take("Tt ") != nil, let hour = number(2, 0...23),
            take(":") != nil, let minute = number(2, 0...59), take(":") != nil, let second = number(2, 0...59)
        else { return nil }
        var micro: Int64 = 0
        if take(".") != nil {
            let digits = rest.prefix { (0x30...0x39).contains($0) }
            guard !digits.isEmpty else { return nil }
            rest = rest.dropFirst(digits.count)
            micro = (digits.prefix(6) + Array(repeating: 0x30, count: max(0, 6 - digits.count)))
                .reduce(0) { $0 * 10 + Int64($1 - 0x30) }
        }
        var offset: Int64 = 0
        if take("Zz") == nil {
            guard let sign = take("+-"), let hours = number(2, 0...23) else { return nil }
            _ = take(":")
            guard let minutes = number(2, 0...59) else { return nil }
            offset = (hours * 60 + minutes) * (sign == UInt8(ascii: "-") ? -1 : 1)
        }
        guard rest.isEmpty else { return nil }
        let local = Timestamp(year: year, month: month, day: day, hour: hour, minute: minute, second: second)
        self.init(microseconds: local.microseconds + micro - offset * 60_000_000)
    }

    /// How many days a month has.
    package static func days(of month: Int64, _ year: Int64) -> Int64 {
        let isLeap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
        return switch month {
        case 2: isLeap ? 29 : 28
        case 4, 6, 9, 11: 30
        default: 31
        }
    }
}

extension Duration {
    /// The duration in whole microseconds, cut off towards zero; one of more than 292,000 years, as
    /// an interval in a table may be, becomes the longest one.
    public var microseconds: Int64 {
        let (seconds, attoseconds) = components
        let (product, overflows) = seconds.multipliedReportingOverflow(by: 1_000_000)
        let (sum, overflowsToo) = product.addingReportingOverflow(attoseconds / 1_000_000_000_000)
        return overflows || overflowsToo ? (seconds < 0 ? .min : .max) : sum
    }

    /// The duration in whole milliseconds, cut off towards zero.
    public var milliseconds: Int64 { microseconds / 1000 }
}

private func floorDivide(_ value: Int64, _ divisor: Int64) -> Int64 {
    let quotient = value / divisor
    return value % divisor < 0 ? quotient - 1 : quotient
}

private func padded(_ value: Int64, _ width: Int) -> String {
    let digits = String(value)
    return String(repeating: "0", count: max(0, width - digits.count)) + digits
}

/// Days of the proleptic Gregorian calendar, counted in eras of 400 years that begin on 1 March.
private func daysSinceEpoch(year: Int64, month: Int64, day: Int64) -> Int64 {
    let shifted = month <= 2 ? year - 1 : year
    let era = floorDivide(shifted, 400)
    let yearOfEra = shifted - era * 400
    let dayOfYear = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1
    return era * 146_097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear - 719_468
}

private func civilDate(daysSinceEpoch days: Int64) -> (year: Int64, month: Int64, day: Int64) {
    let shifted = days + 719_468
    let era = floorDivide(shifted, 146_097)
    let dayOfEra = shifted - era * 146_097
    let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
    let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
    let monthFromMarch = (5 * dayOfYear + 2) / 153
    let month = monthFromMarch < 10 ? monthFromMarch + 3 : monthFromMarch - 9
    let year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0)
    return (year, month, dayOfYear - (153 * monthFromMarch + 2) / 5 + 1)
}
