/* Makes one call of the operating system fail: a library for LD_PRELOAD that stands before those of libc that deal with
 * files. Calls about paths under given folders are counted, over all threads and forked processes, and noted down; the
 * chosen one fails once. See __init__.py, which writes the control file and reads it afterwards.
 *
 * A call through a descriptor is about the path that /proc/self/fd names, so that nothing has to be tracked. What libc
 * calls within itself, such as the reads of a FILE, does not pass through here, and neither do page faults of mappings.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ERROR = 0, SHORT = 1, TORN = 2 };
enum { MAX_CALLS = 65536, NAME = 24, PATH = 232, END = 64 };

struct call {
    char name[NAME];
    char path[PATH];
};

/* The layout is that of `_HEADER` and `_CALL` in __init__.py. */
struct control {
    _Atomic int64_t n_calls; /* so far */
    int64_t fail_at;         /* the number of the call that fails, from 1, or of an earlier one; 0: none */
    _Atomic int64_t fired;   /* the number of the call that has failed; 0: none has */
    int32_t error;           /* its errno */
    int32_t mode;
    int32_t of_memory;       /* 0: calls about files count; else allocations of tensors do */
    _Atomic int32_t pending; /* 1 while the write after half a one is to fail */
    char name[NAME];         /* of the call that fails; empty: any */
    char end[END];           /* of its path; empty: any */
    char folders[1024];      /* separated by ':' */
    struct call calls[MAX_CALLS];
};

static struct control *control = NULL;

void io_faults_attach(const char *file) {
    int (*real_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int (*real_close)(int) = dlsym(RTLD_NEXT, "close");
    void *(*real_mmap)(void *, size_t, int, int, int, off_t) = dlsym(RTLD_NEXT, "mmap");
    int fd = real_open(file, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *mapped = real_mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    real_close(fd);
    if (mapped != MAP_FAILED) control = mapped;
}

/* A process that was started by one with a control file has the same. */
__attribute__((constructor)) static void at_start(void) {
    const char *file = getenv("IO_FAULTS_CONTROL");
    if (file != NULL) io_faults_attach(file);
}

static int is_under_a_folder(const char *path) {
    for (const char *folder = control->folders; *folder;) {
        size_t length = strcspn(folder, ":");
        if (!strncmp(path, folder, length) && (path[length] == '/' || path[length] == 0)) return 1;
        folder += length + (folder[length] == ':');
    }
    return 0;
}

/* The path of a descriptor into `out` [PATH_MAX]; 0 if it has none. */
static int path_of(int fd, char *out) {
    static ssize_t (*real)(const char *, char *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "readlink");
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = real(link, out, PATH_MAX - 1);
    if (n <= 0 || out[0] != '/') return 0;
    out[n] = 0;
    return 1;
}

static const char *absolute(int folder, const char *path, char *out) {
    if (path == NULL) return NULL;
    if (path[0] == '/') return path;
    char top[PATH_MAX];
    if (folder == AT_FDCWD ? getcwd(top, sizeof top) == NULL : !path_of(folder, top)) return NULL;
    if (path[0] == 0) snprintf(out, PATH_MAX, "%s", top);
    else snprintf(out, 2 * PATH_MAX, "%s/%s", top, path);
    return out;
}

static int is_due(int64_t number, const char *name, const char *path) {
    if (!control->fail_at || number < control->fail_at) return 0;
    if (control->name[0] && strcmp(name, control->name)) return 0;
    size_t length = strlen(path), end = strlen(control->end);
    return length >= end && !strcmp(path + length - end, control->end);
}

/* What is to become of a call: -1 nothing, else the mode in which it fails. */
static int judge_call(const char *name, const char *path, int is_write) {
    int64_t number = atomic_fetch_add(&control->n_calls, 1) + 1;
    if (number <= MAX_CALLS) {
        struct call *call = &control->calls[number - 1];
        snprintf(call->name, NAME, "%s", name);
        snprintf(call->path, PATH, "%s", path);
    }
    int64_t none = 0;
    if (is_due(number, name, path) && atomic_compare_exchange_strong(&control->fired, &none, number)) {
        if (control->mode == TORN) control->pending = 1;
        return control->mode;
    }
    if (is_write && atomic_exchange(&control->pending, 0)) return ERROR;
    return -1;
}

/* The same for a call about an absolute path. */
static int judge(const char *name, const char *path, int is_write) {
    return path == NULL || !is_under_a_folder(path) ? -1 : judge_call(name, path, is_write);
}

static int judge_at(const char *name, int folder, const char *path) {
    if (control == NULL || control->of_memory) return -1;
    int error = errno;
    char buffer[2 * PATH_MAX];
    int found = judge(name, absolute(folder, path, buffer), 0);
    errno = error;
    return found;
}

static int judge_fd(const char *name, int fd, int is_write) {
    if (control == NULL || control->of_memory) return -1;
    int error = errno;
    char buffer[PATH_MAX];
    int found = path_of(fd, buffer) ? judge(name, buffer, is_write) : -1;
    errno = error;
    return found;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define FAIL(value) \
    do { \
        errno = control->error; \
        return value; \
    } while (0)

/* Calls about a path, or about one that is relative to a folder's descriptor. Half of such a call is a whole one. */
#define PATH_CALL(type, failed, name, folder, path, parameters, arguments) \
    type name parameters { \
        REAL(name); \
        if (judge_at(#name, folder, path) == ERROR) FAIL(failed); \
        return real arguments; \
    }
#define FD_CALL(type, failed, name, parameters, arguments) \
    type name parameters { \
        REAL(name); \
        if (judge_fd(#name, fd, 0) == ERROR) FAIL(failed); \
        return real arguments; \
    }
/* Calls that wait for the disk do not, under a control file: it is not power that fails here. */
#define SYNCING_CALL(name) \
    int name(int fd) { \
        REAL(name); \
        if (judge_fd(#name, fd, 0) == ERROR) FAIL(-1); \
        return control == NULL ? real(fd) : 0; \
    }
/* Calls that move `n` bytes; half of it may be moved. */
#define MOVING_CALL(name, is_write, half, parameters, arguments) \
    ssize_t name parameters { \
        REAL(name); \
        int found = judge_fd(#name, fd, is_write); \
        if (found == ERROR) FAIL(-1); \
        if (found > ERROR) { half; } \
        return real arguments; \
    }
#define HALF n = n > 1 ? n / 2 : n

#define OPENING_CALL(name, folder, parameters, last, arguments) \
    int name parameters { \
        REAL(name); \
        mode_t mode = 0; \
        if (flags & (O_CREAT | __O_TMPFILE)) { \
            va_list list; \
            va_start(list, last); \
            mode = va_arg(list, mode_t); \
            va_end(list); \
        } \
        if (judge_at(flags & O_CREAT ? #name " creating" : #name, folder, path) == ERROR) FAIL(-1); \
        return real arguments; \
    }
OPENING_CALL(open, AT_FDCWD, (const char *path, int flags, ...), flags, (path, flags, mode))
OPENING_CALL(open64, AT_FDCWD, (const char *path, int flags, ...), flags, (path, flags, mode))
OPENING_CALL(openat, folder, (int folder, const char *path, int flags, ...), flags, (folder, path, flags, mode))
OPENING_CALL(openat64, folder, (int folder, const char *path, int flags, ...), flags, (folder, path, flags, mode))

PATH_CALL(int, -1, creat, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
PATH_CALL(int, -1, creat64, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
PATH_CALL(FILE *, NULL, fopen, AT_FDCWD, path, (const char *path, const char *mode), (path, mode))
PATH_CALL(FILE *, NULL, fopen64, AT_FDCWD, path, (const char *path, const char *mode), (path, mode))
PATH_CALL(DIR *, NULL, opendir, AT_FDCWD, path, (const char *path), (path))
PATH_CALL(int, -1, mkdir, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
PATH_CALL(int, -1, mkdirat, folder, path, (int folder, const char *path, mode_t mode), (folder, path, mode))
PATH_CALL(int, -1, rmdir, AT_FDCWD, path, (const char *path), (path))
PATH_CALL(int, -1, unlink, AT_FDCWD, path, (const char *path), (path))
PATH_CALL(int, -1, unlinkat, folder, path, (int folder, const char *path, int flags), (folder, path, flags))
PATH_CALL(int, -1, rename, AT_FDCWD, b, (const char *a, const char *b), (a, b))
PATH_CALL(int, -1, renameat, to, b, (int from, const char *a, int to, const char *b), (from, a, to, b))
PATH_CALL(int, -1, renameat2, to, b, (int from, const char *a, int to, const char *b, unsigned flags),
          (from, a, to, b, flags))
PATH_CALL(int, -1, link, AT_FDCWD, b, (const char *a, const char *b), (a, b))
PATH_CALL(int, -1, linkat, to, b, (int from, const char *a, int to, const char *b, int flags), (from, a, to, b, flags))
PATH_CALL(int, -1, symlink, AT_FDCWD, b, (const char *a, const char *b), (a, b))
PATH_CALL(int, -1, symlinkat, to, b, (const char *a, int to, const char *b), (a, to, b))
PATH_CALL(ssize_t, -1, readlink, AT_FDCWD, path, (const char *path, char *to, size_t n), (path, to, n))
PATH_CALL(ssize_t, -1, readlinkat, folder, path, (int folder, const char *path, char *to, size_t n),
          (folder, path, to, n))
PATH_CALL(int, -1, chmod, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
PATH_CALL(int, -1, fchmodat, folder, path, (int folder, const char *path, mode_t mode, int flags),
          (folder, path, mode, flags))
PATH_CALL(int, -1, utimensat, folder, path, (int folder, const char *path, const struct timespec times[2], int flags),
          (folder, path, times, flags))
PATH_CALL(int, -1, truncate, AT_FDCWD, path, (const char *path, off_t n), (path, n))
PATH_CALL(int, -1, truncate64, AT_FDCWD, path, (const char *path, off64_t n), (path, n))
PATH_CALL(int, -1, access, AT_FDCWD, path, (const char *path, int mode), (path, mode))
PATH_CALL(int, -1, faccessat, folder, path, (int folder, const char *path, int mode, int flags),
          (folder, path, mode, flags))
PATH_CALL(int, -1, stat, AT_FDCWD, path, (const char *path, struct stat *to), (path, to))
PATH_CALL(int, -1, lstat, AT_FDCWD, path, (const char *path, struct stat *to), (path, to))
PATH_CALL(int, -1, stat64, AT_FDCWD, path, (const char *path, struct stat64 *to), (path, to))
PATH_CALL(int, -1, lstat64, AT_FDCWD, path, (const char *path, struct stat64 *to), (path, to))
PATH_CALL(int, -1, fstatat, folder, path, (int folder, const char *path, struct stat *to, int flags),
          (folder, path, to, flags))
PATH_CALL(int, -1, fstatat64, folder, path, (int folder, const char *path, struct stat64 *to, int flags),
          (folder, path, to, flags))
PATH_CALL(int, -1, statx, folder, path,
          (int folder, const char *path, int flags, unsigned mask, struct statx *to), (folder, path, flags, mask, to))
PATH_CALL(int, -1, statvfs, AT_FDCWD, path, (const char *path, struct statvfs *to), (path, to))
PATH_CALL(int, -1, statvfs64, AT_FDCWD, path, (const char *path, struct statvfs64 *to), (path, to))

FD_CALL(int, -1, fstat, (int fd, struct stat *to), (fd, to))
FD_CALL(int, -1, fstat64, (int fd, struct stat64 *to), (fd, to))
SYNCING_CALL(fsync)
SYNCING_CALL(fdatasync)
FD_CALL(int, -1, ftruncate, (int fd, off_t n), (fd, n))
FD_CALL(int, -1, ftruncate64, (int fd, off64_t n), (fd, n))
FD_CALL(int, -1, fallocate, (int fd, int mode, off_t at, off_t n), (fd, mode, at, n))
FD_CALL(int, -1, fallocate64, (int fd, int mode, off64_t at, off64_t n), (fd, mode, at, n))
FD_CALL(int, control->error, posix_fallocate, (int fd, off_t at, off_t n), (fd, at, n))
FD_CALL(int, control->error, posix_fallocate64, (int fd, off64_t at, off64_t n), (fd, at, n))
FD_CALL(int, -1, fchmod, (int fd, mode_t mode), (fd, mode))
FD_CALL(int, -1, futimens, (int fd, const struct timespec times[2]), (fd, times))
FD_CALL(int, -1, flock, (int fd, int operation), (fd, operation))
FD_CALL(int, -1, fstatvfs, (int fd, struct statvfs *to), (fd, to))
FD_CALL(int, -1, fstatvfs64, (int fd, struct statvfs64 *to), (fd, to))
FD_CALL(DIR *, NULL, fdopendir, (int fd), (fd))
FD_CALL(void *, MAP_FAILED, mmap, (void *at, size_t n, int prot, int flags, int fd, off_t from),
        (at, n, prot, flags, fd, from))
FD_CALL(void *, MAP_FAILED, mmap64, (void *at, size_t n, int prot, int flags, int fd, off64_t from),
        (at, n, prot, flags, fd, from))

MOVING_CALL(read, 0, HALF, (int fd, void *to, size_t n), (fd, to, n))
MOVING_CALL(pread, 0, HALF, (int fd, void *to, size_t n, off_t at), (fd, to, n, at))
MOVING_CALL(pread64, 0, HALF, (int fd, void *to, size_t n, off64_t at), (fd, to, n, at))
MOVING_CALL(readv, 0, (void)0, (int fd, const struct iovec *to, int n), (fd, to, n))
MOVING_CALL(write, 1, HALF, (int fd, const void *from, size_t n), (fd, from, n))
MOVING_CALL(pwrite, 1, HALF, (int fd, const void *from, size_t n, off_t at), (fd, from, n, at))
MOVING_CALL(pwrite64, 1, HALF, (int fd, const void *from, size_t n, off64_t at), (fd, from, n, at))
MOVING_CALL(sendfile, 1, HALF, (int fd, int in, off_t *at, size_t n), (fd, in, at, n))
MOVING_CALL(sendfile64, 1, HALF, (int fd, int in, off64_t *at, size_t n), (fd, in, at, n))
MOVING_CALL(copy_file_range, 1, HALF, (int in, off64_t *from, int fd, off64_t *to, size_t n, unsigned flags),
            (in, from, fd, to, n, flags))

ssize_t writev(int fd, const struct iovec *from, int n) {
    REAL(writev);
    int found = judge_fd("writev", fd, 1);
    if (found == ERROR) FAIL(-1);
    if (found > ERROR && n > 0) {
        struct iovec half = {from[0].iov_base, from[0].iov_len > 1 ? from[0].iov_len / 2 : from[0].iov_len};
        return real(fd, &half, 1);
    }
    return real(fd, from, n);
}

/* A file is closed even if closing it fails. */
int close(int fd) {
    REAL(close);
    int found = judge_fd("close", fd, 0);
    int result = real(fd);
    if (found == ERROR) FAIL(-1);
    return result;
}

struct dirent *readdir(DIR *folder) {
    REAL(readdir);
    if (judge_fd("readdir", dirfd(folder), 0) == ERROR) FAIL(NULL);
    return real(folder);
}

struct dirent64 *readdir64(DIR *folder) {
    REAL(readdir64);
    if (judge_fd("readdir64", dirfd(folder), 0) == ERROR) FAIL(NULL);
    return real(folder);
}

/* Memory: torch allocates tensors on a CPU with posix_memalign, in libc10. oneDNN within libtorch_cpu does too for its
 * working space, but does not survive that there is none. */

typedef void namer(char name[NAME], char path[PATH]);
static namer *name_allocation = NULL;
static __thread int is_naming = 0;

static uintptr_t libc10_from = UINTPTR_MAX, libc10_to = 0;

static int find_libc10(struct dl_phdr_info *library, size_t size, void *unused) {
    (void)size, (void)unused;
    if (strstr(library->dlpi_name, "/libc10.so") == NULL) return 0;
    for (int i = 0; i < library->dlpi_phnum; i++) {
        if (library->dlpi_phdr[i].p_type != PT_LOAD) continue;
        uintptr_t from = library->dlpi_addr + library->dlpi_phdr[i].p_vaddr, to = from + library->dlpi_phdr[i].p_memsz;
        if (from < libc10_from) libc10_from = from;
        if (to > libc10_to) libc10_to = to;
    }
    return 1;
}

/* Python says which of its lines ask for memory: the path of an allocation, whichever thread makes it. */
void io_faults_name_allocations(namer *function) {
    dl_iterate_phdr(find_libc10, NULL);
    name_allocation = function;
}

int posix_memalign(void **to, size_t alignment, size_t n) {
    REAL(posix_memalign);
    if (control == NULL || !control->of_memory || name_allocation == NULL || is_naming) return real(to, alignment, n);
    uintptr_t caller = (uintptr_t)__builtin_return_address(0);
    if (caller < libc10_from || caller >= libc10_to) return real(to, alignment, n);
    char name[NAME] = "", path[PATH] = "";
    is_naming = 1;
    name_allocation(name, path);
    is_naming = 0;
    return judge_call(name, path, 0) == ERROR ? control->error : real(to, alignment, n);
}
