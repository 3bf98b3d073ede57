// swift-tools-version: 6.2
import PackageDescription

let common: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("NonisolatedNonsendingByDefault"),
]
/// The two targets that wrap a C library: every unsafe expression in them says so.
let wrapsC: [SwiftSetting] = common + [.strictMemorySafety()]
/// Fail points exist in debug builds only; the crash tests need them, a release has none.
let withFailPoints: [SwiftSetting] = common + [.define("FAIL_POINTS", .when(configuration: .debug))]

let crypto: Target.Dependency = .product(name: "Crypto", package: "swift-crypto")
let deque: Target.Dependency = .product(name: "DequeModule", package: "swift-collections")
let logging: Target.Dependency = .product(name: "Logging", package: "swift-log")
let metrics: Target.Dependency = .product(name: "Metrics", package: "swift-metrics")
let metricsTestKit: Target.Dependency = .product(name: "MetricsTestKit", package: "swift-metrics")
let lifecycle: Target.Dependency = .product(name: "ServiceLifecycle", package: "swift-service-lifecycle")
let signals: Target.Dependency = .product(name: "UnixSignals", package: "swift-service-lifecycle")
let histogram: Target.Dependency = .product(name: "Histogram", package: "hdrhistogram-swift")
let configuration: Target.Dependency = .product(name: "Configuration", package: "swift-configuration")
let yaml: Target.Dependency = .product(name: "Yams", package: "Yams")
let hummingbird: Target.Dependency = .product(name: "Hummingbird", package: "hummingbird")
let httpTypes: Target.Dependency = .product(name: "HTTPTypes", package: "swift-http-types")
let nio: [Target.Dependency] = [
    .product(name: "NIOCore", package: "swift-nio"), .product(name: "NIOHTTP1", package: "swift-nio"),
    .product(name: "NIOPosix", package: "swift-nio"), .product(name: "NIOHTTPTypes", package: "swift-nio-extras"),
    .product(name: "NIOHTTPTypesHTTP1", package: "swift-nio-extras"),
]
let arguments: Target.Dependency = .product(name: "ArgumentParser", package: "swift-argument-parser")

let package = Package(
    name: "outbox",
    products: [
        .library(name: "Outbox", targets: ["Outbox", "Postgres"]),
        .library(name: "OutboxPublishing", targets: ["OutboxPublishing"]),
        .library(name: "StandardWebhooks", targets: ["StandardWebhooks"]),
        .executable(name: "outboxctl", targets: ["outboxctl"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
        .package(url: "https://github.com/apple/swift-collections", from: "1.6.0"),
        .package(url: "https://github.com/apple/swift-configuration", from: "1.4.0", traits: []),
        .package(url: "https://github.com/jpsim/Yams", from: "6.2.0"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.0"),
        .package(url: "https://github.com/apple/swift-metrics", from: "2.5.0"),
        .package(url: "https://github.com/apple/swift-crypto", from: "4.5.0"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
        .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.0", traits: []),
        .package(url: "https://github.com/apple/swift-http-types", from: "1.8.0"),
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.0"),
        .package(url: "https://github.com/apple/swift-nio-extras", from: "1.35.0"),
        .package(url: "https://github.com/HdrHistogram/hdrhistogram-swift", from: "0.2.0"),
    ],
    targets: [
        .systemLibrary(name: "CPostgres", pkgConfig: "libpq", providers: [.apt(["libpq-dev"])]),
        .systemLibrary(name: "CCurl", pkgConfig: "libcurl", providers: [.apt(["libcurl4-openssl-dev"])]),
        .systemLibrary(name: "COpenSSL", pkgConfig: "openssl", providers: [.apt(["libssl-dev"])]),
        .systemLibrary(name: "CEpoll"),
        .target(name: "Bytewise", swiftSettings: common),
        .target(name: "OutboxPublishing", swiftSettings: common),
        .target(name: "StandardWebhooks", dependencies: ["Bytewise", crypto], swiftSettings: common),
        .target(name: "Threads", dependencies: ["Bytewise", deque], swiftSettings: wrapsC),
        .target(name: "Postgres", dependencies: ["CPostgres", "Threads"], swiftSettings: wrapsC),
        .target(
            name: "Transport", dependencies: ["CCurl", "COpenSSL", "Bytewise", "Threads", deque], swiftSettings: wrapsC),
        .target(name: "Templates", dependencies: ["Bytewise"], swiftSettings: common),
        .target(
            name: "OutboxSchema", path: "sql", exclude: ["catalogue.txt"],
            resources: [.embedInCode("migrations")], swiftSettings: common),
        .target(
            name: "Outbox",
            dependencies: [
                "Bytewise", "OutboxPublishing", "Postgres", "StandardWebhooks", "Transport", "Templates",
                "OutboxSchema",
                crypto,
            ],
            swiftSettings: common),
        .target(
            name: "Scheduler",
            dependencies: [
                "Bytewise", "Outbox", "Postgres", "Templates", "Transport", deque, logging, lifecycle, metrics,
            ],
            swiftSettings: withFailPoints),
        .target(name: "EmbeddedPostgres", dependencies: ["Postgres"], swiftSettings: common),
        .target(name: "Receiver", dependencies: ["Threads"], swiftSettings: common),
        .target(
            name: "Bench",
            dependencies: [
                "Outbox", "Postgres", "StandardWebhooks", "Transport", "Threads", "CEpoll", histogram,
            ],
            swiftSettings: common),
        .target(
            name: "Operator",
            dependencies: [
                "Outbox", "OutboxPublishing", "Postgres", "Scheduler", "StandardWebhooks", "Templates", "Transport",
            ],
            swiftSettings: common),
        .target(
            name: "API",
            dependencies: [
                "Bytewise", "Operator", "Outbox", "OutboxPublishing", "Postgres", "StandardWebhooks", "Templates",
                "Transport", crypto, hummingbird, httpTypes, lifecycle, logging,
            ] + nio,
            swiftSettings: common),
        .executableTarget(
            name: "outboxctl",
            dependencies: [
                "API", "Outbox", "OutboxPublishing", "Operator", "Scheduler", "Postgres", "Transport", "Threads",
                "EmbeddedPostgres", "Receiver",
                "Bench",
                "OutboxSchema", "StandardWebhooks", "Templates", "Bytewise", arguments, configuration, logging,
                lifecycle, signals, yaml,
            ],
            swiftSettings: common),
        .target(
            name: "TestSupport",
            dependencies: [
                "Bytewise", "Postgres", "StandardWebhooks", "Outbox", "Scheduler", "EmbeddedPostgres", "Receiver",
                "Transport", "Threads",
                lifecycle,
                logging,
            ],
            path: "Tests/TestSupport", swiftSettings: common),
        .testTarget(name: "PostgresTests", dependencies: ["Postgres", "TestSupport"], swiftSettings: common),
        .testTarget(
            name: "TransportTests",
            dependencies: ["Bytewise", "CCurl", "Transport", "Receiver", "TestSupport", "Threads"],
            swiftSettings: common),
        .testTarget(name: "TemplatesTests", dependencies: ["Bytewise", "Templates"], swiftSettings: common),
        .testTarget(
            name: "ConformanceTests",
            dependencies: [
                "Bytewise", "outboxctl", "Outbox", "Postgres", "StandardWebhooks", "Receiver", "Scheduler", "Templates",
                "TestSupport",
                "Transport",
            ],
            swiftSettings: common),
        .testTarget(
            name: "OutboxTests",
            dependencies: [
                "Bytewise", "Outbox", "OutboxPublishing", "OutboxSchema", "Postgres", "StandardWebhooks", "Templates",
                "TestSupport",
                "Transport", crypto,
            ],
            swiftSettings: common),
        .testTarget(
            name: "SchedulerTests",
            dependencies: [
                "Bytewise", "Scheduler", "Outbox", "Postgres", "StandardWebhooks", "Transport", "Receiver",
                "TestSupport", "Threads", logging, metrics, metricsTestKit,
            ],
            swiftSettings: withFailPoints),
        .testTarget(
            name: "OperatorTests",
            dependencies: [
                "Operator", "Outbox", "OutboxPublishing", "Postgres", "StandardWebhooks", "Receiver", "Scheduler",
                "TestSupport",
                "Transport",
            ],
            swiftSettings: common),
        .testTarget(
            name: "APITests",
            dependencies: ["API", "Operator", "Outbox", "Postgres", "TestSupport", "Transport", lifecycle, logging]
                + nio,
            swiftSettings: common),
        .testTarget(
            name: "CommandTests",
            dependencies: [
                "outboxctl", "EmbeddedPostgres", "Outbox", "OutboxPublishing", "Postgres", "StandardWebhooks",
                "Receiver", "Scheduler",
                "TestSupport",
            ],
            swiftSettings: common),
    ]
)

// Only for scripts/fuzz: libFuzzer brings the main function that every other build would miss.
if Context.environment["OUTBOX_FUZZ"] != nil {
    package.products.append(.executable(name: "fuzz", targets: ["fuzz"]))
    package.targets.append(
        .executableTarget(
            name: "fuzz", dependencies: ["Outbox", "Scheduler", "Templates", "Transport", "Postgres"],
            path: "Tests/Fuzz",
            exclude: ["seeds"],
            swiftSettings: [.swiftLanguageMode(.v6), .unsafeFlags(["-parse-as-library"])]))
}
