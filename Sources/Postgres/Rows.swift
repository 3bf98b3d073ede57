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
    /// Throws a `PostgresError` of kind value when the column is of another type.
    public subscript<Value: PostgresDecodable>(_ column: Int) -> Value {
        get throws(PostgresError) {
            let place = Int32(column)
            let type = unsafe PQfformat(result, place) == 0 ? PostgresType.text : UInt32(PQftype(result, place))
            guard Value.reads(type), let value = unsafe Value(postgresBytes: bytes(place)) else {
                throw PostgresError(
                    .value, step: .decode,
                    message: "column \(unsafe String(cString: PQfname(result, place))) is no \(Value.self)")
            }
            return value
        }
    }

    private func bytes(_ column: Int32) -> UnsafeRawBufferPointer? {
        if unsafe PQgetisnull(result, index, column) == 1 { return nil }
        guard let start = unsafe PQgetvalue(result, index, column) else { return nil }
        return unsafe UnsafeRawBufferPointer(start: start, count: Int(PQgetlength(result, index, column)))
    }
}
