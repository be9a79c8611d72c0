/* Makes writes below one folder fail, for LD_PRELOAD: a full or read-only disk at a chosen moment.
 *
 * Every call that changes something below the folder is a point; writes to the file of the point before it belong to
 * that point. From the chosen point on (or at it alone) the calls fail with the chosen error, whoever made them:
 * Python, safetensors, SQLite or torch. On a full disk (ENOSPC) deleting, renaming and opening existing files works.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char prefix[PATH_MAX], last[PATH_MAX];
static long count, at;
static int armed, code, once, trace = -1;

/* Fail from point number `first` on with `error`; with `only`, at this point alone. Points are logged to `log`.
 * Without an error, kill all processes of the group at the first point; with `only`, this one alone. */
void faults_arm(const char *folder, long first, int error, int only, int log) {
    snprintf(prefix, sizeof prefix, "%s/", folder);
    last[0] = 0;
    count = 0, at = first, code = error, once = only, trace = log, armed = 1;
}

static int whole(int dir, const char *path, char *out) {
    char base[PATH_MAX] = "";
    if (path[0] != '/') {
        char link[64];
        snprintf(link, sizeof link, dir == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", dir);
        ssize_t size = readlink(link, base, sizeof base - 2);
        if (size < 0) return 0;
        base[size] = '/', base[size + 1] = 0;
    }
    return snprintf(out, PATH_MAX, "%s%s", base, path) < PATH_MAX;
}

static int point(const char *kind, const char *path) {
    if (!armed || strncmp(path, prefix, strlen(prefix))) return 0;
    int writes = !strcmp(kind, "write"), continued = writes && !strcmp(path, last);
    if (!continued) {
        char line[PATH_MAX + 32];
        int size = snprintf(line, sizeof line, "%s %s\n", kind, path + strlen(prefix));
        count++;
        snprintf(last, sizeof last, "%s", writes ? path : "");
        if (trace >= 0) syscall(SYS_write, trace, line, (size_t)size);
    }
    if (!at || (once ? count != at : count < at)) return 0;
    if (!code) kill(once ? getpid() : 0, SIGKILL);
    errno = code;
    return 1;
}

static int named(const char *kind, int dir, const char *path) {
    char full[PATH_MAX];
    return armed && path && whole(dir, path, full) && point(kind, full);
}

static int made(const char *kind, int dir, const char *path) {  /* one that exists is refused as such */
    return armed && path && syscall(SYS_faccessat, dir, path, F_OK) && named(kind, dir, path);
}

static int opened(int dir, const char *path, int flags) {
    if (!(flags & (O_WRONLY | O_RDWR | O_CREAT))) return 0;
    if (code == ENOSPC && (!(flags & O_CREAT) || !syscall(SYS_faccessat, dir, path, F_OK))) return 0;
    return named("open", dir, path);
}

static int handle(int fd) {
    char link[64], path[PATH_MAX];
    if (!armed) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return point("write", path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define OPEN(name)                                                     \
    int name(const char *path, int flags, ...) {                       \
        va_list rest;                                                  \
        va_start(rest, flags);                                         \
        mode_t mode = va_arg(rest, mode_t);                            \
        va_end(rest);                                                  \
        return opened(AT_FDCWD, path, flags) ? -1 : REAL(name)(path, flags, mode); \
    }
#define OPENAT(name)                                                   \
    int name(int dir, const char *path, int flags, ...) {              \
        va_list rest;                                                  \
        va_start(rest, flags);                                         \
        mode_t mode = va_arg(rest, mode_t);                            \
        va_end(rest);                                                  \
        return opened(dir, path, flags) ? -1 : REAL(name)(dir, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

#define CALL(type, name, parameters, arguments, fails) \
    type name parameters { return (fails) ? (type)-1 : REAL(name) arguments; }
CALL(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size), handle(fd))
CALL(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t to), (fd, data, size, to), handle(fd))
CALL(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t to), (fd, data, size, to), handle(fd))
CALL(ssize_t, writev, (int fd, const struct iovec *parts, int number), (fd, parts, number), handle(fd))
CALL(ssize_t, copy_file_range, (int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags),
     (from, a, to, b, size, flags), handle(to))
ssize_t sendfile(int, int, off_t *, size_t);
ssize_t sendfile64(int, int, off64_t *, size_t);
CALL(ssize_t, sendfile, (int to, int from, off_t *a, size_t size), (to, from, a, size), handle(to))
CALL(ssize_t, sendfile64, (int to, int from, off64_t *a, size_t size), (to, from, a, size), handle(to))
CALL(int, ftruncate, (int fd, off_t size), (fd, size), size && handle(fd))
CALL(int, ftruncate64, (int fd, off64_t size), (fd, size), size && handle(fd))
CALL(int, fallocate64, (int fd, int mode, off64_t from, off64_t size), (fd, mode, from, size), handle(fd))
CALL(int, mkdir, (const char *path, mode_t mode), (path, mode), made("mkdir", AT_FDCWD, path))
CALL(int, mkdirat, (int dir, const char *path, mode_t mode), (dir, path, mode), made("mkdir", dir, path))
CALL(int, symlink, (const char *to, const char *path), (to, path), named("symlink", AT_FDCWD, path))
CALL(int, link, (const char *from, const char *path), (from, path), named("link", AT_FDCWD, path))
#define READ_ONLY(kind, dir, path) (code != ENOSPC && named(kind, dir, path))
CALL(int, rename, (const char *from, const char *to), (from, to), READ_ONLY("rename", AT_FDCWD, to))
CALL(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), READ_ONLY("rename", b, to))
CALL(int, unlink, (const char *path), (path), READ_ONLY("unlink", AT_FDCWD, path))
CALL(int, rmdir, (const char *path), (path), READ_ONLY("unlink", AT_FDCWD, path))
CALL(int, unlinkat, (int dir, const char *path, int flags), (dir, path, flags), READ_ONLY("unlink", dir, path))
CALL(int, chmod, (const char *path, mode_t mode), (path, mode), READ_ONLY("chmod", AT_FDCWD, path))
CALL(int, fchmodat, (int dir, const char *path, mode_t mode, int flags), (dir, path, mode, flags),
     READ_ONLY("chmod", dir, path))
