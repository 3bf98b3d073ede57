import Foundation

/// Shows how far a long phase is, on stderr: a bar on a terminal, a line every five seconds
/// elsewhere.
package struct Progress: Sendable {
    private let isTerminal: Bool

    package init() {
        isTerminal = isatty(STDERR_FILENO) == 1
    }

    /// One phase: its name and its amount of work.
    struct Phase {
        let title: String
        let total: Int
        let started = ContinuousClock.now
        fileprivate var shownAt: ContinuousClock.Instant?
        fileprivate let progress: Progress
    }

    func begin(_ title: String, total: Int) -> Phase {
        var phase = Phase(title: title, total: total, progress: self)
        phase.show(0)
        return phase
    }

    fileprivate func write(_ text: String) {
        FileHandle.standardError.write(Data(text.utf8))
    }

    fileprivate var interval: Duration { isTerminal ? .milliseconds(200) : .seconds(5) }
    fileprivate func line(_ text: String, isLast: Bool) {
        write(isTerminal ? "\r\(text)\u{1B}[K" + (isLast ? "\n" : "") : text + "\n")
    }
}

extension Progress.Phase {
    /// Shows the amount that is done; cheap to call often.
    mutating func show(_ done: Int) {
        if let shownAt, .now - shownAt < progress.interval { return }
        shownAt = .now
        progress.line(text(done), isLast: false)
    }

    /// Ends the phase's line.
    mutating func end(_ done: Int) { progress.line(text(done), isLast: true) }

    private func text(_ done: Int) -> String {
        let seconds = Double((.now - started) / Duration.seconds(1))
        let share = total > 0 ? min(1, Double(done) / Double(total)) : 0
        let bar = String(repeating: "█", count: Int(share * 20)).padding(toLength: 20, withPad: "░", startingAt: 0)
        let rate = seconds > 0 ? Double(done) / seconds : 0
        let left = rate > 0 ? Double(total - done) / rate : 0
        return "\(title.padding(toLength: 22, withPad: " ", startingAt: 0)) \(bar) \(done)/\(total)"
            + (done > 0
                ? "  \(Int(rate))/s  \(done < total ? "\(Int(left.rounded(.up))) s left" : "\(Int(seconds)) s")" : "")
    }
}
