import Outbox
import Postgres
import TestSupport
import Testing

/// One rule in two languages.
@Suite(.timeLimit(.minutes(15))) struct MaskingTests {
    @Test(arguments: [Trigger.first, .retry, .replay, .test, .evaluate])
    func `the database counts the attempts of deliveries that we count`(trigger: Trigger) async throws {
        let database = try await TestCluster.database()
        let isDelivery = try await database.column("SELECT outbox.is_delivery(\(trigger.rawValue))::text")
        #expect(isDelivery == ["\(trigger.isDelivery)"])
    }

    @Test func `the database masks what we mask`() async throws {
        let database = try await TestCluster.database()
        var urls = [
            "https://a.example/h", "https://a.example/h?", "https://a.example/h?t=s&&u", "https://a.example/?a=b=c&d#e",
            "https://a.example/?=x&y=",
        ]
        var generator = SystemRandomNumberGenerator()
        let pieces = ["?", "&", "=", "a", "token", "/", "é", "%3D", "#", " "]
        for _ in 0..<500 {
            urls.append(
                "https://a.example/"
                    + (0..<Int.random(in: 0...8, using: &generator)).map { _ in pieces.randomElement() ?? "" }.joined())
        }
        let names = [
            "X-Api-Key", "Authorization", "x-hub-SIGNATURE", "Accept", "X-Author", "Cookie2", "PassWord", "X-Trace",
            "Secretary",
        ]
        for url in urls {
            let masked = try await database.column("SELECT outbox.masked_url(\(url))")
            #expect(masked == [Masking.url(url)], "\(url)")
        }
        for name in names {
            let masked = try await database.column(
                "SELECT outbox.masked_headers(jsonb_build_array(jsonb_build_object('name', \(name)::text, 'value', 'v'))) -> 0 ->> 'value'"
            )
            #expect(masked == [Masking.soundsSecret(name) ? "***" : "v"], "\(name)")
        }
    }
}
