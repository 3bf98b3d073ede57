// Swift does not see glibc's <sys/epoll.h>, and its event is a packed struct: these wrappers take plain numbers.
#pragma once
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

static inline int epoll_shim_create(void) { return epoll_create1(EPOLL_CLOEXEC); }

static inline int epoll_shim_wakeup_descriptor(void) { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }

static inline int epoll_shim_watch(int epoll, int descriptor) {
    struct epoll_event event = {.events = EPOLLIN, .data = {.fd = descriptor}};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event);
}

// Fills the array, which has room for `most` (at most 256), and returns how many are ready.
static inline int epoll_shim_wait(int epoll, int32_t *descriptors, int most, int milliseconds) {
    struct epoll_event events[256];
    int count = epoll_wait(epoll, events, most, milliseconds);
    for (int i = 0; i < count; i++) descriptors[i] = events[i].data.fd;
    return count;
}
