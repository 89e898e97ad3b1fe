/* A wall clock that steps on command: preloaded into a program (LD_PRELOAD), it adds to what the program is told of the time.
 *
 * CLOCK_STEPS names a file that is mapped into every such program and into the test: a signed 64-bit number of seconds; see
 * tests/fakes/clock_steps.py. Clocks that only count on (CLOCK_MONOTONIC and others) are left alone, as a real step does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static _Atomic int64_t *ahead;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void open_control(void)
{
    real_clock_gettime = (int (*)(clockid_t, struct timespec *))(uintptr_t)dlsym(RTLD_NEXT, "clock_gettime");
    const char *name = getenv("CLOCK_STEPS");
    int fd = name == NULL ? -1 : open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped != MAP_FAILED)
        ahead = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    /* Another library's constructor may ask before the one above has run. */
    if (real_clock_gettime == NULL)
        open_control();
    int result = real_clock_gettime(clock, now);
    if (result == 0 && ahead != NULL && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += atomic_load(ahead);
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    (void)zone;
    struct timespec precise;
    int result = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return result;
}

time_t time(time_t *now)
{
    struct timespec precise;
    if (clock_gettime(CLOCK_REALTIME, &precise) != 0)
        return -1;
    if (now != NULL)
        *now = precise.tv_sec;
    return precise.tv_sec;
}
