package import Postgres

/// Why a request was made.
package enum Trigger: String, Sendable, PostgresDecodable {
    case first, retry, replay
    /// `endpoint test` and `endpoint evaluate`: no delivery.
    case test, evaluate

    /// True for the attempts of deliveries; the database has the same rule (`outbox.is_delivery`).
    package var isDelivery: Bool { self != .test && self != .evaluate }
}

/// One HTTP request as stored in the attempt log.
package final class Attempt: Sendable {
    package let number: Int
    package let trigger: Trigger
    package let startedAt: Timestamp
    package let dns: Duration?
    package let connect: Duration?
    package let tls: Duration?
    package let firstByte: Duration?
    package let total: Duration
    package let isSuccess: Bool
    package let status: Int?
    package let errorClass: String?
    package let error: String?
    /// The beginning of the response's body; kept for failures.
    package let response: [UInt8]?
    package let requestID: String?

    package init(
        number: Int, trigger: Trigger, startedAt: Timestamp, dns: Duration? = nil, connect: Duration? = nil,
        tls: Duration? = nil, firstByte: Duration? = nil, total: Duration, isSuccess: Bool, status: Int? = nil,
        errorClass: String? = nil, error: String? = nil, response: [UInt8]? = nil, requestID: String? = nil
    ) {
        self.number = number
        self.trigger = trigger
        self.startedAt = startedAt
        self.dns = dns
        self.connect = connect
        self.tls = tls
        self.firstByte = firstByte
        self.total = total
        self.isSuccess = isSuccess
        self.status = status
        self.errorClass = errorClass
        self.error = error
        self.response = response
        self.requestID = requestID
    }

    var hasTexts: Bool { error != nil || response != nil || requestID != nil }

    /// The attempt without the texts that the receiver chose.
    var withoutTexts: Attempt {
        Attempt(
            number: number, trigger: trigger, startedAt: startedAt, dns: dns, connect: connect, tls: tls,
            firstByte: firstByte, total: total, isSuccess: isSuccess, status: status, errorClass: errorClass)
    }
}

/// A held batch: under which lease, and on which server it was claimed. On another server it is
/// lost, even if that server still shows the lease: its rows may be missing on the server that is
/// queried next, and the rows written on the first server may be missing on it.
package struct HeldBatch: Sendable, Hashable {
    package let id: BatchID
    package let lease: LeaseID
    package let server: ServerStart

    package init(id: BatchID, lease: LeaseID, server: ServerStart) {
        self.id = id
        self.lease = lease
        self.server = server
    }
}

/// The lease under which a delivery was worked on.
package enum Holder: Sendable, Hashable, CustomStringConvertible {
    case batch(HeldBatch)
    case lane(EndpointID, LeaseID)

    package var lease: LeaseID {
        switch self {
        case .batch(let batch): batch.lease
        case .lane(_, let lease): lease
        }
    }

    package var batch: HeldBatch? { if case .batch(let batch) = self { batch } else { nil } }

    package var description: String {
        switch self {
        case .batch(let batch): "batch \(batch.id)"
        case .lane(let endpoint, _): "lane of endpoint \(endpoint)"
        }
    }
}

/// The next state of a delivery.
package enum Resolution: Sendable {
    /// A 2xx that satisfied the endpoint's rules.
    case delivered
    /// Wait in the endpoint's lane; the delay counts from the record.
    case wait(Duration, Trigger)
    /// Park it with the dead letters.
    case dead(DeadReason)
    /// Take it out of the lane: the endpoint's filter does not hold for it.
    case unwanted
}

/// Why a delivery was parked.
package enum DeadReason: String, Sendable {
    case exhausted, permanent, cancelled
    case workerCrashed = "worker_crashed"
    case renderError = "render_error"
    case eventMissing = "event_missing"
    case filterError = "filter_error"
}

/// One delivery's news for the recorder: the request, if one was made, and the next state of the
/// delivery.
package struct Outcome: Sendable {
    package var delivery: DeliveryID
    package var holder: Holder
    /// True when another worker may hold the lease by now, or held it before: then a success also
    /// clears the rows that it left.
    package var mayBeShared: Bool
    package var attempt: Attempt?
    /// The number of attempts of the delivery, this one included.
    package var attempts: Int
    package var resolution: Resolution
    /// The error when there is no attempt to hold it, as when the request could not be built.
    package var note: (errorClass: String, error: String)?
    /// The number of crashes in a row for the lane's row: none, after any real outcome.
    package var crashes = 0
    /// True when other deliveries of its ordering key wait for it in the lane.
    package var isOrdered = false

    package init(
        delivery: DeliveryID, holder: Holder, mayBeShared: Bool, attempt: Attempt?, attempts: Int,
        resolution: Resolution, note: (errorClass: String, error: String)? = nil
    ) {
        self.delivery = delivery
        self.holder = holder
        self.mayBeShared = mayBeShared
        self.attempt = attempt
        self.attempts = attempts
        self.resolution = resolution
        self.note = note
    }

    /// The replacement when the database refuses the outcome for its values: first without foreign
    /// texts, then parked instead of waiting, then without its attempt; nil when nothing more can
    /// be left out.
    package func reduced(because refusal: PostgresError) -> Outcome? {
        var outcome = self
        if attempt?.hasTexts == true || note.map({ $0.error != $0.errorClass }) == true {
            outcome.attempt = attempt?.withoutTexts
            outcome.note = note.map { ($0.errorClass, $0.errorClass) }
        } else if case .wait = resolution {
            outcome.resolution = .dead(.permanent)
            outcome.note = ("not_recordable", "the database refused to have it wait: \(refusal)")
        } else {
            if attempt == nil { return nil }
            outcome.attempt = nil
        }
        return outcome
    }

    var errorClass: String? { attempt?.errorClass ?? note?.errorClass }
    var error: String? { attempt?.error ?? note?.error }
}
