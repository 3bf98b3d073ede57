// Swift does not see glibc's <sys/epoll.h>, and its event is a packed struct: these wrappers take plain numbers.
#pragma once
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

// What a descriptor is watched for and found ready for; the same bits as libcurl's CURL_CSELECT_*.
enum { epoll_shim_read = 1, epoll_shim_write = 2, epoll_shim_error = 4 };

static inline int epoll_shim_create(void) { return epoll_create1(EPOLL_CLOEXEC); }

static inline int epoll_shim_wakeup_descriptor(void) { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }

// A descriptor that was closed left by itself, and its number may be new again: so neither order is an error.
static inline int epoll_shim_watch(int epoll, int descriptor, int what) {
    struct epoll_event event = {.data = {.fd = descriptor}};
    event.events = (what & epoll_shim_read ? EPOLLIN : 0u) | (what & epoll_shim_write ? EPOLLOUT : 0u);
    if (epoll_ctl(epoll, EPOLL_CTL_MOD, descriptor, &event) == 0) return 0;
    return epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event);
}

static inline void epoll_shim_forget(int epoll, int descriptor) {
    struct epoll_event event = {0};
    epoll_ctl(epoll, EPOLL_CTL_DEL, descriptor, &event);
}

// Fills both arrays, which have room for `most` (at most 256), and returns how many are ready.
static inline int epoll_shim_wait(int epoll, int32_t *descriptors, int32_t *what, int most, int milliseconds) {
    struct epoll_event events[256];
    int count = epoll_wait(epoll, events, most, milliseconds);
    for (int i = 0; i < count; i++) {
        descriptors[i] = events[i].data.fd;
        what[i] = (events[i].events & EPOLLIN ? epoll_shim_read : 0) | (events[i].events & EPOLLOUT ? epoll_shim_write : 0)
                | (events[i].events & (EPOLLERR | EPOLLHUP) ? epoll_shim_error : 0);
    }
    return count;
}
