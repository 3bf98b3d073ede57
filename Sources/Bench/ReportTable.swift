import Foundation

extension Report {
    /// For people.
    package var table: String {
        var lines: [(String, String)] = [
            (
                "machine",
                "\(machine.processors) processors, \(machine.memoryBytes >> 30) GiB, PostgreSQL \(machine.postgresql)"
            )
        ]
        if let loop { lines.append(("libcurl alone", "\(number(loop.requestsPerSecond)) requests/s")) }
        for row in producers ?? [] {
            lines.append(
                (
                    "\(row.clients) producers, worker \(row.worker)",
                    "\(number(row.outboxPerSecond)) transactions/s, bare table \(number(row.barePerSecond)), ratio \(decimal(row.ratio, 2))"
                ))
        }
        if let drain {
            let share = drain.shareOfLoop.map { ", \(decimal($0, 2)) of libcurl alone" } ?? ""
            lines.append(("deliveries", "\(number(drain.deliveriesPerSecond))/s\(share)"))
            lines.append(("  tenths of the run", drain.tenthsPerSecond.map { number($0) }.joined(separator: " ")))
            lines.append(("  attempts", "\(drain.attempts), of those failed \(drain.failures)"))
            if let requests = drain.requests {
                lines.append(("  requests seen", "\(requests)" + (drain.duplicates.map { ", duplicates \($0)" } ?? "")))
            }
            if let times = drain.requestMilliseconds { lines.append(("  request time", text(times))) }
            lines.append(
                (
                    "  per delivery",
                    (drain.databaseMicrosecondsPerDelivery.map { "database \(decimal($0, 1)) us, " } ?? "")
                        + "worker \(decimal(drain.workerMicrosecondsPerDelivery, 1)) us, WAL \(number(drain.walBytesPerDelivery)) bytes, "
                        + "\(decimal(drain.statementsPerDelivery, 4)) statements"
                ))
            lines.append(("  worker memory", "\(drain.workerMemoryBytes >> 20) MiB at its peak"))
            lines.append(("  dead tuples", "\(drain.deadTuples)"))
        }
        if let steady {
            if let times = steady.commitToResponseMilliseconds {
                lines.append(("commit to response", "\(text(times)) at \(steady.rate)/s"))
            }
            if let times = steady.firstAfterIdleMilliseconds { lines.append(("  first after idle", text(times))) }
        }
        if let neighbours { lines += self.lines("neighbours", neighbours) }
        if let flood { lines += self.lines("flood", flood) }
        if let recovery {
            lines.append(
                (
                    "recovery",
                    "first after \(decimal(recovery.firstAfterSeconds, 2)) s, then \(recovery.firstRounds.map(String.init).joined(separator: ", ")) at a time; "
                        + "\(number(recovery.deliveriesPerSecond)) deliveries/s"
                ))
            lines.append(("  while failing", text(recovery.failingProcessorShare)))
            lines.append(
                (
                    "  owner killed",
                    "goes on after \(decimal(recovery.takeoverAfterSeconds, 2)) s of a lease of \(decimal(recovery.leaseSeconds, 0)) s, duplicates \(recovery.duplicates)"
                ))
        }
        if let scheduled {
            if let late = scheduled.lateMilliseconds { lines.append(("scheduled, late by", text(late))) }
            lines.append(("  idle", text(scheduled.idleProcessorShare)))
            lines.append(("  with \(scheduled.waiting) scheduled", text(scheduled.waitingProcessorShare)))
        }
        if let flapping {
            lines += [
                (
                    "flapping",
                    "\(flapping.opens) openings, \(flapping.laneUpdates) changes to lanes under a held snapshot"
                ),
                ("  rounds through 20 lanes before", text(flapping.before)),
                ("  after", "\(text(flapping.after)); rate \(decimal(flapping.ratio, 2)) times"),
            ]
        }
        if let directory {
            lines += [
                (
                    "\(directory.endpoints) endpoints",
                    "an event that nobody wants: worker \(decimal(directory.workerMicrosecondsPerEvent, 1)) us, "
                        + "without them \(decimal(directory.workerMicrosecondsPerEventAlone, 1)) us"
                ),
                ("  idle", text(directory.idleProcessorShare)),
                ("  one changes every second", text(directory.changingProcessorShare)),
            ]
        }
        for share in shares ?? [] {
            guard let alone = share.alone, let beside = share.beside else { continue }
            lines.append(
                (
                    "beside \(share.party)",
                    "p95 \(decimal(beside.p95, 1)) ms, alone \(decimal(alone.p95, 1)) (\(decimal(share.p95Ratio, 2)) times), "
                        + "delivered \(decimal(share.deliveredShare, 2)) of what was offered; party \(share.partyResponses) responses, worker "
                        + "\(share.workerMemoryBytesBeside >> 20) MiB, alone \(share.workerMemoryBytes >> 20)"
                ))
        }
        let width = lines.map(\.0.count).max() ?? 0
        return lines.map { "\($0.padding(toLength: width + 2, withPad: " ", startingAt: 0))\($1)" }.joined(
            separator: "\n")
    }

    private func text(_ rounds: Rounds) -> String {
        "\(decimal(rounds.perSecond, 1))/s" + (rounds.milliseconds.map { ", \(text($0))" } ?? "")
            + ", \(rounds.blocks) blocks"
            + (rounds.databaseMilliseconds.map { ", database \(decimal($0, 1)) ms each" } ?? "")
    }

    private func lines(_ name: String, _ comparison: Comparison) -> [(String, String)] {
        [
            ("\(name), alone", text(comparison.alone))
        ]
            + (comparison.whileCommitted.map { [("  while it is committed", text($0))] } ?? []) + [
                (
                    "  beside \(comparison.waiting) waiting",
                    text(comparison.beside) + "; p99 \(decimal(comparison.p99Ratio, 2)) times"
                        + (comparison.throughputRatio.map { ", throughput \(decimal($0, 2)) times" } ?? "")
                )
            ]
    }

    private func text(_ share: ProcessorShare?) -> String {
        guard let share else { return "-" }
        return "workers \(decimal(share.workers * 100, 2)) %, database "
            + (share.database.map { decimal($0 * 100, 2) + " %" } ?? "elsewhere") + " of a processor"
    }

    private func text(_ times: Percentiles) -> String {
        "p50 \(decimal(times.p50, 2)) ms, p95 \(decimal(times.p95, 2)), p99 \(decimal(times.p99, 2)), max \(decimal(times.max, 2))"
    }

    private func number(_ value: Double) -> String { decimal(value, 0) }
    private func decimal(_ value: Double, _ digits: Int) -> String { String(format: "%.\(digits)f", value) }
}
