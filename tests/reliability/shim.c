/* Counts, fails, cuts short or kills at chosen system calls on files below one folder. Preloaded into a test process.

   The counters are set through `faults_arm`, from within the process. A call that is not counted does what it always
   does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, WRITE = 2, SYNC = 4, RENAME = 8, UNLINK = 16, MKDIR = 32, TRUNCATE = 64, READ = 128 };
enum { FAIL = 1, SHORT = 2, KILL = 3 };

static char below[4096];
static int kinds, action, number, lasting;
static long wanted, seen, fired;

void faults_arm(const char *folder, int which, long nth, int what, int error, int from_then_on) {
    strncpy(below, folder, sizeof below - 1);
    kinds = which, wanted = nth, action = what, number = error, lasting = from_then_on, seen = 0, fired = 0;
}
long faults_seen(void) { return seen; }
long faults_fired(void) { return fired; }

static ssize_t of_handle(int handle, char *out, size_t room) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t count = readlink(link, out, room - 1);
    out[count < 0 ? 0 : count] = 0;
    return count;
}

static int is_below(const char *path) {
    size_t length = strlen(below);
    return length && !strncmp(path, below, length) && (path[length] == '/' || !path[length]);
}

static int path_is_below(int folder, const char *path) {
    char full[8192];
    if (!below[0] || !path) return 0;
    if (path[0] == '/') return is_below(path);
    if (folder == AT_FDCWD) {
        if (!getcwd(full, 4096)) return 0;
    } else if (of_handle(folder, full, 4096) < 0) {
        return 0;
    }
    strncat(full, "/", sizeof full - strlen(full) - 1);
    strncat(full, path, sizeof full - strlen(full) - 1);
    return is_below(full);
}

static int handle_is_below(int handle) {
    char path[4096];
    return below[0] && of_handle(handle, path, sizeof path) > 0 && is_below(path);
}

/* What to do about a call of this kind: 0 nothing, FAIL with errno set, or SHORT. */
static int due(int kind) {
    if (!(kinds & kind)) return 0;
    long now = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
    if (!wanted || (lasting ? now < wanted : now != wanted)) return 0;
    __atomic_add_fetch(&fired, 1, __ATOMIC_SEQ_CST);
    if (action == KILL) kill(getpid(), SIGKILL);
    if (action == FAIL) errno = number;
    return action;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))

#define OPENING(name)                                                                          \
    int name(const char *path, int flags, ...) {                                               \
        REAL(name);                                                                            \
        va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest);       \
        if (WRITES(flags) && path_is_below(AT_FDCWD, path) && due(OPEN) == FAIL) return -1;    \
        return real(path, flags, mode);                                                        \
    }
OPENING(open)
OPENING(open64)

#define OPENING_AT(name)                                                                       \
    int name(int folder, const char *path, int flags, ...) {                                   \
        REAL(name);                                                                            \
        va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest);       \
        if (WRITES(flags) && path_is_below(folder, path) && due(OPEN) == FAIL) return -1;      \
        return real(folder, path, flags, mode);                                                \
    }
OPENING_AT(openat)
OPENING_AT(openat64)

#define SHORTENED(size) ((size) > 1 ? (size) / 2 : (size))
#define MOVING(type, name, kind, buffer, arguments, extra)                                     \
    ssize_t name(int handle, buffer data, size_t size arguments) {                             \
        REAL(name);                                                                            \
        int what = handle_is_below(handle) ? due(kind) : 0;                                    \
        if (what == FAIL) return -1;                                                           \
        return real(handle, data, what == SHORT ? SHORTENED(size) : size extra);               \
    }
#define COMMA ,
MOVING(ssize_t, write, WRITE, const void *, , )
MOVING(ssize_t, pwrite, WRITE, const void *, COMMA off_t at, COMMA at)
MOVING(ssize_t, pwrite64, WRITE, const void *, COMMA off64_t at, COMMA at)
MOVING(ssize_t, read, READ, void *, , )
MOVING(ssize_t, pread, READ, void *, COMMA off_t at, COMMA at)
MOVING(ssize_t, pread64, READ, void *, COMMA off64_t at, COMMA at)

ssize_t writev(int handle, const struct iovec *parts, int count) {
    REAL(writev);
    int what = handle_is_below(handle) ? due(WRITE) : 0;
    if (what == FAIL) return -1;
    return real(handle, parts, what == SHORT && count > 1 ? 1 : count);
}

#define ON_HANDLE(name, kind, arguments, extra)                                                \
    int name(int handle arguments) {                                                           \
        REAL(name);                                                                            \
        if (handle_is_below(handle) && due(kind) == FAIL) return -1;                           \
        return real(handle extra);                                                             \
    }
ON_HANDLE(fsync, SYNC, , )
ON_HANDLE(fdatasync, SYNC, , )
ON_HANDLE(ftruncate, TRUNCATE, COMMA off_t size, COMMA size)
ON_HANDLE(ftruncate64, TRUNCATE, COMMA off64_t size, COMMA size)

#define ON_PATH(name, kind, arguments, extra)                                                  \
    int name(const char *path arguments) {                                                     \
        REAL(name);                                                                            \
        if (path_is_below(AT_FDCWD, path) && due(kind) == FAIL) return -1;                     \
        return real(path extra);                                                               \
    }
ON_PATH(unlink, UNLINK, , )
ON_PATH(rmdir, UNLINK, , )
ON_PATH(mkdir, MKDIR, COMMA mode_t mode, COMMA mode)
ON_PATH(rename, RENAME, COMMA const char *to, COMMA to)

int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    if (path_is_below(folder, path) && due(UNLINK) == FAIL) return -1;
    return real(folder, path, flags);
}

int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(mkdirat);
    if (path_is_below(folder, path) && due(MKDIR) == FAIL) return -1;
    return real(folder, path, mode);
}

int renameat(int from, const char *path, int to, const char *other) {
    REAL(renameat);
    if (path_is_below(from, path) && due(RENAME) == FAIL) return -1;
    return real(from, path, to, other);
}

int renameat2(int from, const char *path, int to, const char *other, unsigned int flags) {
    REAL(renameat2);
    if (path_is_below(from, path) && due(RENAME) == FAIL) return -1;
    return real(from, path, to, other, flags);
}
