import Operator
import Outbox

/// Whether the process is alive, and whether it can do its work. Neither takes a token, and neither
/// tells names.
enum HealthRoutes {
    static let all: [Route] =
        ["/livez", "/healthz"].map { path in
            // It asks no database: a database that is away is no reason to start this process
            // again. A process that only serves has no loops.
            Route("GET", path, "health.live", .everybody, maxBody: 0) { _ in
                .json(#"{"status":"alive","loops":[]}"#.utf8)
            }
        } + [
            Route("GET", "/readyz", "health.ready", .everybody, maxBody: 0) { call in
                let checks = await call.outbox.readiness()
                let isReady = checks.allSatisfy(\.isWell)
                var document = JSONObject()
                document.add("status", isReady ? "ready" : "not_ready")
                let items = checks.map { check in
                    var item = JSONObject()
                    item.add("name", check.name)
                    item.add("ok", check.isWell)
                    return String(decoding: item.closed, as: UTF8.self)
                }
                document.add("checks", raw: "[\(items.joined(separator: ","))]".utf8)
                return .json(document.closed, status: isReady ? 200 : 503)
            }
        ]
}

extension RouteTable {
    /// Every route of the API.
    package static let all = RouteTable(
        routes: HealthRoutes.all + EventRoutes.all + EndpointRoutes.all + DeliveryRoutes.all + TokenRoutes.all)
}
