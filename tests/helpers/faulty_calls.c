/* Calls of the C library that fail on cue, for processes that preload this library.

   `fault_arm(kind, nth, prefix)` arms one fault in the calling process: from then on calls that
   concern files under `prefix` are counted, and the nth call of the kind fails. A full disk and a
   read-only one fail at every later call too; the others fail once. `clock` turns the clock of the
   day back by `nth` seconds at once. Forked processes that arm nothing see no difference. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { NONE, WRITE_EIO, WRITE_SHORT, DISK_FULL, READ_ONLY, SYNC_EIO, READ_EIO, CLOCK };
static const char *const NAMES[] = {"",          "write_eio", "write_short", "disk_full",
                                    "read_only", "sync_eio",  "read_eio",    "clock"};
static volatile int armed = NONE;
static long wanted, calls;
static char root[PATH_MAX];

int fault_arm(const char *kind, long nth, const char *prefix) {
  for (int i = WRITE_EIO; i <= CLOCK; i++)
    if (!strcmp(kind, NAMES[i])) {
      wanted = nth, calls = 0;
      snprintf(root, sizeof root, "%s", prefix);
      armed = i;
      return 0;
    }
  return -1;
}

static int under(const char *path) { return !strncmp(path, root, strlen(root)); }

static int file_under(int fd) {
  char link[64], path[PATH_MAX];
  int saved = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  errno = saved;
  if (length < 0) return 0;
  path[length] = 0;
  return under(path);
}

static int due(void) {
  long call = __sync_add_and_fetch(&calls, 1);
  return armed == DISK_FULL || armed == READ_ONLY ? call >= wanted : call == wanted;
}

#define REAL(name) \
  static __typeof__(name) *real; \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define WRITES(fd, again) \
  if ((armed == WRITE_EIO || armed == WRITE_SHORT || armed == DISK_FULL) && file_under(fd) && \
      due()) { \
    if (armed == WRITE_SHORT) return again; \
    errno = armed == DISK_FULL ? ENOSPC : EIO; \
    return -1; \
  }
#define FAILS(kind, condition, error) \
  if (armed == (kind) && (condition) && due()) { \
    errno = error; \
    return -1; \
  }

ssize_t write(int fd, const void *data, size_t size) {
  REAL(write);
  WRITES(fd, real(fd, data, size > 1 ? size / 2 : size))
  return real(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  REAL(pwrite);
  WRITES(fd, real(fd, data, size > 1 ? size / 2 : size, at))
  return real(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  REAL(pwrite64);
  WRITES(fd, real(fd, data, size > 1 ? size / 2 : size, at))
  return real(fd, data, size, at);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(writev);
  WRITES(fd, real(fd, parts, count > 1 ? count / 2 : count))
  return real(fd, parts, count);
}
ssize_t read(int fd, void *data, size_t size) {
  REAL(read);
  FAILS(READ_EIO, file_under(fd), EIO)
  return real(fd, data, size);
}
ssize_t pread(int fd, void *data, size_t size, off_t at) {
  REAL(pread);
  FAILS(READ_EIO, file_under(fd), EIO)
  return real(fd, data, size, at);
}
ssize_t pread64(int fd, void *data, size_t size, off64_t at) {
  REAL(pread64);
  FAILS(READ_EIO, file_under(fd), EIO)
  return real(fd, data, size, at);
}
int fsync(int fd) {
  REAL(fsync);
  FAILS(SYNC_EIO, file_under(fd), EIO)
  return real(fd);
}
int fdatasync(int fd) {
  REAL(fdatasync);
  FAILS(SYNC_EIO, file_under(fd), EIO)
  return real(fd);
}

#define CREATES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))
#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    FAILS(READ_ONLY, CREATES(flags) && under(path), EROFS) \
    return real(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
  int name(int at, const char *path, int flags, ...) { \
    REAL(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    FAILS(READ_ONLY, CREATES(flags) && (*path == '/' ? under(path) : file_under(at)), EROFS) \
    return real(at, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)
int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  FAILS(READ_ONLY, under(path), EROFS)
  return real(path, mode);
}
int rename(const char *from, const char *to) {
  REAL(rename);
  FAILS(READ_ONLY, under(to), EROFS)
  return real(from, to);
}
int unlink(const char *path) {
  REAL(unlink);
  FAILS(READ_ONLY, under(path), EROFS)
  return real(path);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  REAL(clock_gettime);
  int status = real(clock, now);
  if (armed == CLOCK && clock == CLOCK_REALTIME) now->tv_sec -= wanted;
  return status;
}
