#include "runtime/uuid.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/random.h>

#include "runtime/clock.h"
#include "runtime/log.h"

/* Random bytes are drawn in batches: a system call an id would cost more than all the rest. */
static unsigned char pool[1024];
static size_t pool_left;
static bool watched;

/* A child must not hand out what its parent has drawn: two workers would make the same ids. */
static void forget_pool(void) {
    pool_left = 0;
}

static void random_bytes(unsigned char *out, size_t n) {
    if (pool_left < n) {
        if (!watched && pthread_atfork(NULL, NULL, forget_pool) != 0) {
            log_line(LOG_ERROR, "no memory to keep ids apart after a fork");
            abort();
        }
        watched = true;
        size_t got = 0;
        while (got < sizeof pool) {
            ssize_t r = getrandom(pool + got, sizeof pool - got, 0);
            if (r < 0 && errno == EINTR) continue;
            if (r < 0) {
                /* The kernel has no randomness to give: an id that may repeat must never be made. */
                log_line(LOG_ERROR, "getrandom failed with errno %d", errno);
                abort();
            }
            got += (size_t)r;
        }
        pool_left = sizeof pool;
    }
    memcpy(out, pool + sizeof pool - pool_left, n);
    pool_left -= n;
}

static void print(const unsigned char id[16], char out[37]) {
    static const char hex[] = "0123456789abcdef";
    char *p = out;
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10) *p++ = '-';
        *p++ = hex[id[i] >> 4];
        *p++ = hex[id[i] & 15];
    }
    *p = '\0';
}

void uuid_v7(char out[37]) {
    static int64_t last_ms;
    static unsigned counter; /* 12 bits of rand_a, RFC 9562 method 1 */
    unsigned char id[16];
    random_bytes(id + 6, 10);
    int64_t ms = clock_now();
    if (ms <= last_ms && last_ms - ms < 10000) {
        ms = last_ms;
        if (++counter > 0xFFF) {
            ms++;
            counter = 0;
        }
    } else {
        counter = ((unsigned)id[6] << 8 | id[7]) & 0x7FF; /* top bit clear: room to count */
    }
    last_ms = ms;
    for (int i = 0; i < 6; i++) id[i] = (unsigned char)((uint64_t)ms >> (40 - 8 * i));
    id[6] = (unsigned char)(0x70 | counter >> 8);
    id[7] = (unsigned char)counter;
    id[8] = (unsigned char)((id[8] & 0x3F) | 0x80);
    print(id, out);
}

void uuid_v4(char out[37]) {
    unsigned char id[16];
    random_bytes(id, 16);
    id[6] = (unsigned char)((id[6] & 0x0F) | 0x40);
    id[8] = (unsigned char)((id[8] & 0x3F) | 0x80);
    print(id, out);
}

bool uuid_valid(struct str s) {
    if (s.len != 36) return false;
    for (size_t i = 0; i < 36; i++) {
        char c = s.at[i];
        if (i == 8 || i == 13 || i == 18 || i == 23) {
            if (c != '-') return false;
        } else if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))) {
            return false;
        }
    }
    return true;
}
