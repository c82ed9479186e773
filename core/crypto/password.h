/* Password hashes: argon2id is made and verified, bcrypt ($2a/$2b/$2y) only verified. Both are slow on purpose and
 * never run on the loop: the _later forms use libuv's thread pool behind a queue of bounded length. */
#ifndef KASMA_CRYPTO_PASSWORD_H
#define KASMA_CRYPTO_PASSWORD_H

#include "runtime/error.h"
#include "runtime/str.h"

#define PASSWORD_MAX 1024 /* bytes of a password */
#define PASSWORD_HASH_MAX 128

struct password_cost {
    uint32_t memory_kib, passes;
};

/* "memory,passes,lanes" as in PASSWORD_ARGON2; lanes must be 1, which is what libsodium makes. */
bool password_cost_parse(struct str text, struct password_cost *out);
/* Whether a hash is weaker than `cost`, or no argon2id at all. */
bool password_needs_rehash(struct str hash, struct password_cost cost);

/* Blocking forms, for tests and one-shot commands. `out` gets "$argon2id$..." and NUL. */
bool password_hash(struct str password, struct password_cost cost, char out[PASSWORD_HASH_MAX], struct error *err);
/* A hash of an unknown kind never matches. */
bool password_verify(struct str password, struct str hash);

struct password_job;
/* Called on the loop. `hash` is empty for a verification; `match` is meaningful only for one. */
typedef void password_done(void *data, const char *hash, bool match, const struct error *err);
/* How many jobs may wait or run; the next one is ERR_BUSY. Default 64. */
void password_queue_limit(unsigned jobs);
/* NULL: refused, `err` says why. */
struct password_job *password_hash_later(struct str password, struct password_cost cost, password_done *done,
                                         void *data, struct error *err);
struct password_job *password_verify_later(struct str password, struct str hash, password_done *done, void *data,
                                           struct error *err);
/* done will not be called; the work itself goes on. */
void password_forget(struct password_job *job);

#endif
