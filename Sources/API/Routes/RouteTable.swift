import Operator
package import Outbox

/// One route: everything that is known of it, in one place. The router, the checks before a handler
/// runs, and the documents read it from here.
package struct Route: Sendable {
    /// Who may call it.
    package enum Access: Sendable {
        case everybody
        case scope(Token.Scope)
    }

    package let method: String
    /// The segments; one in braces is a name.
    package let pattern: [String]
    /// The use case's name, as in the audit log and on the command line.
    package let operation: String
    package let access: Access
    /// The parameters of the query.
    let parameters: [String]
    /// The most bytes of a body.
    let maxBody: Int
    /// What a body may be.
    let mediaTypes: [String]
    let handle: @Sendable (Call) async throws -> Answer

    init(
        _ method: String, _ path: String, _ operation: String, _ access: Access, parameters: [String] = [],
        maxBody: Int = 1 << 20, mediaTypes: [String] = ["application/json"],
        _ handle: @escaping @Sendable (Call) async throws -> Answer
    ) {
        self.method = method
        pattern = path.dropFirst().split(separator: "/").map(String.init)
        (self.operation, self.access, self.parameters) = (operation, access, parameters)
        (self.maxBody, self.mediaTypes) = (maxBody, mediaTypes)
        self.handle = handle
    }

    /// The names of a path that fits; nil when it does not.
    func names(in segments: [String]) -> [String: String]? {
        guard segments.count == pattern.count else { return nil }
        var names: [String: String] = [:]
        for (part, segment) in zip(pattern, segments) {
            if part.hasPrefix("{") {
                if segment.isEmpty { return nil }
                names[String(part.dropFirst().dropLast())] = segment
            } else if !part.utf8.elementsEqual(segment.utf8) {
                return nil
            }
        }
        return names
    }
}

/// All routes. A fixed segment goes before a name: the order of the table says which is asked
/// first.
package struct RouteTable: Sendable {
    package let routes: [Route]

    enum Match {
        case route(Route, names: [String: String])
        /// There are routes for the path, and none for the method.
        case otherMethods([String])
        case none
    }

    func match(_ method: String, _ segments: [String]) -> Match {
        let fitting = routes.compactMap { route in route.names(in: segments).map { (route, $0) } }
        guard let first = fitting.first else { return .none }
        // Of the routes with the same pattern as the first.
        let same = fitting.filter { $0.0.pattern == first.0.pattern }
        let wanted = method == "HEAD" ? "GET" : method
        if let (route, names) = same.first(where: { $0.0.method == wanted }) { return .route(route, names: names) }
        let methods = same.map(\.0.method)
        return .otherMethods(methods + (methods.contains("GET") ? ["HEAD"] : []) + ["OPTIONS"])
    }
}
