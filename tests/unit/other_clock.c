/* Preloaded into a redis-server: its wall clock is another one. OTHER_CLOCK="<seconds ahead> <rate>", such as
 * "-3600 1.008": an hour behind, and 0.8 % fast from its start on. Redis lets keys expire by gettimeofday; everything
 * else of the process goes on as it was. (Debian's libfaketime cannot be preloaded into a program with jemalloc.) */
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static double real_now(void) {
    struct timespec ts = {0};
    return syscall(SYS_clock_gettime, CLOCK_REALTIME, &ts) == 0 ? (double)ts.tv_sec + (double)ts.tv_nsec / 1e9 : 0;
}

int gettimeofday(struct timeval *restrict tv, void *restrict zone) {
    static double began, ahead, rate;
    (void)zone;
    if (began == 0) {
        const char *text = getenv("OTHER_CLOCK");
        char *rest = NULL;
        ahead = text ? strtod(text, &rest) : 0;
        rate = rest ? strtod(rest, NULL) : 1;
        began = real_now();
    }
    double now = began + ahead + (real_now() - began) * rate;
    tv->tv_sec = (time_t)now;
    tv->tv_usec = (suseconds_t)((now - (double)tv->tv_sec) * 1e6);
    return 0;
}
