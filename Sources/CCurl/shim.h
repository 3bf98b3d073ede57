// Swift does not import variadic C functions: one wrapper per argument type of curl_easy_setopt, curl_easy_getinfo and
// curl_multi_setopt. They are inline, so no C target is needed, and typed, so no call is ever cast to a fixed signature.
#pragma once
#include <curl/curl.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

static inline CURLcode curl_set_long(CURL *handle, CURLoption option, long value) {
    return curl_easy_setopt(handle, option, value);
}
static inline CURLcode curl_set_offset(CURL *handle, CURLoption option, curl_off_t value) {
    return curl_easy_setopt(handle, option, value);
}
static inline CURLcode curl_set_string(CURL *handle, CURLoption option, const char *value) {
    return curl_easy_setopt(handle, option, value);
}
static inline CURLcode curl_set_pointer(CURL *handle, CURLoption option, const void *value) {
    return curl_easy_setopt(handle, option, value);
}
static inline CURLcode curl_set_list(CURL *handle, CURLoption option, struct curl_slist *value) {
    return curl_easy_setopt(handle, option, value);
}
// libcurl copies the bytes; none unsets the option.
static inline CURLcode curl_set_blob(CURL *handle, CURLoption option, const void *bytes, size_t count) {
    struct curl_blob blob = { (void *)bytes, count, CURL_BLOB_COPY };
    return curl_easy_setopt(handle, option, count ? &blob : NULL);
}
typedef size_t (*curl_shim_data_callback)(char *, size_t, size_t, void *);
static inline CURLcode curl_set_data_callback(CURL *handle, CURLoption option, curl_shim_data_callback callback) {
    return curl_easy_setopt(handle, option, callback);
}
static inline CURLcode curl_set_open_socket_callback(CURL *handle, curl_opensocket_callback callback) {
    return curl_easy_setopt(handle, CURLOPT_OPENSOCKETFUNCTION, callback);
}
static inline CURLcode curl_set_close_socket_callback(CURL *handle, curl_closesocket_callback callback) {
    return curl_easy_setopt(handle, CURLOPT_CLOSESOCKETFUNCTION, callback);
}
// The TLS session (SSL *) of the connection that the transfer has; none without TLS.
static inline void *curl_tls_session(CURL *handle) {
    struct curl_tlssessioninfo *info = NULL;
    return curl_easy_getinfo(handle, CURLINFO_TLS_SSL_PTR, &info) == CURLE_OK && info ? info->internals : NULL;
}
typedef int (*curl_shim_prereq_callback)(void *, char *, char *, int, int);
static inline CURLcode curl_set_prereq_callback(CURL *handle, curl_shim_prereq_callback callback) {
    return curl_easy_setopt(handle, CURLOPT_PREREQFUNCTION, callback);
}
// How many bytes a TCP connection has received so far (tcpi_bytes_received, since Linux 4.1), 0 where the system does not
// say. By its place: the C library's own struct tcp_info ends before it.
static inline uint64_t tcp_bytes_received(int descriptor) {
    unsigned char info[256] = { 0 };
    socklen_t length = sizeof info;
    uint64_t bytes = 0;
    // IPPROTO_TCP, TCP_INFO
    if (getsockopt(descriptor, 6, 11, info, &length) == 0 && length >= 136) memcpy(&bytes, info + 128, sizeof bytes);
    return bytes;
}
static inline CURLcode curl_get_long(CURL *handle, CURLINFO info, long *value) {
    return curl_easy_getinfo(handle, info, value);
}
static inline CURLcode curl_get_offset(CURL *handle, CURLINFO info, curl_off_t *value) {
    return curl_easy_getinfo(handle, info, value);
}
static inline CURLcode curl_get_pointer(CURL *handle, CURLINFO info, void **value) {
    return curl_easy_getinfo(handle, info, value);
}
static inline CURLMcode curl_multi_set_long(CURLM *multi, CURLMoption option, long value) {
    return curl_multi_setopt(multi, option, value);
}
// The message union of CURLMsg is imported as overlapping storage; these read the two members that we need.
static inline CURLcode curl_message_result(const CURLMsg *message) { return message->data.result; }
