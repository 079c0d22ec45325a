/* Writes down, in one order, everything that processes change below one folder.
 *
 * Loaded with LD_PRELOAD. Environment: POWERCUT_ROOT, the folder as realpath names it; POWERCUT_LOG, a file outside of
 * it. Each call that changes a name or a byte below the root is made and written down under one lock, so that the order
 * of the log is the order of the changes, whatever thread or process made them. The lock is flock() of the log, opened
 * anew for each call: threads and forked children exclude each other alike, and a killed process leaves it free.
 *
 * The calls are made with syscall(), never through the next library: nothing here can call itself, and nothing is looked
 * up while a process starts. Which file a descriptor means is asked of /proc each time, so there is no table that dup,
 * fork or exec could make wrong.
 *
 * What a log cannot say (stdio streams, O_SYNC, shared writable mappings, exchanged names ...) is written down as
 * UNMODELLED, and the reader refuses such a log. SQLite's "-shm" index is the one mapping that is let pass, as VOLATILE:
 * SQLite never syncs it and rebuilds it when it opens a file after a crash. Times of files, owners and extended
 * attributes are not written down. sync_file_range() promises nothing about a power cut and is left alone.
 *
 * POWERCUT_KILL_AT_SYNC, which a program may set in itself, makes its next sync its end: what it wrote stays in the
 * kernel's memory, where the next program finds it, and is not durable.
 *
 * fsync() is written down and not passed on: durable is what the log says, and the disk of the test is not asked.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

enum op { /* the numbers are those of records.py */
    CREATE = 1, TRUNCATE, WRITE, ALLOCATE, FSYNC, FSYNC_FOLDER, RENAME, LINK, UNLINK, MKDIR, RMDIR, CHMOD, SYNC_ALL,
    UNMODELLED, VOLATILE
};

struct head {
    uint32_t magic;
    uint16_t op, path_size, other_size, filler;
    uint32_t mode;
    uint64_t inode, offset, length, data_size;
};

static char root[PATH_MAX];
static size_t root_size;
static const char *log_path;

__attribute__((constructor)) static void start(void)
{
    const char *wanted = getenv("POWERCUT_ROOT");
    log_path = getenv("POWERCUT_LOG");
    if (wanted && log_path && strlen(wanted) < sizeof root - 1) {
        strcpy(root, wanted);
        root_size = strlen(root);
    }
}

/* Paths */

static const char *below(const char *path)
{
    if (!root_size || strncmp(path, root, root_size) != 0)
        return NULL;
    if (path[root_size] == '/')
        return path + root_size + 1;
    return path[root_size] ? NULL : path + root_size;
}

static int descriptor_path(int fd, char *out)
{
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_MAX - 1);
    if (size < 0)
        return -1;
    out[size] = 0;
    return 0;
}

/* The name of an entry, its folder resolved and the entry itself not; NULL when it is not below the root. */
static const char *entry(int folder, const char *path, char *out)
{
    char joined[2 * PATH_MAX], parent[PATH_MAX];
    if (!root_size || !path || strlen(path) >= PATH_MAX)
        return NULL;
    joined[0] = 0;
    if (path[0] != '/') {
        if (folder == AT_FDCWD ? !getcwd(joined, PATH_MAX) : descriptor_path(folder, joined) != 0)
            return NULL;
        strcat(joined, "/");
    }
    strcat(joined, path);
    size_t size = strlen(joined);
    while (size > 1 && joined[size - 1] == '/')
        joined[--size] = 0;
    char *slash = strrchr(joined, '/');
    char *name = slash + 1;
    if (!strcmp(name, ".") || !strcmp(name, ".."))
        return realpath(joined, out) ? below(out) : NULL;
    *slash = 0;
    if (!realpath(joined[0] ? joined : "/", parent) || strlen(parent) + strlen(name) + 2 > PATH_MAX)
        return NULL;
    strcpy(out, parent);
    strcat(strcmp(parent, "/") ? strcat(out, "/") : out, name);
    return below(out);
}

static const char *file_below(int fd, char *out, struct stat *found)
{
    if (!root_size || descriptor_path(fd, out) != 0)
        return NULL;
    const char *path = below(out);
    return path && fstat(fd, found) == 0 ? path : NULL;
}

/* The log */

static int lock_log(void)
{
    int log = syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (log < 0 || flock(log, LOCK_EX) != 0) {
        dprintf(2, "powercut: the log %s cannot be used: %s\n", log_path, strerror(errno));
        _exit(97);
    }
    return log;
}

static void unlock_log(int log)
{
    int kept = errno;
    flock(log, LOCK_UN); /* a child forked meanwhile has a copy of the descriptor, which would keep it locked */
    syscall(SYS_close, log);
    errno = kept;
}

static void note(int log, struct head head, const char *path, const char *other, const void *data)
{
    int kept = errno;
    head.magic = 0x31435750;
    head.path_size = strlen(path);
    head.other_size = other ? strlen(other) : 0;
    struct iovec parts[] = {
        {&head, sizeof head}, {(void *)path, head.path_size}, {(void *)other, head.other_size},
        {(void *)data, head.data_size},
    };
    size_t size = sizeof head + head.path_size + head.other_size + head.data_size;
    if (syscall(SYS_writev, log, parts, 4) != (ssize_t)size) {
        dprintf(2, "powercut: the log is cut: %s\n", strerror(errno));
        _exit(97);
    }
    errno = kept;
}

static void note_unmodelled(const char *path, const char *why)
{
    int log = lock_log();
    note(log, (struct head){.op = UNMODELLED}, path, why, NULL);
    unlock_log(log);
}

/* Opening */

static int opened(int folder, const char *path, int flags, mode_t mode)
{
    char name[PATH_MAX], actual[PATH_MAX];
    struct stat before, after;
    int changes = flags & (O_CREAT | O_TRUNC);
    int tmpfile = (flags & O_TMPFILE) == O_TMPFILE;
    int writes = (flags & O_ACCMODE) != O_RDONLY;
    const char *shown = changes || tmpfile || writes ? entry(folder, path, name) : NULL;
    if (!shown)
        return syscall(SYS_openat, folder, path, flags, mode);
    if (tmpfile || flags & O_DSYNC)
        note_unmodelled(shown, tmpfile ? "O_TMPFILE" : "O_SYNC");
    if (!changes)
        return syscall(SYS_openat, folder, path, flags, mode);
    int log = lock_log();
    int existed = fstatat(folder, path, &before, 0) == 0;
    int fd = syscall(SYS_openat, folder, path, flags, mode);
    const char *now = fd < 0 ? NULL : file_below(fd, actual, &after);
    if (now && !existed)
        note(log, (struct head){.op = CREATE, .inode = after.st_ino, .mode = after.st_mode}, now, NULL, NULL);
    else if (now && flags & O_TRUNC && S_ISREG(after.st_mode))
        note(log, (struct head){.op = TRUNCATE, .inode = after.st_ino}, now, NULL, NULL);
    unlock_log(log);
    return fd;
}

#include "openers.h"
int __open_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __openat_2(int folder, const char *path, int flags) { return opened(folder, path, flags, 0); }
int __openat64_2(int folder, const char *path, int flags) { return opened(folder, path, flags, 0); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

static FILE *streamed(const char *function, const char *path, const char *mode)
{
    char name[PATH_MAX];
    const char *shown = strpbrk(mode, "wa+") ? entry(AT_FDCWD, path, name) : NULL;
    if (shown)
        note_unmodelled(shown, function);
    FILE *(*real)(const char *, const char *) = dlsym(RTLD_NEXT, function);
    return real(path, mode);
}

FILE *fopen(const char *path, const char *mode) { return streamed("fopen", path, mode); }
FILE *fopen64(const char *path, const char *mode) { return streamed("fopen64", path, mode); }

/* Bytes */

static void note_bytes(int log, const char *path, struct stat *file, const void *data, size_t size, off_t offset)
{
    struct head head = {.op = WRITE, .inode = file->st_ino, .offset = offset, .data_size = size};
    note(log, head, path, NULL, data);
}

/* After a write at the descriptor's own place: also with O_APPEND it now stands behind the last byte. */
static off_t behind(int fd, ssize_t done) { return syscall(SYS_lseek, fd, 0, SEEK_CUR) - done; }

ssize_t write(int fd, const void *data, size_t size)
{
    char name[PATH_MAX];
    struct stat file;
    const char *path = file_below(fd, name, &file);
    if (!path || !S_ISREG(file.st_mode))
        return syscall(SYS_write, fd, data, size);
    int log = lock_log();
    ssize_t done = syscall(SYS_write, fd, data, size);
    if (done > 0)
        note_bytes(log, path, &file, data, done, behind(fd, done));
    unlock_log(log);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    char name[PATH_MAX];
    struct stat file;
    const char *path = file_below(fd, name, &file);
    if (!path)
        return syscall(SYS_pwrite64, fd, data, size, offset);
    int log = lock_log();
    ssize_t done = syscall(SYS_pwrite64, fd, data, size, offset);
    if (done > 0)
        note_bytes(log, path, &file, data, done, offset);
    unlock_log(log);
    return done;
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return pwrite(fd, data, size, offset); }

/* Gathered writes are made as one plain write each: a caller must expect a short one anyway. */
static char *gathered(const struct iovec *parts, int count, size_t *size)
{
    *size = 0;
    for (int at = 0; at < count; at++)
        *size += parts[at].iov_len;
    char *all = malloc(*size ? *size : 1), *next = all;
    for (int at = 0; all && at < count; at++)
        next = mempcpy(next, parts[at].iov_base, parts[at].iov_len);
    return all;
}

static ssize_t written(int fd, const struct iovec *parts, int count, off_t offset)
{
    size_t size;
    char *all = gathered(parts, count, &size);
    if (!all) {
        errno = ENOMEM;
        return -1;
    }
    ssize_t done = offset < 0 ? write(fd, all, size) : pwrite(fd, all, size, offset);
    free(all);
    return done;
}

static int is_below(int fd)
{
    char name[PATH_MAX];
    struct stat file;
    return file_below(fd, name, &file) && S_ISREG(file.st_mode);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    return is_below(fd) ? written(fd, parts, count, -1) : syscall(SYS_writev, fd, parts, count);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    return is_below(fd) ? written(fd, parts, count, offset) : syscall(SYS_pwritev, fd, parts, count, offset, 0);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t at) { return pwritev(fd, parts, count, at); }

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    return is_below(fd) ? written(fd, parts, count, offset)
                        : syscall(SYS_pwritev2, fd, parts, count, offset, 0, flags);
}
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off_t at, int flags)
{
    return pwritev2(fd, parts, count, at, flags);
}

/* What the kernel copied is read back from the file. */
static void note_copied(int log, int fd, const char *path, struct stat *file, ssize_t size, off_t offset)
{
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int reader = syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC);
    char *data = malloc(size);
    if (reader < 0 || !data || syscall(SYS_pread64, reader, data, size, offset) != size)
        note(log, (struct head){.op = UNMODELLED}, path, "a copy that cannot be read back", NULL);
    else
        note_bytes(log, path, file, data, size, offset);
    free(data);
    if (reader >= 0)
        syscall(SYS_close, reader);
}

ssize_t sendfile(int out, int in, off_t *offset, size_t size)
{
    char name[PATH_MAX];
    struct stat file;
    const char *path = file_below(out, name, &file);
    if (!path || !S_ISREG(file.st_mode))
        return syscall(SYS_sendfile, out, in, offset, size);
    int log = lock_log();
    ssize_t done = syscall(SYS_sendfile, out, in, offset, size);
    if (done > 0)
        note_copied(log, out, path, &file, done, behind(out, done));
    unlock_log(log);
    return done;
}
ssize_t sendfile64(int out, int in, off_t *offset, size_t size) { return sendfile(out, in, offset, size); }

ssize_t copy_file_range(int in, off_t *from, int out, off_t *to, size_t size, unsigned flags)
{
    char name[PATH_MAX];
    struct stat file;
    const char *path = file_below(out, name, &file);
    if (!path)
        return syscall(SYS_copy_file_range, in, from, out, to, size, flags);
    int log = lock_log();
    ssize_t done = syscall(SYS_copy_file_range, in, from, out, to, size, flags);
    if (done > 0)
        note_copied(log, out, path, &file, done, to ? *to - done : behind(out, done));
    unlock_log(log);
    return done;
}

ssize_t splice(int in, off_t *from, int out, off_t *to, size_t size, unsigned flags)
{
    char name[PATH_MAX];
    struct stat file;
    const char *path = file_below(out, name, &file);
    if (path && S_ISREG(file.st_mode))
        note_unmodelled(path, "splice");
    return syscall(SYS_splice, in, from, out, to, size, flags);
}

int ftruncate(int fd, off_t size)
{
    char name[PATH_MAX];
    struct stat file;
    const char *path = file_below(fd, name, &file);
    if (!path)
        return syscall(SYS_ftruncate, fd, size);
    int log = lock_log();
    int failed = syscall(SYS_ftruncate, fd, size);
    if (!failed)
        note(log, (struct head){.op = TRUNCATE, .inode = file.st_ino, .length = size}, path, NULL, NULL);
    unlock_log(log);
    return failed;
}
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }

int truncate(const char *path, off_t size)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int failed = ftruncate(fd, size);
    syscall(SYS_close, fd);
    return failed;
}
int truncate64(const char *path, off_t size) { return truncate(path, size); }

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    char name[PATH_MAX];
    struct stat file;
    const char *path = file_below(fd, name, &file);
    if (!path || mode == FALLOC_FL_KEEP_SIZE)
        return syscall(SYS_fallocate, fd, mode, offset, length);
    if (mode)
        note_unmodelled(path, "fallocate with a mode");
    int log = lock_log();
    int failed = syscall(SYS_fallocate, fd, mode, offset, length);
    struct head head = {.op = ALLOCATE, .inode = file.st_ino, .offset = offset, .length = length};
    if (!failed && !mode)
        note(log, head, path, NULL, NULL);
    unlock_log(log);
    return failed;
}
int fallocate64(int fd, int mode, off_t offset, off_t length) { return fallocate(fd, mode, offset, length); }

int posix_fallocate(int fd, off_t offset, off_t length)
{
    int kept = errno;
    int error = fallocate(fd, 0, offset, length) ? errno : 0;
    errno = kept;
    return error;
}
int posix_fallocate64(int fd, off_t offset, off_t length) { return posix_fallocate(fd, offset, length); }

void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    char name[PATH_MAX];
    struct stat file;
    int is_written = fd >= 0 && !(flags & MAP_ANONYMOUS) && flags & MAP_SHARED && protection & PROT_WRITE;
    const char *path = is_written ? file_below(fd, name, &file) : NULL;
    if (path) {
        size_t end = strlen(path);
        if (end > 4 && !strcmp(path + end - 4, "-shm")) {
            int log = lock_log();
            note(log, (struct head){.op = VOLATILE, .inode = file.st_ino}, path, NULL, NULL);
            unlock_log(log);
        } else {
            note_unmodelled(path, "mmap");
        }
    }
    return (void *)syscall(SYS_mmap, address, size, protection, flags, fd, offset);
}
void *mmap64(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    return mmap(address, size, protection, flags, fd, offset);
}

/* What makes it durable */

static int synced(int fd, long number)
{
    char name[PATH_MAX];
    struct stat file;
    const char *path = file_below(fd, name, &file);
    if (!path)
        return syscall(number, fd);
    if (getenv("POWERCUT_KILL_AT_SYNC"))
        raise(SIGKILL);
    int log = lock_log();
    int op = S_ISDIR(file.st_mode) ? FSYNC_FOLDER : FSYNC;
    note(log, (struct head){.op = op, .inode = file.st_ino}, path, NULL, NULL);
    unlock_log(log);
    return 0;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

static void note_sync_all(void)
{
    if (!root_size)
        return;
    int log = lock_log();
    note(log, (struct head){.op = SYNC_ALL}, "", NULL, NULL);
    unlock_log(log);
}

void sync(void)
{
    note_sync_all();
}

int syncfs(int fd)
{
    char name[PATH_MAX];
    struct stat file;
    if (!file_below(fd, name, &file))
        return syscall(SYS_syncfs, fd);
    note_sync_all();
    return 0;
}

/* Names */

static int named(enum op op, int folder, const char *path, int other_folder, const char *other, int flags, mode_t mode)
{
    char name[PATH_MAX], other_name[PATH_MAX];
    struct stat found = {0};
    const char *shown = entry(folder, path, name);
    const char *other_shown = other ? entry(other_folder, other, other_name) : NULL;
    int log = shown || other_shown ? lock_log() : -1;
    int failed;
    switch (op) {
    case RENAME: failed = syscall(SYS_renameat2, folder, path, other_folder, other, flags); break;
    case LINK: failed = syscall(SYS_linkat, folder, path, other_folder, other, flags); break;
    case UNLINK:
    case RMDIR: failed = syscall(SYS_unlinkat, folder, path, op == RMDIR ? AT_REMOVEDIR : 0); break;
    case MKDIR: failed = syscall(SYS_mkdirat, folder, path, mode); break;
    default: failed = syscall(SYS_fchmodat, folder, path, mode); break;
    }
    if (log < 0)
        return failed;
    if (!failed && (op == MKDIR || op == CHMOD) && fstatat(folder, path, &found, 0) != 0)
        found.st_mode = mode;
    struct head head = {.op = op, .inode = found.st_ino, .mode = found.st_mode};
    if (!failed && other && (!shown || !other_shown || flags & RENAME_EXCHANGE))
        note(log, (struct head){.op = UNMODELLED}, shown ? shown : other_shown, "a name that crosses the root", NULL);
    else if (!failed)
        note(log, head, shown, other_shown, NULL);
    unlock_log(log);
    return failed;
}

int rename(const char *old, const char *new) { return named(RENAME, AT_FDCWD, old, AT_FDCWD, new, 0, 0); }
int renameat(int old_folder, const char *old, int folder, const char *new)
{
    return named(RENAME, old_folder, old, folder, new, 0, 0);
}
int renameat2(int old_folder, const char *old, int folder, const char *new, unsigned flags)
{
    return named(RENAME, old_folder, old, folder, new, flags, 0);
}
int link(const char *old, const char *new) { return named(LINK, AT_FDCWD, old, AT_FDCWD, new, 0, 0); }
int linkat(int old_folder, const char *old, int folder, const char *new, int flags)
{
    return named(LINK, old_folder, old, folder, new, flags, 0);
}
int unlink(const char *path) { return named(UNLINK, AT_FDCWD, path, 0, NULL, 0, 0); }
int unlinkat(int folder, const char *path, int flags)
{
    return named(flags & AT_REMOVEDIR ? RMDIR : UNLINK, folder, path, 0, NULL, 0, 0);
}
int rmdir(const char *path) { return named(RMDIR, AT_FDCWD, path, 0, NULL, 0, 0); }
int mkdir(const char *path, mode_t mode) { return named(MKDIR, AT_FDCWD, path, 0, NULL, 0, mode); }
int mkdirat(int folder, const char *path, mode_t mode) { return named(MKDIR, folder, path, 0, NULL, 0, mode); }
int chmod(const char *path, mode_t mode) { return named(CHMOD, AT_FDCWD, path, 0, NULL, 0, mode); }
int fchmodat(int folder, const char *path, mode_t mode, int flags)
{
    return flags ? (int)syscall(SYS_fchmodat, folder, path, mode, flags)
                 : named(CHMOD, folder, path, 0, NULL, 0, mode);
}

int fchmod(int fd, mode_t mode)
{
    char name[PATH_MAX];
    struct stat file;
    const char *path = file_below(fd, name, &file);
    if (!path)
        return syscall(SYS_fchmod, fd, mode);
    int log = lock_log();
    int failed = syscall(SYS_fchmod, fd, mode);
    mode_t whole = (file.st_mode & S_IFMT) | mode;
    if (!failed)
        note(log, (struct head){.op = CHMOD, .inode = file.st_ino, .mode = whole}, path, NULL, NULL);
    unlock_log(log);
    return failed;
}

int symlinkat(const char *target, int folder, const char *path)
{
    char name[PATH_MAX];
    const char *shown = entry(folder, path, name);
    if (shown)
        note_unmodelled(shown, "symlink");
    return syscall(SYS_symlinkat, target, folder, path);
}
int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }

int bind(int fd, const struct sockaddr *address, socklen_t size)
{
    char name[PATH_MAX];
    struct stat made;
    const struct sockaddr_un *local = (const struct sockaddr_un *)address;
    int is_named = address->sa_family == AF_UNIX && size > sizeof(sa_family_t) && local->sun_path[0];
    const char *shown = is_named ? entry(AT_FDCWD, local->sun_path, name) : NULL;
    if (!shown)
        return syscall(SYS_bind, fd, address, size);
    int log = lock_log();
    int failed = syscall(SYS_bind, fd, address, size);
    if (!failed && stat(local->sun_path, &made) == 0)
        note(log, (struct head){.op = CREATE, .inode = made.st_ino, .mode = made.st_mode}, shown, NULL, NULL);
    unlock_log(log);
    return failed;
}
