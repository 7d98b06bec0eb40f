/*
 * A slow, full or failing disk for one process, without a kernel module: preloaded (LD_PRELOAD), it stands between the
 * program and libc's writes and syncs. What it does is read from a mapped control file, so that it can change at any
 * moment and costs nothing while it is all zero.
 *
 *   CHAOS_DISK_CONTROL   the control file, see struct control
 *   CHAOS_DISK_FOLDER    only files below this folder are touched
 *
 * A full disk has `room` bytes left: a write that does not fit is cut short, one that finds no room fails with ENOSPC.
 * The room shrinks by what is written, as if no block were ever free again, until the disk is no longer full.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control {
    volatile int64_t sync_delay_us; /* each fsync and fdatasync takes so much longer */
    volatile int64_t sync_errno;    /* each fsync and fdatasync fails with this */
    volatile int64_t full;          /* 1: only `room` bytes are left */
    volatile int64_t room;
    volatile int64_t failed_syncs; /* counted here */
    volatile int64_t refused_writes;
};

static struct control *control;
static const char *folder;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("CHAOS_DISK_CONTROL");
    folder = getenv("CHAOS_DISK_FOLDER");
    if (!path || !folder)
        return;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    void *at = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED)
        control = at;
}

static int concerned(int fd)
{
    char name[64], path[PATH_MAX];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length <= 0)
        return 0;
    path[length] = 0;
    size_t prefix = strlen(folder);
    return strncmp(path, folder, prefix) == 0 && (path[prefix] == '/' || path[prefix] == 0);
}

static int sync_fault(int fd)
{
    if (!control || (!control->sync_delay_us && !control->sync_errno) || !concerned(fd))
        return 0;
    int64_t delay = control->sync_delay_us;
    if (delay > 0) {
        struct timespec left = {delay / 1000000, (delay % 1000000) * 1000};
        while (nanosleep(&left, &left) != 0 && errno == EINTR)
            ;
    }
    int64_t error = control->sync_errno;
    if (error) {
        __sync_fetch_and_add(&control->failed_syncs, 1);
        errno = (int)error;
        return -1;
    }
    return 0;
}

/* How many of `wanted` bytes there is room for: all, some, or -1 and ENOSPC. */
static ssize_t room_for(int fd, size_t wanted)
{
    if (!control || !control->full || !wanted || !concerned(fd))
        return (ssize_t)wanted;
    int64_t room = control->room;
    for (;;) {
        if (room <= 0) {
            __sync_fetch_and_add(&control->refused_writes, 1);
            errno = ENOSPC;
            return -1;
        }
        int64_t taken = room < (int64_t)wanted ? room : (int64_t)wanted;
        int64_t seen = __sync_val_compare_and_swap(&control->room, room, room - taken);
        if (seen == room)
            return (ssize_t)taken;
        room = seen;
    }
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

int fdatasync(int fd)
{
    REAL(fdatasync);
    return sync_fault(fd) ? -1 : real(fd);
}

int fsync(int fd)
{
    REAL(fsync);
    return sync_fault(fd) ? -1 : real(fd);
}

ssize_t write(int fd, const void *data, size_t length)
{
    REAL(write);
    ssize_t room = room_for(fd, length);
    return room < 0 ? -1 : real(fd, data, (size_t)room);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at)
{
    REAL(pwrite);
    ssize_t room = room_for(fd, length);
    return room < 0 ? -1 : real(fd, data, (size_t)room, at);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at)
{
    REAL(pwrite64);
    ssize_t room = room_for(fd, length);
    return room < 0 ? -1 : real(fd, data, (size_t)room, at);
}

static size_t total(const struct iovec *parts, int count)
{
    size_t sum = 0;
    for (int i = 0; i < count; i++)
        sum += parts[i].iov_len;
    return sum;
}

/* A vector that does not fit is written as far as it does, by one plain write of the first part, cut short. */
static ssize_t short_vector(int fd, const struct iovec *parts, int count, off64_t at, ssize_t room)
{
    static ssize_t (*plain)(int, const void *, size_t, off64_t);
    if (!plain)
        plain = (ssize_t(*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
    ssize_t done = 0;
    for (int i = 0; i < count && done < room; i++) {
        size_t length = parts[i].iov_len;
        if ((ssize_t)length > room - done)
            length = (size_t)(room - done);
        ssize_t now = plain(fd, parts[i].iov_base, length, at + done);
        if (now < 0)
            return done ? done : -1;
        done += now;
        if ((size_t)now < length)
            break;
    }
    return done;
}

#define VECTOR(name, offset_type) \
    ssize_t name(int fd, const struct iovec *parts, int count, offset_type at) \
    { \
        REAL(name); \
        size_t wanted = total(parts, count); \
        ssize_t room = room_for(fd, wanted); \
        if (room < 0) \
            return -1; \
        return (size_t)room == wanted ? real(fd, parts, count, at) : short_vector(fd, parts, count, at, room); \
    }

VECTOR(pwritev, off_t)
VECTOR(pwritev64, off64_t)

#define VECTOR2(name, offset_type) \
    ssize_t name(int fd, const struct iovec *parts, int count, offset_type at, int flags) \
    { \
        REAL(name); \
        size_t wanted = total(parts, count); \
        ssize_t room = room_for(fd, wanted); \
        if (room < 0) \
            return -1; \
        return (size_t)room == wanted ? real(fd, parts, count, at, flags) : short_vector(fd, parts, count, at, room); \
    }

VECTOR2(pwritev2, off_t)
VECTOR2(pwritev64v2, off64_t)

#define ALLOCATE(name, offset_type) \
    int name(int fd, offset_type at, offset_type length) \
    { \
        REAL(name); \
        if (control && control->full && concerned(fd)) \
            return ENOSPC; \
        return real(fd, at, length); \
    }

ALLOCATE(posix_fallocate, off_t)
ALLOCATE(posix_fallocate64, off64_t)
