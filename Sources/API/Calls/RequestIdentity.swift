import Postgres

/// The name of one request, in the response, in problems and in the log.
enum RequestIdentity {
    static func new() -> String { "\(UniqueID.random())" }

    /// The caller's own name for it, when that can be written anywhere.
    static func of(_ given: String?) -> String {
        guard let given, (1...128).contains(given.utf8.count), given.utf8.allSatisfy({ (0x21...0x7E).contains($0) })
        else { return new() }
        return given
    }
}
