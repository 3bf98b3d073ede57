import CPostgres

/// The answer to one statement. It owns libpq's result and frees it; values are copied out while it lives.
@safe
public struct Rows: ~Copyable {
    private let result: OpaquePointer

    init(owning result: OpaquePointer) {
        unsafe self.result = result
    }

    deinit {
        unsafe PQclear(result)
    }

    /// How many rows came back.
    public var count: Int { Int(unsafe PQntuples(result)) }

    /// How many rows the statement inserted, updated or deleted.
    public var affected: Int { Int(unsafe String(cString: PQcmdTuples(result))) ?? 0 }

    /// The names of the columns, in order.
    public var columns: [String] {
        (0..<(unsafe PQnfields(result))).map { unsafe String(cString: PQfname(result, $0)) }
    }

    /// Reads every row with the closure, in order.
    public func map<Value>(_ read: (Row) throws(PostgresError) -> Value) throws(PostgresError) -> [Value] {
        var values: [Value] = []
        values.reserveCapacity(count)
        for index in 0..<count { values.append(try read(unsafe Row(result: result, index: Int32(index)))) }
        return values
    }

    /// Reads the first row with the closure; nil when there is none.
    public func first<Value>(_ read: (Row) throws(PostgresError) -> Value) throws(PostgresError) -> Value? {
        guard count > 0 else { return nil }
        return try read(unsafe Row(result: result, index: 0))
    }
}

/// One row, readable only inside the closure that it was handed to.
@safe
public struct Row {
    private let result: OpaquePointer
    private let index: Int32

    init(result: OpaquePointer, index: Int32) {
        unsafe self.result = result
        self.index = index
    }

    /// The value of the column at this place, as the type that the caller asks for.
    ///
    /// Throws a `PostgresError` of kind value when the text cannot be read as that type.
    public subscript<Value: PostgresDecodable>(_ column: Int) -> Value {
        get throws(PostgresError) {
            guard let value = unsafe Value(postgresText: text(column)) else {
                throw PostgresError(
                    .value, step: .decode,
                    message: "column \(unsafe String(cString: PQfname(result, Int32(column)))) is no \(Value.self)")
            }
            return value
        }
    }

    private func text(_ column: Int) -> UnsafeBufferPointer<UInt8>? {
        if unsafe PQgetisnull(result, index, Int32(column)) == 1 { return nil }
        guard let start = unsafe PQgetvalue(result, index, Int32(column)) else { return nil }
        let length = Int(unsafe PQgetlength(result, index, Int32(column)))
        return unsafe UnsafeBufferPointer(
            start: UnsafeRawPointer(start).assumingMemoryBound(to: UInt8.self), count: length)
    }
}
