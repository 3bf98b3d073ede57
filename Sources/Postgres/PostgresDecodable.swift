// swift-format-ignore-file: AllPublicDeclarationsHaveDocumentation
// The conformances below say nothing that the protocol's own documentation does not.

/// A value that can be read from a result's text format.
public protocol PostgresDecodable {
    /// Reads the text, nil for NULL; the pointer is valid only during the call.
    init?(postgresText: UnsafeBufferPointer<UInt8>?)
}

extension Optional: PostgresDecodable where Wrapped: PostgresDecodable {
    public init?(postgresText text: UnsafeBufferPointer<UInt8>?) {
        guard let text = unsafe text else { self = .none; return }
        guard let value = unsafe Wrapped(postgresText: text) else { return nil }
        self = .some(value)
    }
}

extension Int64: PostgresDecodable {
    public init?(postgresText text: UnsafeBufferPointer<UInt8>?) {
        guard let text = unsafe text, let first = unsafe text.first else { return nil }
        let isNegative = first == UInt8(ascii: "-")
        var value: Int64 = 0
        for position in (isNegative ? 1 : 0)..<text.count {
            let byte = unsafe text[position]
            guard byte >= 48, byte <= 57 else { return nil }
            // Accumulated as a negative number, whose range is one larger.
            let (product, overflow) = value.multipliedReportingOverflow(by: 10)
            let (next, underflow) = product.subtractingReportingOverflow(Int64(byte - 48))
            if overflow || underflow { return nil }
            value = next
        }
        if isNegative { self = value } else if value == .min { return nil } else { self = -value }
    }
}

extension Int: PostgresDecodable {
    public init?(postgresText text: UnsafeBufferPointer<UInt8>?) {
        guard let value = unsafe Int64(postgresText: text) else { return nil }
        self = Int(value)
    }
}

extension Double: PostgresDecodable {
    public init?(postgresText text: UnsafeBufferPointer<UInt8>?) {
        guard let text = unsafe String(postgresText: text), let value = Double(text) else { return nil }
        self = value
    }
}

extension Bool: PostgresDecodable {
    public init?(postgresText text: UnsafeBufferPointer<UInt8>?) {
        guard let first = unsafe text?.first else { return nil }
        self = first == UInt8(ascii: "t")
    }
}

extension String: PostgresDecodable {
    public init?(postgresText text: UnsafeBufferPointer<UInt8>?) {
        guard let text = unsafe text else { return nil }
        self = unsafe String(decoding: text, as: UTF8.self)
    }
}

extension UniqueID: PostgresDecodable {
    public init?(postgresText text: UnsafeBufferPointer<UInt8>?) {
        guard let text = unsafe text else { return nil }
        unsafe self.init(ascii: text)
    }
}

extension Timestamp: PostgresDecodable {
    public init?(postgresText text: UnsafeBufferPointer<UInt8>?) {
        guard let text = unsafe text else { return nil }
        unsafe self.init(iso: text)
    }
}

extension JSONText: PostgresDecodable {
    public init?(postgresText text: UnsafeBufferPointer<UInt8>?) {
        guard let text = unsafe text else { return nil }
        self.init(unsafe Array(text))
    }
}

extension Bytes: PostgresDecodable {
    public init?(postgresText text: UnsafeBufferPointer<UInt8>?) {
        guard let text = unsafe text, text.count >= 2, text.count.isMultiple(of: 2) else { return nil }
        var bytes: [UInt8] = []
        bytes.reserveCapacity(text.count / 2)
        for position in stride(from: 2, to: text.count, by: 2) {
            guard let high = unsafe hexadecimalValue(text[position]),
                let low = unsafe hexadecimalValue(text[position + 1])
            else { return nil }
            bytes.append(high << 4 | low)
        }
        self.init(bytes)
    }
}

extension Array: PostgresDecodable where Element: PostgresDecodable {
    /// Reads a one-dimensional array literal.
    public init?(postgresText text: UnsafeBufferPointer<UInt8>?) {
        guard let text = unsafe text, unsafe text.first == UInt8(ascii: "{"), unsafe text.last == UInt8(ascii: "}")
        else { return nil }
        var elements: [Element] = []
        var current: [UInt8] = []
        var wasQuoted = false
        var isQuoted = false
        var isEscaped = false
        func finish() -> Bool {
            let isNull = !wasQuoted && current == [UInt8]("NULL".utf8)
            let element = unsafe current.withUnsafeBufferPointer { unsafe Element(postgresText: isNull ? nil : $0) }
            guard let element else { return false }
            elements.append(element)
            current = []
            wasQuoted = false
            return true
        }
        let inner = unsafe text.dropFirst().dropLast()
        for position in unsafe inner.indices {
            let byte = unsafe inner[position]
            if isEscaped {
                current.append(byte)
                isEscaped = false
            } else if byte == UInt8(ascii: "\\") {
                isEscaped = true
            } else if byte == UInt8(ascii: "\"") {
                isQuoted.toggle()
                wasQuoted = true
            } else if byte == UInt8(ascii: ","), !isQuoted {
                guard finish() else { return nil }
            } else {
                current.append(byte)
            }
        }
        if unsafe !inner.isEmpty { guard finish() else { return nil } }
        self = elements
    }
}
