/// One step of the schema's history: applied once, in order, never changed afterwards.
public struct Migration: Sendable {
    /// Counts from 1 without a gap.
    public let version: Int
    /// What it does, as in its file's name.
    public let name: String
    /// The SQL text.
    public let text: String

    private init(_ version: Int, _ name: String, _ bytes: [UInt8]) {
        self.version = version
        self.name = name
        text = String(decoding: bytes, as: UTF8.self)
    }

    /// All migrations of this binary in order. The files are compiled in, so that one binary is all that is installed.
    public static let all = [
        Migration(1, "tables", PackageResources.v0001_tables_sql),
        Migration(2, "publish", PackageResources.v0002_publish_sql),
        Migration(3, "cut", PackageResources.v0003_cut_sql),
        Migration(4, "matching", PackageResources.v0004_matching_sql),
        Migration(5, "order", PackageResources.v0005_order_sql),
        Migration(6, "partitions", PackageResources.v0006_partitions_sql),
        Migration(7, "endpoint_state", PackageResources.v0007_endpoint_state_sql),
        Migration(8, "views", PackageResources.v0008_views_sql),
        Migration(9, "roles", PackageResources.v0009_roles_sql),
    ]
}
