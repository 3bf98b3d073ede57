import Operator
import Outbox
import Postgres

/// Why a call was not carried out, as a problem document (RFC 9457): a stable code, what is wrong,
/// and what to do about it. Its texts name no statement, no secret and no command.
struct Refusal: Error, Sendable {
    /// The codes that the door itself has; those of the use cases are `Problem.Code`.
    enum Code: String, Sendable, CaseIterable {
        case malformedRequest = "malformed_request"
        case malformedJSON = "malformed_json"
        case unknownParameter = "unknown_parameter"
        case unauthenticated, forbidden
        case notFound = "not_found"
        case methodNotAllowed = "method_not_allowed"
        case requestTimeout = "request_timeout"
        case preconditionRequired = "precondition_required"
        case payloadTooLarge = "payload_too_large"
        case uriTooLong = "uri_too_long"
        case unsupportedMediaType = "unsupported_media_type"
        case invalidValue = "invalid_value"
        case rateLimited = "rate_limited"
        case headersTooLarge = "headers_too_large"
        case `internal`
        case databaseUnavailable = "database_unavailable"
        case overloaded
        case schemaVersionMismatch = "schema_version_mismatch"
        case restoredDatabase = "restored_database"
        case keyUnavailable = "key_unavailable"

        var status: Int {
            switch self {
            case .malformedRequest, .malformedJSON, .unknownParameter: 400
            case .unauthenticated: 401
            case .forbidden: 403
            case .notFound: 404
            case .methodNotAllowed: 405
            case .requestTimeout: 408
            case .payloadTooLarge: 413
            case .uriTooLong: 414
            case .unsupportedMediaType: 415
            case .invalidValue: 422
            case .preconditionRequired: 428
            case .rateLimited: 429
            case .headersTooLarge: 431
            case .internal: 500
            case .databaseUnavailable, .overloaded, .schemaVersionMismatch, .restoredDatabase, .keyUnavailable: 503
            }
        }

        /// The connection has nothing more to say after it.
        var closes: Bool { [.malformedRequest, .requestTimeout, .payloadTooLarge].contains(self) }
    }

    let status: Int
    let code: String
    let detail: String
    var hint: String?
    var place: Problem.Place?
    var fault = Problem.Fault.range
    /// Members of this code, as JSON.
    var members: [(name: String, json: String)] = []
    var headers: [(name: String, value: String)] = []
    var closes = false

    init(_ code: Code, _ detail: String, hint: String? = nil, at place: Problem.Place? = nil) {
        (status, self.code, self.detail, self.hint, self.place) = (code.status, code.rawValue, detail, hint, place)
        closes = code.closes
        switch code {
        case .unknownParameter: fault = .unknown
        case .preconditionRequired: fault = .required
        case .malformedRequest: fault = .format
        default: break
        }
        if status == 503 || status == 429 { headers.append(("Retry-After", "1")) }
    }

    /// A refusal by a use case.
    init(_ problem: Problem) {
        (code, detail, hint) = (problem.code.rawValue, problem.message, problem.hint)
        (place, fault) = (problem.place, problem.fault)
        status =
            switch problem.code {
            case .notFound: 404
            case .nameTaken, .ambiguousName, .stateConflict, .deliveriesWaiting, .idempotencyInProgress: 409
            case .malformedJSON, .unknownMember, .invalidCursor: 400
            case .etagMismatch: 412
            case .invalidValue, .endpointURLNotAllowed, .headerInvalid, .templateInvalid, .filterInvalid,
                .secretInvalid, .maskedValue, .credentialsBoundToOrigin, .filterRequired, .reservedType,
                .idempotencyMismatch:
                422
            }
    }

    /// Any error of a use case; nil for one that only our own mistake explains.
    init?(_ error: any Error) {
        switch error {
        case let error as Refusal: self = error
        case let error as Problem: self.init(error)
        case is Keyring.KeyError: self.init(.keyUnavailable, "the key that seals secrets is missing or does not fit")
        case let error as Migrator.SchemaError: self.init(.schemaVersionMismatch, error.description)
        case let error as PostgresError: self.init(error)
        default: return nil
        }
    }

    private init?(_ error: PostgresError) {
        switch error.kind {
        case .unreachable, .connectionLost: self.init(.databaseUnavailable, "the database cannot be reached")
        case .deadline: self.init(.overloaded, "the database did not answer in time")
        case .value: self.init(.invalidValue, "a value cannot be stored: \(error.description)")
        case .configuration: return nil
        case .server:
            switch error.sqlState ?? "" {
            case "OB001": self.init(.payloadTooLarge, error.description)
            case "OB010": self.init(.restoredDatabase, "this database is a copy, from which nothing is sent")
            case "3F000", "42P01": self.init(.schemaVersionMismatch, "the database has no outbox schema")
            case let state where state.hasPrefix("OB00"), let state where state.hasPrefix("22"),
                let state where state.hasPrefix("23"):
                self.init(.invalidValue, error.description)
            case let state
            where ["08", "53", "57", "40"].contains { state.hasPrefix($0) } || state == "25006":
                self.init(.databaseUnavailable, "the database cannot carry it out now")
            default: return nil
            }
        }
    }

    /// As the caller gets it.
    ///
    /// - Parameter instance: the request's path without its query.
    func answer(instance: String?, requestID: String) -> Answer {
        var document = JSONObject()
        document.add("type", "urn:outbox:problem:\(code)")
        document.add("title", code.replacing("_", with: " "))
        document.add("status", status)
        document.add("detail", detail)
        document.add("instance", instance)
        document.add("code", code)
        document.add("request_id", requestID)
        if let hint { document.add("hint", hint) }
        for (name, json) in members { document.add(name, raw: json.utf8) }
        document.add("errors", raw: Array("[".utf8) + (place.map(error) ?? []) + Array("]".utf8))
        var answer = Answer(
            status: status, headers: [("Content-Type", "application/problem+json")] + headers, body: document.closed)
        answer.headers.append(("X-Request-Id", requestID))
        if closes { answer.headers.append(("Connection", "close")) }
        return answer
    }

    private func error(_ place: Problem.Place) -> [UInt8] {
        var error = JSONObject()
        error.add("detail", detail)
        error.add("code", fault.rawValue)
        switch place {
        case .member(let steps):
            let escaped = steps.map { $0.replacing("~", with: "~0").replacing("/", with: "~1") }
            error.add("pointer", "#" + escaped.map { "/" + $0 }.joined())
        case .parameter(let name): error.add("parameter", name)
        case .header(let name): error.add("header", name)
        }
        return error.closed
    }
}
