/* The C library's ways to open a file, all led to one function of the shim that includes this:
 *     static int opened(int folder, const char *path, int flags, mode_t mode); */
#pragma once

#include <fcntl.h>
#include <stdarg.h>
#include <sys/types.h>

static int opened(int folder, const char *path, int flags, mode_t mode);

#define OPENING(NAME, FOLDER, ...)                                                                                     \
    int NAME(__VA_ARGS__, ...)                                                                                         \
    {                                                                                                                  \
        mode_t mode = 0;                                                                                               \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                                           \
            va_list rest;                                                                                              \
            va_start(rest, flags);                                                                                     \
            mode = va_arg(rest, mode_t);                                                                               \
            va_end(rest);                                                                                              \
        }                                                                                                              \
        return opened(FOLDER, path, flags, mode);                                                                      \
    }
OPENING(open, AT_FDCWD, const char *path, int flags)
OPENING(open64, AT_FDCWD, const char *path, int flags)
OPENING(openat, folder, int folder, const char *path, int flags)
OPENING(openat64, folder, int folder, const char *path, int flags)
