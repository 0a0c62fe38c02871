/* Loaded before libc by bench/disk.py: every flush takes FLUSH_NANOSECONDS longer, without CPU, as on a slower disk. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>

static int flushed(const char *name, int file) {
  int (*flush)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
  const char *asked = getenv("FLUSH_NANOSECONDS");
  long long rest = asked ? atoll(asked) : 0;
  struct timespec pause = {.tv_sec = rest / 1000000000, .tv_nsec = rest % 1000000000};
  prctl(PR_SET_TIMERSLACK, 1); /* of this thread; else the kernel may add 50 microseconds */
  while (clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, &pause) == EINTR)
    ;
  return flush(file);
}

int fdatasync(int file) { return flushed("fdatasync", file); }

int fsync(int file) { return flushed("fsync", file); }
