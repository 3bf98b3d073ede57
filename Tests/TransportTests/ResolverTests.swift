import Bytewise
import Receiver
import Synchronization
import TestSupport
import Testing
import Threads

@testable import Transport

/// Names: asked for once, by turns, and kept while nobody says anything else.
@Suite(.timeLimit(.minutes(15))) struct ResolverTests {
    /// A name server that answers when it is let, and says what it was asked.
    private final class Names: Sendable {
        private let state = Mutex<(asked: [String], answers: [String: Resolver.Outcome])>(([], [:]))
        let isSilent = Flag(false)

        var asked: [String] { state.withLock(\.asked) }

        func say(_ name: String, _ outcome: Resolver.Outcome) { state.withLock { $0.answers[name] = outcome } }

        func answer(_ name: String) -> Resolver.Outcome {
            state.withLock { $0.asked.append(name) }
            if name.hasPrefix("dead") { isSilent.waitUntilCleared() }
            return state.withLock { $0.answers[name] } ?? .failure(Resolver.Failure(text: "no \(name)"))
        }
    }

    private static let one = IPAddress.v4(0x5DB8_D822)

    private func resolve(_ resolver: Resolver, _ name: String, for party: String) async -> Resolver.Outcome {
        await withCheckedContinuation { continuation in
            resolver.resolve(ExactText(name), for: ExactText(party)) { continuation.resume(returning: $0) }
        }
    }

    @Test func `a name is asked for once, however many wait for it, and then kept`() async {
        let names = Names()
        let now = ContinuousClock.now
        names.say("dead.example", .addresses([Self.one]))
        names.isSilent.isSet = true
        let resolver = Resolver { names.answer($0) }
        let answers = Mutex<[Resolver.Outcome]>([])
        for _ in 1...5 {
            resolver.resolve("dead.example", for: "a") { outcome in answers.withLock { $0.append(outcome) } }
        }
        #expect(await eventually { names.asked.count == 1 })
        #expect(resolver.known("dead.example", for: "a") == nil)
        names.isSilent.isSet = false
        #expect(await eventually { answers.withLock(\.count) == 5 })
        #expect(names.asked == ["dead.example"])
        #expect(resolver.known("dead.example", for: "a", at: now) == .addresses([Self.one]))
        // Another spelling is another name.
        #expect(resolver.known("Dead.example", for: "a", at: now) == nil)
        resolver.stop()
    }

    @Test func `old addresses are used while asking again takes time, and after it failed`() async {
        let names = Names()
        names.say("x.example", .addresses([Self.one]))
        let resolver = Resolver { names.answer($0) }
        #expect(await resolve(resolver, "x.example", for: "a") == .addresses([Self.one]))
        names.say("x.example", .failure(Resolver.Failure(text: "gone")))
        let later = ContinuousClock.now + Resolver.fresh
        #expect(resolver.known("x.example", for: "a", at: later) == .addresses([Self.one]))
        #expect(await eventually { names.asked.count == 2 })
        #expect(resolver.known("x.example", for: "a", at: later) == .addresses([Self.one]))
        // Not for ever.
        #expect(resolver.known("x.example", for: "a", at: .now + Resolver.stale + Resolver.failed) == nil)
        resolver.stop()
    }

    @Test func `addresses of long ago are used only when asking again fails or takes long`() async {
        let names = Names()
        names.say("dead.example", .addresses([Self.one]))
        let resolver = Resolver { names.answer($0) }
        #expect(await resolve(resolver, "dead.example", for: "a") == .addresses([Self.one]))
        let later = ContinuousClock.now + Resolver.fresh * 2
        #expect(resolver.known("dead.example", for: "a", at: later) == nil)
        #expect(names.asked.count == 1)
        // It takes long.
        names.isSilent.isSet = true
        let found = Mutex<Resolver.Outcome?>(nil)
        resolver.resolve("dead.example", for: "a") { outcome in found.withLock { $0 = outcome } }
        #expect(await eventually { names.asked.count == 2 })
        #expect(resolver.fallBack("dead.example", at: later) == [Self.one])
        #expect(resolver.known("dead.example", for: "a", at: later) == .addresses([Self.one]))
        // It fails.
        names.say("dead.example", .failure(Resolver.Failure(text: "no answer")))
        names.isSilent.isSet = false
        #expect(await eventually { found.withLock(\.self) == .addresses([Self.one]) })
        // The name is gone.
        let gone = Resolver.Outcome.failure(Resolver.Failure(text: "no such name", isFinal: true))
        names.say("dead.example", gone)
        let before = ContinuousClock.now
        #expect(await resolve(resolver, "dead.example", for: "a") == gone)
        #expect(resolver.known("dead.example", for: "a", at: before) == gone)
        #expect(resolver.fallBack("dead.example") == nil)
        resolver.stop()
    }

    @Test func `a name that waits for one party's turn is looked up when it is another's`() async {
        let names = Names()
        names.say("shared.example", .addresses([Self.one]))
        names.isSilent.isSet = true
        let resolver = Resolver(threads: 4) { names.answer($0) }
        for number in 1...2 { resolver.resolve(ExactText("dead\(number).example"), for: "a") { _ in } }
        #expect(await eventually { names.asked.count == 2 })
        let found = Mutex(0)
        resolver.resolve("shared.example", for: "a") { _ in found.withLock { $0 += 1 } }
        #expect(await resolve(resolver, "shared.example", for: "b") == .addresses([Self.one]))
        #expect(await eventually { found.withLock(\.self) == 1 })
        names.isSilent.isSet = false
        // The first party's own question has its answer already.
        #expect(await resolve(resolver, "shared.example", for: "a") == .addresses([Self.one]))
        #expect(names.asked.filter { $0 == "shared.example" }.count <= 2)
        resolver.stop()
    }

    @Test func `a name that does not resolve is left alone for a moment`() async {
        let names = Names()
        let resolver = Resolver { names.answer($0) }
        let failure = Resolver.Outcome.failure(Resolver.Failure(text: "no x.example"))
        let before = ContinuousClock.now
        #expect(await resolve(resolver, "x.example", for: "a") == failure)
        #expect(resolver.known("x.example", for: "a", at: before) == failure)
        #expect(resolver.known("x.example", for: "a", at: .now + Resolver.failed) == nil)
        #expect(names.asked.count == 1)
        resolver.stop()
    }

    @Test func `two hundred names that never resolve take half of the threads, and another party's name is found`()
        async
    {
        let names = Names()
        names.say("good.example", .addresses([Self.one]))
        names.isSilent.isSet = true
        let resolver = Resolver(threads: 4) { names.answer($0) }
        let failed = Mutex(0)
        for number in 1...200 {
            resolver.resolve(ExactText("dead\(number).example"), for: "a") { _ in failed.withLock { $0 += 1 } }
        }
        #expect(await eventually { names.asked.count == 2 })
        #expect(await resolve(resolver, "good.example", for: "b") == .addresses([Self.one]))
        #expect(names.asked.filter { $0.hasPrefix("dead") }.count == 2)
        #expect(failed.withLock(\.self) == 0)
        names.isSilent.isSet = false
        #expect(await eventually { failed.withLock(\.self) == 200 })
        resolver.stop()
    }

    /// A transport whose names are those of the test.
    private func transport(
        _ names: Names, allowing networks: [String] = ["127.0.0.0/8"], fresh: Duration = Resolver.fresh
    ) throws -> Transport {
        try Transport(
            policy: AddressPolicy(allowing: networks.compactMap(Network.init), own: { [] }), proxy: nil, capacity: 8,
            resolver: Resolver(fresh: fresh) { names.answer($0) })
    }

    @Test func `a request goes to the address that the name has, and the header keeps the name`() async throws {
        let names = Names()
        names.say("receiver.example", .addresses([IPAddress.v4(0x7F00_0001)]))
        let receiver = try Receiver { _ in Receiver.Response() }
        let transport = try transport(names)
        for _ in 1...3 {
            let exchange = await transport.send(HTTPRequest(url: "http://receiver.example:\(receiver.port)/"))
            #expect(exchange.status == 200, "\(exchange.message ?? "")")
        }
        #expect(names.asked == ["receiver.example"])
        await transport.stop()
        receiver.stop()
    }

    @Test func `a name that means this machine is asked of nobody`() async throws {
        let names = Names()
        let receiver = try Receiver { _ in Receiver.Response() }
        let transport = try transport(names, allowing: ["127.0.0.0/8", "::1/128"])
        let exchange = await transport.send(HTTPRequest(url: "http://n1.localhost:\(receiver.port)/"))
        #expect(exchange.status == 200, "\(exchange.message ?? "")")
        #expect(names.asked == [])
        await transport.stop()
        receiver.stop()
    }

    @Test func `a name with a public and a private address is refused whole, and nothing is connected`() async throws {
        let names = Names()
        names.say("mixed.example", .addresses([Self.one, IPAddress.v4(0x0A00_0001)]))
        let transport = try transport(names)
        let exchange = await transport.send(HTTPRequest(url: "http://mixed.example/"))
        #expect(exchange.failure == .blockedAddress && !exchange.mayHaveBeenSent)
        await transport.stop()
    }

    @Test func `a request goes to the old address when the name servers are silent`() async throws {
        let names = Names()
        names.say("dead.example", .addresses([IPAddress.v4(0x7F00_0001)]))
        let receiver = try Receiver { _ in Receiver.Response() }
        // Every request finds the addresses too old.
        let transport = try transport(names, fresh: .nanoseconds(1))
        for isSilent in [false, true] {
            names.isSilent.isSet = isSilent
            let exchange = await transport.send(
                HTTPRequest(
                    url: "http://dead.example:\(receiver.port)/", timeout: .seconds(120), connectTimeout: .seconds(60)))
            #expect(exchange.status == 200, "\(exchange.message ?? "")")
        }
        #expect(names.asked.count == 2)
        names.isSilent.isSet = false
        await transport.stop()
        receiver.stop()
    }

    @Test func `a request waits for a name no longer than for a connection`() async throws {
        let names = Names()
        names.isSilent.isSet = true
        let transport = try transport(names)
        let exchange = await transport.send(
            HTTPRequest(url: "http://dead.example/", connectTimeout: .milliseconds(200)))
        #expect(exchange.failure == .dns && exchange.message?.contains("200 ms") == true)
        names.isSilent.isSet = false
        await transport.stop()
    }
}
