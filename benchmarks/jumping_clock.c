/* A wall clock that jumps: preloaded by crash_test.py into runs.
 *
 * Every five seconds of real time the clock is somewhere else, up to two days
 * before or after what the machine says, as after a bad NTP server or a virtual
 * machine that was moved. The monotonic clock is left alone, as the kernel
 * promises. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

static int (*machine)(clockid_t, struct timespec *);

static long jumped(void) {
  struct timespec now;
  machine(CLOCK_MONOTONIC, &now);
  unsigned int mixed = (unsigned int)now.tv_sec / 5;
  for (int i = 0; i < 2; i++) mixed = (mixed ^ mixed >> 16) * 0x45d9f3bu;
  return (long)(mixed % (4 * 86400)) - 2 * 86400;
}

int clock_gettime(clockid_t id, struct timespec *now) {
  if (!machine)
    machine = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT,
                                                           "clock_gettime");
  int failed = machine(id, now);
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

time_t time(time_t *told) {
  struct timespec at;
  clock_gettime(CLOCK_REALTIME, &at);
  if (told) *told = at.tv_sec;
  return at.tv_sec;
}
