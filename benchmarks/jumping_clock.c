/* A wall clock that jumps; crash_test.py preloads it into runs.
 *
 * Every five seconds of real time the clock jumps to another time, up to two days
 * before or after the real one, as with a broken NTP server or a migrated virtual
 * machine. The monotonic clock is unchanged, as the kernel guarantees. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

static int (*real_clock)(clockid_t, struct timespec *);

static long jumped(void) {
  struct timespec now;
  real_clock(CLOCK_MONOTONIC, &now);
  unsigned int mixed = (unsigned int)now.tv_sec / 5;
  for (int i = 0; i < 2; i++) mixed = (mixed ^ mixed >> 16) * 0x45d9f3bu;
  return (long)(mixed % (4 * 86400)) - 2 * 86400;
}

int clock_gettime(clockid_t id, struct timespec *now) {
  if (!real_clock)
    real_clock = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT,
                                                              "clock_gettime");
  int failed = real_clock(id, now);
  if (!failed && id == CLOCK_REALTIME) now->tv_sec += jumped();
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  (void)zone;
  struct timespec at;
  int failed = clock_gettime(CLOCK_REALTIME, &at);
  now->tv_sec = at.tv_sec;
  now->tv_usec = at.tv_nsec / 1000;
  return failed;
}

time_t time(time_t *result) {
  struct timespec at;
  clock_gettime(CLOCK_REALTIME, &at);
  if (result) *result = at.tv_sec;
  return at.tv_sec;
}
