import CCurl
import Threads

/// The minimum cost of sending with libcurl: the same request again and again, without checks,
/// records or a database. A benchmark compares the service with it.
package enum RawLoop {
    /// Sends a number of POST requests, a number of them at a time, and returns how long that took
    /// and how many did not get a 2xx. Runs on its own thread.
    package static func run(
        url: String, headers: HTTPHeaders, body: [UInt8], requests: Int, inFlight: Int
    ) async throws -> (time: Duration, failures: Int) {
        try await withCheckedThrowingContinuation { continuation in
            do {
                try Thread("raw loop") {
                    continuation.resume(
                        returning: send(url: url, headers: headers, body: body, requests: requests, inFlight: inFlight))
                }
            } catch { continuation.resume(throwing: error) }
        }
    }

    private static func send(
        url: String, headers: HTTPHeaders, body: [UInt8], requests: Int, inFlight: Int
    ) -> (time: Duration, failures: Int) {
        Transport.initializeLibrary()
        guard let multi = unsafe curl_multi_init() else { return (.zero, requests) }
        defer { unsafe curl_multi_cleanup(multi) }
        unsafe curl_multi_set_long(multi, CURLMOPT_MAXCONNECTS, inFlight)
        let list = HeaderList()

        return unsafe body.withUnsafeBytes { bytes in
            var handles: [UnsafeMutableRawPointer] = unsafe []
            defer { for index in unsafe handles.indices { unsafe curl_easy_cleanup(handles[index]) } }
            let started = ContinuousClock.now
            var (begun, ended, failures) = (0, 0, 0)
            while begun < min(inFlight, requests), let handle = unsafe curl_easy_init() {
                unsafe handles.append(handle)
                unsafe curl_set_string(handle, CURLOPT_URL, url)
                unsafe curl_set_string(handle, CURLOPT_PROXY, "")
                unsafe curl_set_long(handle, CURLOPT_NOSIGNAL, 1)
                unsafe curl_set_long(handle, CURLOPT_TIMEOUT_MS, 30_000)
                unsafe curl_set_list(handle, CURLOPT_HTTPHEADER, list.load(headers))
                unsafe curl_set_long(handle, CURLOPT_POST, 1)
                unsafe curl_set_offset(handle, CURLOPT_POSTFIELDSIZE_LARGE, curl_off_t(bytes.count))
                unsafe curl_set_pointer(handle, CURLOPT_POSTFIELDS, bytes.baseAddress)
                unsafe curl_set_data_callback(handle, CURLOPT_WRITEFUNCTION) { _, size, count, _ in size * count }
                unsafe curl_multi_add_handle(multi, handle)
                begun += 1
            }
            while ended < begun {
                var running: Int32 = 0
                unsafe curl_multi_perform(multi, &running)
                var isAnyDone = false
                var remaining: Int32 = 0
                while let message = unsafe curl_multi_info_read(multi, &remaining) {
                    guard unsafe message.pointee.msg == CURLMSG_DONE, let handle = unsafe message.pointee.easy_handle
                    else { continue }
                    isAnyDone = true
                    ended += 1
                    var status = 0
                    unsafe curl_get_long(handle, CURLINFO_RESPONSE_CODE, &status)
                    if unsafe curl_message_result(message) != CURLE_OK || !(200...299).contains(status) {
                        failures += 1
                    }
                    unsafe curl_multi_remove_handle(multi, handle)
                    if begun < requests {
                        unsafe curl_multi_add_handle(multi, handle)
                        begun += 1
                    }
                }
                if !isAnyDone { unsafe curl_multi_poll(multi, nil, 0, 1000, nil) }
            }
            for index in unsafe handles.indices { unsafe curl_multi_remove_handle(multi, handles[index]) }
            return (.now - started, failures)
        }
    }
}
