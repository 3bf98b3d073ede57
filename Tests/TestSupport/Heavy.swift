package import Testing

/// A test that takes a processor for itself, or measures what a busy machine would not show: a few
/// of them run at a time, beside everything else.
package struct Heavy: TestTrait, TestScoping {
    private static let places = Gate(2)

    package func provideScope(
        for test: Test, testCase: Test.Case?, performing function: @concurrent @Sendable () async throws -> Void
    ) async throws {
        try await Self.places.pass { try await function() }
    }
}

extension Trait where Self == Heavy {
    /// One of the few that run at a time.
    package static var heavy: Heavy { Heavy() }
}
