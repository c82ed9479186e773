#include "crypto/password.h"

#include <assert.h>
#include <crypt.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>

#include "runtime/loop.h"

/* How many hash at the same time. The pool's other threads stay free for files and names, which take microseconds. */
#define RUNNING 2
#define MEMORY_MAX_KIB 4194304

static unsigned limit = 64, under_way, running;
static struct password_job *first, *last; /* waiting, oldest first */

bool password_cost_parse(struct str text, struct password_cost *out) {
    int64_t n[3];
    for (int i = 0; i < 3; i++) {
        const char *comma = i < 2 ? memchr(text.at, ',', text.len) : NULL;
        if (i < 2 && !comma) return false;
        size_t len = comma ? (size_t)(comma - text.at) : text.len;
        if (!str_int64(str_trim(str_n(text.at, len)), &n[i])) return false;
        if (comma) text = str_n(comma + 1, text.len - len - 1);
    }
    if (n[0] < 8 || n[0] > MEMORY_MAX_KIB || n[1] < 1 || n[1] > 100 || n[2] != 1) return false;
    *out = (struct password_cost){.memory_kib = (uint32_t)n[0], .passes = (uint32_t)n[1]};
    return true;
}

static bool number_after(struct str hash, const char *name, int64_t *out) {
    size_t n = strlen(name);
    for (size_t i = 0; i + n < hash.len; i++) {
        if (memcmp(hash.at + i, name, n) != 0) continue;
        size_t end = i + n;
        while (end < hash.len && hash.at[end] >= '0' && hash.at[end] <= '9') end++;
        return str_int64(str_n(hash.at + i + n, end - i - n), out);
    }
    return false;
}

bool password_needs_rehash(struct str hash, struct password_cost cost) {
    int64_t memory, passes;
    if (!str_starts(hash, STR("$argon2id$")) || !number_after(hash, "$m=", &memory) ||
        !number_after(hash, ",t=", &passes))
        return true;
    return memory < cost.memory_kib || passes < cost.passes;
}

bool password_hash(struct str password, struct password_cost cost, char out[PASSWORD_HASH_MAX], struct error *err) {
    if (password.len > PASSWORD_MAX) return error_set(err, ERR_LIMIT, "a password has at most %d bytes", PASSWORD_MAX);
    _Static_assert(crypto_pwhash_argon2id_STRBYTES <= PASSWORD_HASH_MAX, "room for a hash");
    if (crypto_pwhash_argon2id_str(out, password.at, password.len, cost.passes, (size_t)cost.memory_kib * 1024) != 0)
        return error_set(err, ERR_MEMORY, "no memory for the password hash");
    return true;
}

static bool verify_bcrypt(struct str password, const char *hash) {
    /* A password with a NUL would be cut there. */
    if (memchr(password.at, '\0', password.len)) return false;
    char *phrase = strndup(password.at, password.len);
    struct crypt_data *data = calloc(1, sizeof *data);
    const char *made = phrase && data ? crypt_r(phrase, hash, data) : NULL;
    bool match = made && made[0] != '*' && strlen(made) == strlen(hash) && sodium_memcmp(made, hash, strlen(hash)) == 0;
    if (phrase) sodium_memzero(phrase, password.len);
    free(phrase);
    free(data);
    return match;
}

bool password_verify(struct str password, struct str hash) {
    char text[PASSWORD_HASH_MAX];
    if (password.len > PASSWORD_MAX || hash.len >= sizeof text) return false;
    memcpy(text, hash.at, hash.len);
    text[hash.len] = '\0';
    if (str_starts(hash, STR("$argon2id$")))
        return crypto_pwhash_argon2id_str_verify(text, password.at, password.len) == 0;
    bool bcrypt = str_starts(hash, STR("$2a$")) || str_starts(hash, STR("$2b$")) || str_starts(hash, STR("$2y$"));
    return bcrypt && verify_bcrypt(password, text);
}

struct password_job {
    uv_work_t work;
    struct password_job *next;
    bool waiting;
    password_done *done; /* NULL: forgotten */
    void *data;
    bool verify, match, ok;
    struct password_cost cost;
    struct error error;
    char hash[PASSWORD_HASH_MAX];
    size_t password_len;
    char password[PASSWORD_MAX];
};

static void work(uv_work_t *w) {
    struct password_job *j = w->data;
    struct str password = str_n(j->password, j->password_len);
    if (j->verify) {
        j->match = password_verify(password, str_of(j->hash));
        j->ok = true;
    } else {
        j->ok = password_hash(password, j->cost, j->hash, &j->error);
    }
    sodium_memzero(j->password, sizeof j->password);
}

static void run_waiting(void);

static void drop(struct password_job *j) {
    under_way--;
    sodium_memzero(j, sizeof *j);
    free(j);
}

static void worked(uv_work_t *w, int status) {
    struct password_job *j = w->data;
    running--;
    run_waiting();
    if (status != 0) j->ok = error_set(&j->error, ERR_CANCELLED, "the work was cancelled");
    if (j->done) j->done(j->data, j->verify ? "" : j->hash, j->match, j->ok ? NULL : &j->error);
    drop(j);
}

static void run_waiting(void) {
    while (first && running < RUNNING) {
        struct password_job *j = first;
        first = j->next;
        if (!first) last = NULL;
        j->waiting = false;
        int failed = uv_queue_work(loop_get(), &j->work, work, worked);
        assert(!failed); /* only a missing callback fails */
        (void)failed;
        running++;
    }
}

void password_queue_limit(unsigned jobs) {
    limit = jobs;
}

static struct password_job *start(struct str password, password_done *done, void *data, struct error *err) {
    if (password.len > PASSWORD_MAX) {
        error_set(err, ERR_LIMIT, "a password has at most %d bytes", PASSWORD_MAX);
        return NULL;
    }
    if (under_way >= limit) {
        error_set(err, ERR_BUSY, "too many passwords are being checked");
        return NULL;
    }
    struct password_job *j = calloc(1, sizeof *j);
    if (!j) {
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    j->work.data = j;
    j->done = done;
    j->data = data;
    j->password_len = password.len;
    if (password.len) memcpy(j->password, password.at, password.len);
    return j;
}

static struct password_job *queue(struct password_job *j) {
    under_way++;
    j->waiting = true;
    if (last)
        last->next = j;
    else
        first = j;
    last = j;
    run_waiting();
    return j;
}

struct password_job *password_hash_later(struct str password, struct password_cost cost, password_done *done,
                                         void *data, struct error *err) {
    struct password_job *j = start(password, done, data, err);
    if (!j) return NULL;
    j->cost = cost;
    return queue(j);
}

struct password_job *password_verify_later(struct str password, struct str hash, password_done *done, void *data,
                                           struct error *err) {
    struct password_job *j = start(password, done, data, err);
    if (!j) return NULL;
    j->verify = true;
    size_t n = hash.len < sizeof j->hash ? hash.len : 0; /* a longer one is no hash of ours: it matches nothing */
    memcpy(j->hash, hash.at, n);
    return queue(j);
}

void password_forget(struct password_job *job) {
    job->done = NULL;
    if (!job->waiting) return; /* it runs: worked() drops it */
    struct password_job **at = &first, *before = NULL;
    while (*at != job) {
        before = *at;
        at = &before->next;
    }
    *at = job->next;
    if (last == job) last = before;
    drop(job);
}
