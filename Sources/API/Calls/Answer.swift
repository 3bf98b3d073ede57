/// What a caller gets: a status, header fields in order, and a body.
struct Answer: Sendable {
    var status = 200
    var headers: [(name: String, value: String)] = []
    var body: [UInt8] = []

    /// A JSON document.
    static func json(_ body: some Sequence<UInt8>, status: Int = 200) -> Answer {
        Answer(status: status, headers: [("Content-Type", "application/json")], body: Array(body))
    }

    /// Nothing, which is what was asked for.
    static let empty = Answer(status: 204)

    func with(_ name: String, _ value: String) -> Answer {
        var answer = self
        answer.headers.append((name, value))
        return answer
    }
}
