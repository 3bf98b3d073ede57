import CPostgres

/// NUL-terminated strings in one allocation, with the array of pointers that C needs.
struct CStringArray {
    private var storage: [UInt8] = []
    private var offsets: [Int] = []

    init(_ values: [String]) {
        for value in values {
            offsets.append(storage.count)
            storage += value.utf8
            storage.append(0)
        }
    }

    /// Calls the body with the pointers followed by a null; they are valid only during the call.
    func withPointers<Value>(_ body: (UnsafePointer<UnsafePointer<CChar>?>) -> Value) -> Value {
        unsafe storage.withUnsafeBytes { bytes in
            let base = bytes.baseAddress
            var pointers = unsafe offsets.map { offset in
                unsafe base?.advanced(by: offset).assumingMemoryBound(to: CChar.self)
            }
            unsafe pointers.append(nil)
            return unsafe pointers.withUnsafeBufferPointer { buffer in
                guard let start = buffer.baseAddress else { preconditionFailure("the array is never empty") }
                return unsafe body(start)
            }
        }
    }
}

/// The parameters of a statement as libpq takes them: pointers, lengths and formats.
struct Parameters {
    private var storage: [UInt8] = []
    private var offsets: [Int?] = []
    private var lengths: [Int32] = []
    private let formats: [Int32]

    init(_ binds: [Bind]) {
        storage.reserveCapacity(binds.reduce(1) { $0 + ($1.bytes?.count ?? 0) })
        for bind in binds {
            offsets.append(bind.bytes == nil ? nil : storage.count)
            lengths.append(Int32(bind.bytes?.count ?? 0))
            if let bytes = bind.bytes { storage += bytes }
        }
        // An empty value still needs an address: a null pointer would be NULL.
        storage.append(0)
        formats = Array(repeating: 1, count: binds.count)
    }

    /// Calls the body with the three arrays; they are valid only during the call.
    func withPointers<Value>(
        _ body: (UnsafePointer<UnsafePointer<CChar>?>?, UnsafePointer<Int32>?, UnsafePointer<Int32>?) -> Value
    ) -> Value {
        unsafe storage.withUnsafeBytes { bytes in
            let base = bytes.baseAddress
            let pointers = unsafe offsets.map { offset in
                unsafe offset.flatMap { unsafe base?.advanced(by: $0).assumingMemoryBound(to: CChar.self) }
            }
            return unsafe pointers.withUnsafeBufferPointer { pointers in
                unsafe lengths.withUnsafeBufferPointer { lengths in
                    unsafe formats.withUnsafeBufferPointer { formats in
                        unsafe body(pointers.baseAddress, lengths.baseAddress, formats.baseAddress)
                    }
                }
            }
        }
    }
}
