/* Lets writes below one folder fail, as a disk without room or a dying disk does.
 *
 * Loaded with LD_PRELOAD. Environment: FAULTS_ROOT, the folder as realpath names it; FAULTS_TABLE, a file outside of it
 * that holds struct table, shared by all processes and by the test, which reads and changes it while they run.
 *
 * Counted are the calls that need room or change a name: write, pwrite, writev, ftruncate, fallocate, opening a file that
 * is not there with O_CREAT, rename, mkdir and the binding of a socket; fsync, too, where the error is not ENOSPC. The
 * calls whose number lies in [from, to) are not made and fail with the error. While a full disk has no room at all, also
 * statvfs says so. Reading the file with the inode table.unreadable fails with EIO, whatever its name.
 *
 * A call that fails has done nothing: short writes are the kernel's business and every caller's here handles them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <unistd.h>

struct table { /* the numbers are those of __init__.py */
    uint64_t calls, from, to, failed;
    int64_t error;
    uint64_t unreadable;
    char first[128];
};

static char root[PATH_MAX];
static size_t root_size;
static struct table *table;

__attribute__((constructor)) static void start(void)
{
    const char *wanted = getenv("FAULTS_ROOT"), *name = getenv("FAULTS_TABLE");
    int fd = wanted && name && strlen(wanted) < sizeof root ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *shared = mmap(NULL, sizeof *table, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (shared == MAP_FAILED)
        return;
    strcpy(root, wanted);
    root_size = strlen(root);
    table = shared;
}

static int is_below(const char *path)
{
    return table && strncmp(path, root, root_size) == 0 && (path[root_size] == '/' || !path[root_size]);
}

static int path_of(int fd, char *out)
{
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = table ? syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_MAX - 1) : -1;
    out[size < 0 ? 0 : size] = 0;
    return size >= 0 && is_below(out);
}

static int named_below(int folder, const char *path, char *out)
{
    if (!table || !path || strlen(path) >= PATH_MAX)
        return 0;
    if (path[0] == '/') {
        strcpy(out, path);
        return is_below(out);
    }
    if (folder == AT_FDCWD ? !getcwd(out, PATH_MAX) : !path_of(folder, out))
        return 0;
    if (strlen(out) + strlen(path) + 2 > PATH_MAX)
        return 0;
    strcat(strcat(out, "/"), path);
    return is_below(out);
}

/* Whether this call is one that fails; errno is set. */
static int fails(const char *what, const char *path)
{
    uint64_t number = __atomic_add_fetch(&table->calls, 1, __ATOMIC_SEQ_CST);
    if (number < table->from || number >= table->to)
        return 0;
    if (__atomic_fetch_add(&table->failed, 1, __ATOMIC_SEQ_CST) == 0)
        snprintf(table->first, sizeof table->first, "%s %s", what, path + root_size);
    errno = (int)table->error;
    return 1;
}

static int file_fails(const char *what, int fd)
{
    char path[PATH_MAX];
    return path_of(fd, path) && fails(what, path);
}

static int is_unreadable(int fd)
{
    struct stat file;
    if (!table || !table->unreadable || fstat(fd, &file) != 0 || file.st_ino != table->unreadable)
        return 0;
    errno = EIO;
    return 1;
}

/* Files */

static int opened(int folder, const char *path, int flags, mode_t mode)
{
    char name[PATH_MAX];
    struct stat there;
    if (flags & O_CREAT && named_below(folder, path, name) && fstatat(folder, path, &there, 0) && fails("open", name))
        return -1;
    return syscall(SYS_openat, folder, path, flags, mode);
}

#include "openers.h"

ssize_t write(int fd, const void *data, size_t size)
{
    return file_fails("write", fd) ? -1 : syscall(SYS_write, fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    return file_fails("pwrite", fd) ? -1 : syscall(SYS_pwrite64, fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) { return pwrite(fd, data, size, at); }
ssize_t writev(int fd, const struct iovec *parts, int count)
{
    return file_fails("writev", fd) ? -1 : syscall(SYS_writev, fd, parts, count);
}
int ftruncate(int fd, off_t size) { return file_fails("ftruncate", fd) ? -1 : syscall(SYS_ftruncate, fd, size); }
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }
int fallocate(int fd, int mode, off_t at, off_t size)
{
    return file_fails("fallocate", fd) ? -1 : syscall(SYS_fallocate, fd, mode, at, size);
}
int fallocate64(int fd, int mode, off_t at, off_t size) { return fallocate(fd, mode, at, size); }
int posix_fallocate(int fd, off_t at, off_t size) { return fallocate(fd, 0, at, size) ? errno : 0; }
int posix_fallocate64(int fd, off_t at, off_t size) { return posix_fallocate(fd, at, size); }

static int synced(long call, const char *what, int fd)
{
    return table && table->error != ENOSPC && file_fails(what, fd) ? -1 : syscall(call, fd);
}
int fsync(int fd) { return synced(SYS_fsync, "fsync", fd); }
int fdatasync(int fd) { return synced(SYS_fdatasync, "fdatasync", fd); }

/* Names */

int renameat2(int from, const char *old, int to, const char *new, unsigned flags)
{
    char path[PATH_MAX];
    return named_below(to, new, path) && fails("rename", path) ? -1 : syscall(SYS_renameat2, from, old, to, new, flags);
}
int renameat(int from, const char *old, int to, const char *new) { return renameat2(from, old, to, new, 0); }
int rename(const char *old, const char *new) { return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0); }

int mkdirat(int folder, const char *path, mode_t mode)
{
    char name[PATH_MAX];
    struct stat there;
    int is_new = named_below(folder, path, name) && fstatat(folder, path, &there, 0);
    return is_new && fails("mkdir", name) ? -1 : syscall(SYS_mkdirat, folder, path, mode);
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int bind(int fd, const struct sockaddr *address, socklen_t size)
{
    char path[PATH_MAX];
    const struct sockaddr_un *local = (const struct sockaddr_un *)address;
    int is_named = address->sa_family == AF_UNIX && size > sizeof(sa_family_t) && local->sun_path[0];
    if (is_named && named_below(AT_FDCWD, local->sun_path, path) && fails("bind", path))
        return -1;
    return syscall(SYS_bind, fd, address, size);
}

/* Reading */

ssize_t read(int fd, void *data, size_t size) { return is_unreadable(fd) ? -1 : syscall(SYS_read, fd, data, size); }
ssize_t pread(int fd, void *data, size_t size, off_t at)
{
    return is_unreadable(fd) ? -1 : syscall(SYS_pread64, fd, data, size, at);
}
ssize_t pread64(int fd, void *data, size_t size, off_t at) { return pread(fd, data, size, at); }
ssize_t sendfile(int to, int from, off_t *at, size_t size)
{
    return is_unreadable(from) ? -1 : syscall(SYS_sendfile, to, from, at, size);
}
ssize_t sendfile64(int to, int from, off_t *at, size_t size) { return sendfile(to, from, at, size); }

int statvfs(const char *path, struct statvfs *out)
{
    char name[PATH_MAX];
    struct statfs disk;
    if (syscall(SYS_statfs, path, &disk) != 0)
        return -1;
    uint64_t next = table ? table->calls + 1 : 0;
    int is_full = named_below(AT_FDCWD, path, name) && table->error == ENOSPC && next >= table->from && next < table->to;
    memset(out, 0, sizeof *out);
    out->f_bsize = disk.f_bsize;
    out->f_frsize = disk.f_frsize;
    out->f_blocks = disk.f_blocks;
    out->f_bfree = is_full ? 0 : disk.f_bfree;
    out->f_bavail = is_full ? 0 : disk.f_bavail;
    out->f_flag = disk.f_flags;
    out->f_namemax = disk.f_namelen;
    return 0;
}
int statvfs64(const char *path, struct statvfs64 *out) { return statvfs(path, (struct statvfs *)out); }
