import Bytewise
import DequeModule

/// The hosts of URLs, and what libcurl has been told of their addresses. It belongs to the
/// transport thread.
final class HostNames {
    struct Host: Hashable {
        let name: ExactText
        let port: Int
    }

    /// The hosts of recently seen URLs; nil for URLs whose host is an address.
    private var hosts: [ExactText: Host?] = [:]
    private var told: [Host: [IPAddress]] = [:]
    private var order: Deque<Host> = []
    private static let maxURLs = 20_000
    private static let maxHosts = 20_000

    /// The host that has to be resolved; nil when there is none.
    func host(of url: String) -> Host? {
        let key = ExactText(url)
        if let known = hosts[key] { return known }
        // There may be many URLs with parameters.
        if hosts.count >= Self.maxURLs { hosts.removeAll(keepingCapacity: true) }
        var host: Host?
        do throws(TargetURL.ValidationError) {
            let target = try TargetURL(url)
            // A name that means this machine libcurl knows without asking (RFC 6761 6.3).
            if target.address == nil, !target.host.hasPrefix("["), !target.isLocalName {
                // As libcurl keeps it.
                host = Host(name: ExactText(target.host.lowercased()), port: target.port)
            }
        } catch {
            // libcurl reports what is wrong with it.
        }
        hosts[key] = .some(host)
        return host
    }

    func isTold(_ host: Host, _ addresses: [IPAddress]) -> Bool { told[host] == addresses }

    /// Takes back what a request was to tell libcurl that never began.
    func forget(_ host: Host) { told[host] = [] }

    /// The lines of `CURLOPT_RESOLVE` for libcurl before a request to the host; none when libcurl
    /// knows the addresses.
    func entries(for host: Host, at addresses: [IPAddress]) -> [String] {
        if told[host] == addresses { return [] }
        var lines: [String] = []
        if told[host] == nil {
            order.append(host)
            if order.count > Self.maxHosts, let oldest = order.popFirst() {
                told[oldest] = nil
                lines.append("-\(oldest.name):\(oldest.port)")
            }
        }
        told[host] = addresses
        lines.append(
            "+\(host.name):\(host.port):\(addresses.map { if case .v6 = $0 { "[\($0)]" } else { "\($0)" } }.joined(separator: ","))"
        )
        return lines
    }
}
