/* A disk that fails on command: preloaded into a program (LD_PRELOAD), it lets what the program writes to certain files fail.
 *
 * DISK_FAULTS names a file that is mapped into every such program and into the test; see tests/fakes/disk.py for its layout.
 * DISK_FAULTS_PATH is a part of the names of the files that are concerned.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode {
    HEALTHY = 0,
    FULL = 1,           /* any change: ENOSPC, as where files are copied on write */
    READ_ONLY = 2,      /* any change, and opening for one: EROFS */
    BROKEN = 3,         /* any change: EIO */
    SYNC_LOST = 4,      /* fsync says EIO, and did nothing */
    SYNC_UNCERTAIN = 5, /* fsync says EIO, and did its work */
    CANNOT_GROW = 6,    /* what makes a file longer: ENOSPC */
};

struct control {
    _Atomic int mode;
    _Atomic int left;     /* how many more calls fail; below zero: until the mode is changed */
    _Atomic int injected; /* how many have failed */
};

static struct control *control;
static const char *concerned;

__attribute__((constructor)) static void open_control(void)
{
    const char *name = getenv("DISK_FAULTS");
    concerned = getenv("DISK_FAULTS_PATH");
    if (name == NULL || concerned == NULL)
        return;
    int fd = open(name, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped != MAP_FAILED)
        control = mapped;
}

static int is_concerned(int fd)
{
    char link[32], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = '\0';
    return strstr(path, concerned) != NULL;
}

/* Whether this call is one of those that fail. */
static int takes(void)
{
    int left = atomic_load(&control->left);
    while (left != 0) {
        if (left < 0 || atomic_compare_exchange_weak(&control->left, &left, left - 1)) {
            atomic_fetch_add(&control->injected, 1);
            return 1;
        }
    }
    return 0;
}

/* The error with which a change of fd fails whose last octet is before end; 0 where it does not. */
static int change_error(int fd, off_t end)
{
    int mode = control == NULL ? HEALTHY : atomic_load(&control->mode);
    if (mode == HEALTHY || mode == SYNC_LOST || mode == SYNC_UNCERTAIN || !is_concerned(fd))
        return 0;
    struct stat found;
    if (mode == CANNOT_GROW && fstat(fd, &found) == 0 && end <= found.st_size)
        return 0;
    if (!takes())
        return 0;
    return mode == FULL || mode == CANNOT_GROW ? ENOSPC : mode == READ_ONLY ? EROFS : EIO;
}

static off_t length_of(const struct iovec *parts, int count)
{
    off_t length = 0;
    for (int part = 0; part < count; part++)
        length += parts[part].iov_len;
    return length;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (real == NULL) \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define FAIL_CHANGE(fd, end) \
    int error = change_error(fd, end); \
    if (error != 0) { \
        errno = error; \
        return -1; \
    }

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(write);
    FAIL_CHANGE(fd, lseek(fd, 0, SEEK_CUR) + (off_t)size)
    return real(fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    REAL(pwrite);
    FAIL_CHANGE(fd, offset + (off_t)size)
    return real(fd, data, size, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    REAL(pwrite64);
    FAIL_CHANGE(fd, offset + (off_t)size)
    return real(fd, data, size, offset);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    REAL(pwritev);
    FAIL_CHANGE(fd, offset + length_of(parts, count))
    return real(fd, parts, count, offset);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
    REAL(pwritev64);
    FAIL_CHANGE(fd, offset + length_of(parts, count))
    return real(fd, parts, count, offset);
}

int ftruncate(int fd, off_t size)
{
    REAL(ftruncate);
    FAIL_CHANGE(fd, size)
    return real(fd, size);
}

int ftruncate64(int fd, off64_t size)
{
    REAL(ftruncate64);
    FAIL_CHANGE(fd, size)
    return real(fd, size);
}

int posix_fallocate(int fd, off_t offset, off_t size)
{
    REAL(posix_fallocate);
    int error = change_error(fd, offset + size);
    return error != 0 ? error : real(fd, offset, size);
}

int posix_fallocate64(int fd, off64_t offset, off64_t size)
{
    REAL(posix_fallocate64);
    int error = change_error(fd, offset + size);
    return error != 0 ? error : real(fd, offset, size);
}

/* What a sync has to say instead of its own answer; 0 where it has nothing to say. */
static int sync_error(int fd, int (*real)(int))
{
    int mode = control == NULL ? HEALTHY : atomic_load(&control->mode);
    if ((mode != SYNC_LOST && mode != SYNC_UNCERTAIN && mode != BROKEN) || !is_concerned(fd) || !takes())
        return 0;
    if (mode == SYNC_UNCERTAIN)
        real(fd);
    return EIO;
}

int fsync(int fd)
{
    REAL(fsync);
    int error = sync_error(fd, real);
    if (error != 0) {
        errno = error;
        return -1;
    }
    return real(fd);
}

int fdatasync(int fd)
{
    REAL(fdatasync);
    int error = sync_error(fd, real);
    if (error != 0) {
        errno = error;
        return -1;
    }
    return real(fd);
}

static int refuses_to_open(const char *path, int flags)
{
    if (control == NULL || atomic_load(&control->mode) != READ_ONLY || strstr(path, concerned) == NULL)
        return 0;
    return ((flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT) != 0) && takes();
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        REAL(name); \
        mode_t mode = 0; \
        if ((flags & (O_CREAT | O_TMPFILE)) != 0) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        if (refuses_to_open(path, flags)) { \
            errno = EROFS; \
            return -1; \
        } \
        return real(path, flags, mode); \
    }

OPEN(open)
OPEN(open64)
