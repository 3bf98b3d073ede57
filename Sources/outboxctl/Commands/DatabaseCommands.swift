import ArgumentParser
import Foundation
import Outbox
import OutboxSchema
import Postgres

struct DatabaseCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "db", abstract: "The schema: where it stands, and moving it forward.",
        subcommands: [Status.self, Plan.self, Migrate.self, Validate.self, Rebase.self, SQLCommand.self])

    struct Status: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Show which migrations are applied.")
        @OptionGroup var options: GlobalOptions

        func run() async throws {
            let status = try await Session.run(options, checkingSchema: false) { try Migrator.status(&$0) }
            let applied = status.applied.map { row in
                "{\"version\":\(row.version),\"name\":\(jsonString(row.name)),\"applied_at\":\(jsonString(row.appliedAt.description))}"
            }
            var text = "schema version \(status.version), this binary needs \(Migrator.expectedVersion)"
            for row in status.applied { text += "\n  \(row.version)  \(row.name)  \(row.appliedAt)" }
            for migration in status.pending { text += "\n  \(migration.version)  \(migration.name)  pending" }
            for row in status.drifted { text += "\n  \(row.version)  \(row.name)  differs from this binary's" }
            options.format.fact(
                [
                    ("schema_version", "\(status.version)"), ("schema_version_expected", "\(Migrator.expectedVersion)"),
                    ("current", "\(status.isCurrent)"), ("applied", "[\(applied.joined(separator: ","))]"),
                    ("pending", "[\(status.pending.map { jsonString($0.name) }.joined(separator: ","))]"),
                    ("drifted", "[\(status.drifted.map { jsonString($0.name) }.joined(separator: ","))]"),
                ], text: text)
        }
    }

    struct Plan: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Show what migrate would do; change nothing.")
        @OptionGroup var options: GlobalOptions
        @Flag(name: .long, help: "Show the SQL, too.") var showSql = false

        func run() async throws {
            let status = try await Session.run(options, checkingSchema: false) { try Migrator.status(&$0) }
            if status.version > Migrator.expectedVersion { throw Migrator.SchemaError.newer(found: status.version) }
            var text =
                status.pending.isEmpty
                ? "nothing to do: the schema is at version \(status.version)" : "would apply, in one transaction:"
            for migration in status.pending {
                text += "\n  \(migration.version)  \(migration.name)"
                if showSql { text += "\n\(migration.text)" }
            }
            let pending = status.pending.map { "{\"version\":\($0.version),\"name\":\(jsonString($0.name))}" }
            options.format.fact(
                [("schema_version", "\(status.version)"), ("pending", "[\(pending.joined(separator: ","))]")],
                text: text)
        }
    }

    struct Migrate: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Bring the schema up to date, in one transaction.")
        @OptionGroup var options: GlobalOptions
        @Option(name: .long, help: "How long to wait for locks and for another migration; 30s.") var lockTimeout:
            DurationArgument?
        @Flag(name: .shortAndLong, help: "Only say what would be applied.") var dryRun = false

        func run() async throws {
            if dryRun {
                var plan = Plan()
                plan.options = options
                return try await plan.run()
            }
            let limit = lockTimeout?.duration ?? .seconds(30)
            // The embedded cluster migrates when it is opened; then there is nothing left to do
            // here.
            let applied = try await Session.run(options, checkingSchema: false) {
                try Migrator.migrate(&$0, lockTimeout: limit)
            }
            let text =
                applied.isEmpty
                ? "nothing to do: the schema is at version \(Migrator.expectedVersion)"
                : "applied \(applied.map(\.name).joined(separator: ", ")); the schema is at version \(Migrator.expectedVersion)"
            options.format.fact(
                [
                    ("schema_version", "\(Migrator.expectedVersion)"),
                    ("applied", "[\(applied.map { jsonString($0.name) }.joined(separator: ","))]"),
                ], text: text)
        }
    }

    struct Validate: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Exit 0 when the schema fits this binary, 1 when not.")
        @OptionGroup var options: GlobalOptions

        func run() async throws {
            do {
                try await Session.run(options) { _ in }
            } catch let error as Migrator.SchemaError {
                throw Answer(message: error.description)
            }
            options.format.fact(
                [("schema_version", "\(Migrator.expectedVersion)"), ("valid", "true")],
                text: "the schema is at version \(Migrator.expectedVersion) and fits")
        }
    }

    struct Rebase: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Make a copy of a database a home, from which events are delivered.",
            discussion: """
                Nothing is sent from a restored dump, nor from a copy made with CREATE DATABASE ... TEMPLATE: the original does \
                that already. To let it take the original's place, stop producers and workers and run this. What had not been \
                dispatched when the copy was made is delivered; what had been is not repeated. One transaction; its time follows \
                the number of events that are kept. For a copy that works beside its original, such as a staging system, give it \
                an instance of its own and disable its endpoints first of all.
                """)
        @OptionGroup var options: GlobalOptions
        @Flag(name: .long, help: "Give the copy a name of its own: its webhook-ids are other ones than the original's.")
        var newInstance = false
        @Flag(name: .long, help: "Disable every endpoint: nothing is sent until an operator enables one.")
        var disableEndpoints = false

        func run() async throws {
            do {
                let (requeued, instance) = try await Session.run(options) {
                    [newInstance, disableEndpoints] connection in
                    (
                        try connection.rebase(isNewInstance: newInstance, disablesEndpoints: disableEndpoints),
                        try connection.instance()
                    )
                }
                options.format.fact(
                    [("rebased", "true"), ("events_requeued", "\(requeued)"), ("instance", jsonString(instance))],
                    text: "rebased as instance \(instance); \(requeued) events that had not been dispatched will be"
                        + (newInstance ? ". Restart workers that are connected, and set OUTBOX_INSTANCE to it" : ""))
            } catch let error as PostgresError where error.sqlState == "OB012" {
                options.format.fact(
                    [("rebased", "false"), ("events_requeued", "0")],
                    text: "nothing to do: this database is at home, and no copy that could be told from it")
            }
        }
    }

    struct SQLCommand: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "sql", abstract: "Print the migrations for another tool.")
        @Option(name: .long, help: "Only this migration.") var version: Int?

        func validate() throws {
            if let version, !(1...Migrator.expectedVersion).contains(version) {
                throw ValidationError(
                    "there is no version \(version); this binary has 1 to \(Migrator.expectedVersion)")
            }
        }

        func run() {
            // One transaction, as migrate has it: what is set in it ends with it.
            print("BEGIN;")
            for migration in Migration.all where version == nil || version == migration.version {
                print("-- \(migration.version) \(migration.name)\n\(migration.text)")
            }
            print("COMMIT;")
        }
    }
}
