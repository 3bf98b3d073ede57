import CPostgres

/// The response to one statement. It owns libpq's result and frees it; values are copied out while
/// it lives.
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

    /// The object identifiers of the columns' types, in order.
    package var types: [UInt32] {
        (0..<(unsafe PQnfields(result))).map { unsafe UInt32(PQftype(result, $0)) }
    }

    /// Reads every row with the closure, in order.
    public func map<Value>(_ read: (Row) throws(PostgresError) -> Value) throws(PostgresError) -> [Value] {
        var values: [Value] = []
        values.reserveCapacity(count)
        for index in 0..<count { values.append(try read(row(index))) }
        return values
    }

    /// Every row's columns, in order, as these types: `all(EventID.self, Timestamp?.self)`.
    public func all<each Value: PostgresDecodable>(
        _ types: repeat (each Value).Type
    ) throws(PostgresError) -> [(repeat each Value)] {
        var values: [(repeat each Value)] = []
        values.reserveCapacity(count)
        for index in 0..<count { values.append(try row(index).columns(repeat each types)) }
        return values
    }

    /// Every row, as a type that reads one.
    public func all<Value: RowDecodable>(as type: Value.Type) throws(PostgresError) -> [Value] {
        var values: [Value] = []
        values.reserveCapacity(count)
        for index in 0..<count { values.append(try Value(row(index))) }
        return values
    }

    /// The first row's columns; nil when there is none.
    public func first<each Value: PostgresDecodable>(
        _ types: repeat (each Value).Type
    ) throws(PostgresError) -> (repeat each Value)? {
        count > 0 ? Optional.some(try row(0).columns(repeat each types)) : nil
    }

    /// The first row's columns, of a statement that always returns one.
    ///
    /// Throws a `PostgresError` of kind value when there is none.
    public func one<each Value: PostgresDecodable>(
        _ types: repeat (each Value).Type
    ) throws(PostgresError) -> (repeat each Value) {
        guard count > 0 else {
            throw PostgresError(.value, step: .decode, message: "the statement returned no row")
        }
        return try row(0).columns(repeat each types)
    }

    private func row(_ index: Int) -> Row { unsafe Row(result: result, index: Int32(index)) }

    /// Reads the first row with the closure; nil when there is none.
    public func first<Value>(_ read: (Row) throws(PostgresError) -> Value) throws(PostgresError) -> Value? {
        guard count > 0 else { return nil }
        return try read(row(0))
    }
}

/// A value that is read from a row of a statement with the columns that it names.
public protocol RowDecodable {
    /// Reads the row.
    init(_ row: Row) throws(PostgresError)
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
                    message: "column \(unsafe String(cString: PQfname(result, place))) is not of type \(Value.self)")
            }
            return value
        }
    }

    /// The value of the column of this name, as the type that the caller asks for.
    ///
    /// Throws a `PostgresError` of kind value when there is none, or it is of another type.
    public subscript<Value: PostgresDecodable>(_ name: StaticString) -> Value {
        get throws(PostgresError) {
            let place = name.withUTF8Buffer { bytes in
                unsafe bytes.withMemoryRebound(to: CChar.self) { unsafe PQfnumber(result, $0.baseAddress) }
            }
            guard place >= 0 else {
                throw PostgresError(.value, step: .decode, message: "there is no column \(name)")
            }
            return try self[Int(place)]
        }
    }

    /// The first columns, as these types.
    fileprivate func columns<each Value: PostgresDecodable>(
        _ types: repeat (each Value).Type
    ) throws(PostgresError) -> (repeat each Value) {
        var place = -1
        return (repeat try value(after: &place, each types))
    }

    private func value<Value: PostgresDecodable>(
        after place: inout Int, _ type: Value.Type
    ) throws(PostgresError) -> Value {
        place += 1
        return try self[place]
    }

    private func bytes(_ column: Int32) -> UnsafeRawBufferPointer? {
        if unsafe PQgetisnull(result, index, column) == 1 { return nil }
        guard let start = unsafe PQgetvalue(result, index, column) else { return nil }
        return unsafe UnsafeRawBufferPointer(start: start, count: Int(PQgetlength(result, index, column)))
    }
}
