package import Postgres

/// The identity of the database server: its start time, by its clock. After a failover or a restore
/// it is another server, and the last writes to the previous server may be there or not.
package struct ServerStart: Hashable, Sendable {
    package let time: Timestamp

    package init(time: Timestamp) { self.time = time }
}
