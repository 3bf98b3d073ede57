import Bytewise
import Outbox
import Transport

/// Something that there is little of in one process, and that all parties share.
struct Budget: Sendable {
    enum Kind: String, Sendable, CaseIterable {
        /// In flight, and the memory that they may take.
        case requests
        case requestBytes = "request_bytes"
        /// The memory that all events here take.
        case eventBytes = "event_bytes"
        /// Lanes that are worked on.
        case lanes
        /// Threads that build large requests and judge large responses.
        case computing
        /// Threads that look up names.
        case names
        /// Open files and sockets.
        case descriptors
    }

    struct Reading: Sendable {
        let used: Int
        let limit: Int
        /// Somebody has to wait for somebody else.
        let isFull: Bool
    }

    let kind: Kind
    let reading: @Sendable () -> Reading
    /// Who has most of it, with how much.
    let holders: @Sendable () -> [String]

    init(
        _ kind: Kind, reading: @escaping @Sendable () -> Reading, holders: @escaping @Sendable () -> [String] = { [] }
    ) {
        (self.kind, self.reading, self.holders) = (kind, reading, holders)
    }
}

extension Budget {
    /// What the parties share here.
    static func all(of parts: EngineParts, attempts: AttemptRunner, transport: Transport) -> [Budget] {
        let (sender, memory, keeper) = (parts.sender, parts.memory, parts.keeper)
        @Sendable func say(_ parties: [ExactText: Int], _ what: String) -> [String] {
            parties.sorted { $0.value > $1.value }.prefix(3).map { "customer \($0.key): \($0.value) \(what)" }
        }
        return [
            Budget(.requests, reading: { sender.taken.requests }, holders: { sender.holders }),
            Budget(.requestBytes, reading: { sender.taken.bytes }, holders: { sender.holders }),
            Budget(
                .eventBytes,
                reading: {
                    Budget.Reading(used: memory.used, limit: memory.limit, isFull: memory.used >= memory.limit / 8 * 7)
                }, holders: { say(memory.holders, "bytes") }),
            Budget(
                .lanes,
                reading: {
                    let count = keeper.lanes.count
                    return Budget.Reading(used: count, limit: LaneRunner.maxLanes, isFull: count >= LaneRunner.maxLanes)
                },
                holders: {
                    let endpoints = parts.directory.current.byID
                    let held = keeper.lanes.reduce(into: [ExactText: Int]()) {
                        $0[endpoints[$1]?.customerID ?? "", default: 0] += 1
                    }
                    return say(held, "lanes")
                }),
            Budget(
                .computing, reading: { attempts.computing.reading },
                holders: { say(attempts.computing.waiting, "jobs") }),
            Budget(
                .names,
                reading: {
                    let names = transport.names
                    return Budget.Reading(used: names.running, limit: names.limit, isFull: !names.waiting.isEmpty)
                }, holders: { say(transport.names.waiting, "names") }),
            Budget(
                .descriptors,
                reading: {
                    let found = Transport.descriptors ?? (0, 0)
                    return Budget.Reading(
                        used: found.open, limit: found.limit, isFull: found.limit > 0 && found.open + 64 >= found.limit)
                }),
        ]
    }
}

extension Budget.Kind {
    /// The code in `problems` and in the log.
    var problem: String {
        switch self {
        case .requests: "requests_full"
        case .requestBytes: "request_bytes_full"
        case .eventBytes: "event_bytes_full"
        case .lanes: "lanes_full"
        case .computing: "computing_full"
        case .names: "names_full"
        case .descriptors: "descriptors_full"
        }
    }

    var words: String {
        switch self {
        case .requests: "requests in flight"
        case .requestBytes: "bytes for requests in flight"
        case .eventBytes: "bytes for events"
        case .lanes: "lanes, and takes no other before one is through"
        case .computing: "threads that build large requests and judge large responses"
        case .names: "threads that look up names"
        case .descriptors: "file descriptors"
        }
    }

    var advice: String {
        switch self {
        case .requests, .requestBytes:
            "Endpoints wait for each other. Find out why these answer so slowly, or give them a shorter timeout; "
                + "or start another worker, or raise OUTBOX_MAX_IN_FLIGHT"
        case .eventBytes:
            "Lanes wait for memory. Find out why the endpoints of these customers answer so slowly; or start another worker"
        case .lanes: "Their endpoints answer slowly: give them a shorter timeout, or start another worker"
        case .computing:
            "Large events and responses wait for each other. Make the templates and rules of these customers' endpoints "
                + "smaller, or start another worker"
        case .names: "Name servers do not answer for these customers' hosts: correct or disable their endpoints"
        case .descriptors: "Raise the limit (ulimit -n, LimitNOFILE=), or lower OUTBOX_MAX_IN_FLIGHT"
        }
    }
}
