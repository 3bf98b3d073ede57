import Foundation
import FoundationXML
import Glibc
import Outbox
import Postgres
import Scheduler
import Templates
import Transport

/// What libFuzzer calls with every input; `FUZZ_TARGET` says which of the properties is tried
/// (scripts/fuzz).
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzz(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    let bytes = Array(UnsafeBufferPointer(start: start, count: count))
    property(bytes)
    return 0
}

private let property: @Sendable ([UInt8]) -> Void = {
    switch ProcessInfo.processInfo.environment["FUZZ_TARGET"] {
    case "template": template
    case "header": header
    case "retry-after": retryAfter
    case "url": url
    default: fatalError("FUZZ_TARGET must be template, header, retry-after or url")
    }
}()

private struct Values: ParameterValues {
    let text: String
    func value(of parameter: Parameter) -> ParameterValue? {
        parameter.name == "after" ? ((try? JSON(text.utf8)).map { .json($0) }) : .text(text)
    }
}

/// A template that is accepted renders to what an independent reader accepts, whatever the values
/// are; or it is refused.
@Sendable private func template(_ bytes: [UInt8]) {
    guard let first = bytes.first else { return }
    let parts = bytes.dropFirst().split(separator: 0, maxSplits: 1, omittingEmptySubsequences: false)
    let text = String(decoding: parts.first ?? [], as: UTF8.self)
    let value = String(decoding: parts.count > 1 ? parts[1] : [], as: UTF8.self)
    let kind = [Template.Kind.json, .xml, .text, .header, .url][Int(first) % 5]
    guard let template = try? Template(text, kind: kind) else { return }
    guard let result = try? template.render(Values(text: value)) else { return }
    switch kind {
    case .json:
        // Numbers beyond a double are JSON, but not for everybody.
        if result.bytes.contains(UInt8(ascii: "e")) || result.bytes.contains(UInt8(ascii: "E")) { return }
        precondition(
            (try? JSONSerialization.jsonObject(with: Data(result.bytes), options: .fragmentsAllowed)) != nil,
            "rendered JSON is not JSON")
    case .xml: precondition(XMLParser(data: Data(result.bytes)).parse(), "rendered XML is not XML")
    case .header:
        if template.parameters.isEmpty { return }
        let constant = text.utf8.contains { $0 == 0x0D || $0 == 0x0A }
        precondition(constant || !result.bytes.contains { $0 == 0x0D || $0 == 0x0A }, "a line break came in")
    case .url:
        // Bytes, not characters: a combining mark after a percent sign makes one character of the
        // two.
        let before = text.utf8.prefix { $0 != UInt8(ascii: "%") }
        precondition(result.bytes.starts(with: before), "the beginning changed")
    case .text: break
    }
}

/// A header that is accepted is one line, and comes back out of the block as it went in.
@Sendable private func header(_ bytes: [UInt8]) {
    let parts = bytes.split(separator: 0, maxSplits: 1, omittingEmptySubsequences: false)
    let name = String(decoding: parts.first ?? [], as: UTF8.self)
    let value = String(decoding: parts.count > 1 ? parts[1] : [], as: UTF8.self)
    guard let header = try? HTTPHeader(name: name, value: value),
        let other = try? HTTPHeader(own: "X-Other", value: "other")
    else { return }
    let all = HTTPHeaders([header, other, header]).all
    precondition(all.map(\.name) == [name, "X-Other", name], "names changed")
    precondition(all.map(\.value) == [value, "other", value], "values changed")
    precondition(!(name + value).utf8.contains { $0 == 0x0D || $0 == 0x0A || $0 == 0 }, "a line break came through")
}

/// A wish is none, or not negative and at most a day.
@Sendable private func retryAfter(_ bytes: [UInt8]) {
    let text = String(decoding: bytes, as: UTF8.self)
    for now in [0, 784_111_777_000_000, 1_800_000_000_000_000] {
        guard let wish = RetryAfter.parse(text, now: Timestamp(microseconds: Int64(now))) else { continue }
        precondition(wish >= .zero && wish <= .seconds(86_400), "out of range: \(wish)")
    }
}

/// A URL that is accepted has an ASCII host; where the host is an address in any spelling that the
/// C library knows, a special one is refused.
@Sendable private func url(_ bytes: [UInt8]) {
    let text = String(decoding: bytes, as: UTF8.self)
    guard let target = try? TargetURL(text) else { return }
    precondition(target.host.utf8.allSatisfy { $0 > 0x20 && $0 < 0x7F }, "a host that is not ASCII")
    precondition((1...65535).contains(target.port), "no port")
    var address = in_addr()
    guard inet_aton(target.host, &address) == 1 else { return }
    let value = UInt32(bigEndian: address.s_addr)
    let isSpecial =
        [0, 10, 127].contains(value >> 24) || value >> 28 >= 14 || value >> 16 == 0xA9FE || value >> 16 == 0xC0A8
        || value >> 20 == 0xAC1 || value >> 22 == 0x191
    precondition(
        !isSpecial || AddressPolicy().refusal(of: target) != nil, "a special address got through: \(target.host)")
}
