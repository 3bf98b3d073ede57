package import Postgres
package import Transport

extension Connection {
    /// Where the database listens, as far as this connection shows: no request ever goes there.
    /// Over a local socket that is its port on every address of this machine.
    package var serverSockets: [SocketAddress] {
        let (address, port) = server
        return [SocketAddress(address.flatMap { IPAddress($0) } ?? .v4(0), port: port)]
    }
}
