/* core.crypto: arguments and conversion only; see crypto/crypto.h and crypto/password.h. */
#include <lauxlib.h>

#include "crypto/crypto.h"
#include "crypto/password.h"
#include "runtime/config.h"
#include "script/bind.h"
#include "script/guard.h"
#include "script/task.h"

static struct str check_str(lua_State *L, int idx) {
    struct str s;
    s.at = luaL_checklstring(L, idx, &s.len);
    return s;
}

static struct str opt_str(lua_State *L, int idx) {
    struct str s;
    s.at = luaL_optlstring(L, idx, "", &s.len);
    return s;
}

/* The buffer as a Lua string, or nil when making it failed. */
static int give(lua_State *L, bool ok, struct buf *b) {
    if (ok) {
        guard_push_buf(L, b);
    } else {
        buf_free(b);
        lua_pushnil(L);
    }
    return 1;
}

static int give_hex(lua_State *L, const unsigned char *raw, size_t n) {
    struct buf b = {0};
    bool ok = crypto_hex(str_n((const char *)raw, n), &b);
    return give(L, ok, &b);
}

static int l_sha256(lua_State *L) {
    unsigned char out[SHA256_BYTES];
    if (!crypto_sha256(check_str(L, 1), out)) return luaL_error(L, "sha256 failed");
    return give_hex(L, out, sizeof out);
}

static int l_sha256_raw(lua_State *L) {
    unsigned char out[SHA256_BYTES];
    if (!crypto_sha256(check_str(L, 1), out)) return luaL_error(L, "sha256 failed");
    lua_pushlstring(L, (const char *)out, sizeof out);
    return 1;
}

static int l_hmac_sha256(lua_State *L) {
    unsigned char out[SHA256_BYTES];
    if (!crypto_hmac_sha256(check_str(L, 1), check_str(L, 2), out)) return luaL_error(L, "hmac failed");
    return give_hex(L, out, sizeof out);
}

static int l_hmac_sha256_raw(lua_State *L) {
    unsigned char out[SHA256_BYTES];
    if (!crypto_hmac_sha256(check_str(L, 1), check_str(L, 2), out)) return luaL_error(L, "hmac failed");
    lua_pushlstring(L, (const char *)out, sizeof out);
    return 1;
}

static int l_hmac_sha1_raw(lua_State *L) {
    unsigned char out[20];
    if (!crypto_hmac_sha1(check_str(L, 1), check_str(L, 2), out)) return luaL_error(L, "hmac failed");
    lua_pushlstring(L, (const char *)out, sizeof out);
    return 1;
}

static int l_random(lua_State *L) {
    lua_Integer n = luaL_checkinteger(L, 1);
    luaL_argcheck(L, n >= 1 && n <= 65536, 1, "must be 1 to 65536 bytes");
    void *raw = lua_newuserdata(L, (size_t)n);
    crypto_random(raw, (size_t)n);
    lua_pushlstring(L, raw, (size_t)n);
    return 1;
}

static int l_random_hex(lua_State *L) {
    lua_Integer n = luaL_checkinteger(L, 1);
    luaL_argcheck(L, n >= 1 && n <= 1024, 1, "must be 1 to 1024 bytes");
    unsigned char raw[1024];
    crypto_random(raw, (size_t)n);
    return give_hex(L, raw, (size_t)n);
}

static int l_equal(lua_State *L) {
    lua_pushboolean(L, crypto_equal(check_str(L, 1), check_str(L, 2)));
    return 1;
}

static int l_hex(lua_State *L) {
    struct buf b = {0};
    bool ok = crypto_hex(check_str(L, 1), &b);
    return give(L, ok, &b);
}

static int l_unhex(lua_State *L) {
    struct buf b = {0};
    bool ok = crypto_unhex(check_str(L, 1), &b);
    return give(L, ok, &b);
}

static int l_base64(lua_State *L) {
    struct buf b = {0};
    bool ok = crypto_base64(check_str(L, 1), false, &b);
    return give(L, ok, &b);
}

static int l_base64url(lua_State *L) {
    struct buf b = {0};
    bool ok = crypto_base64(check_str(L, 1), true, &b);
    return give(L, ok, &b);
}

static int l_unbase64(lua_State *L) {
    struct buf b = {0};
    bool ok = crypto_unbase64(check_str(L, 1), &b);
    return give(L, ok, &b);
}

static int l_base32(lua_State *L) {
    struct buf b = {0};
    bool ok = crypto_base32(check_str(L, 1), &b);
    return give(L, ok, &b);
}

static int l_crc32(lua_State *L) {
    lua_pushnumber(L, (lua_Number)crypto_crc32(check_str(L, 1)));
    return 1;
}

static int l_hkdf(lua_State *L) {
    struct str key = check_str(L, 1), info = check_str(L, 2);
    lua_Integer n = luaL_checkinteger(L, 3);
    unsigned char out[1024];
    luaL_argcheck(L, n >= 1 && n <= (lua_Integer)sizeof out, 3, "must be 1 to 1024 bytes");
    if (!crypto_hkdf(key, info, out, (size_t)n)) return luaL_error(L, "hkdf failed");
    lua_pushlstring(L, (const char *)out, (size_t)n);
    return 1;
}

static int l_seal(lua_State *L) {
    struct str key = check_str(L, 1), plain = check_str(L, 2), aad = opt_str(L, 3);
    struct buf b = {0};
    struct error err;
    if (crypto_seal(key, plain, aad, &b, &err)) return give(L, true, &b);
    buf_free(&b);
    return luaL_error(L, "%s", err.message);
}

static int l_open(lua_State *L) {
    struct str key = check_str(L, 1), sealed = check_str(L, 2), aad = opt_str(L, 3);
    struct buf b = {0};
    struct error err;
    bool ok = crypto_unseal(key, sealed, aad, &b, &err);
    return give(L, ok, &b);
}

/* ---- passwords ---- */

static void forget(void *op) {
    password_forget(op);
}

static int push_hash(lua_State *L, void *data) {
    lua_pushstring(L, data);
    return 1;
}

static void hashed(void *data, const char *hash, bool match, const struct error *err) {
    (void)match;
    if (err)
        task_resume_error(data, err);
    else
        task_answer(data, push_hash, (void *)hash);
}

static void verified(void *data, const char *hash, bool match, const struct error *err) {
    struct task *t = data;
    (void)hash;
    if (err) {
        task_resume_error(t, err);
        return;
    }
    lua_pushboolean(task_lua(t), match);
    task_resume(t, 1);
}

/* {m =, t =} at `idx`, or the setting. */
static struct password_cost cost_at(lua_State *L, int idx) {
    struct password_cost cost = {.memory_kib = 19456, .passes = 2};
    if (!lua_istable(L, idx)) {
        const char *text = config_str("PASSWORD_ARGON2");
        if (text && !password_cost_parse(str_of(text), &cost)) luaL_error(L, "PASSWORD_ARGON2 must be memory,passes,1");
        return cost;
    }
    lua_getfield(L, idx, "m");
    lua_getfield(L, idx, "t");
    lua_Integer m = luaL_optinteger(L, -2, 19456), t = luaL_optinteger(L, -1, 2);
    lua_pop(L, 2);
    luaL_argcheck(L, m >= 8 && m <= 4194304 && t >= 1 && t <= 100, idx, "a cost out of range");
    cost.memory_kib = (uint32_t)m;
    cost.passes = (uint32_t)t;
    return cost;
}

static int l_password_hash(lua_State *L) {
    struct task *t = task_current(L);
    struct str password = check_str(L, 1);
    struct password_cost cost = cost_at(L, 2);
    struct error err;
    struct password_job *job = password_hash_later(password, cost, hashed, t, &err);
    if (!job) return task_fail(L, &err);
    return task_suspend(L, t, forget, job);
}

static int l_password_verify(lua_State *L) {
    struct task *t = task_current(L);
    struct str password = check_str(L, 1), hash = check_str(L, 2);
    struct error err;
    struct password_job *job = password_verify_later(password, hash, verified, t, &err);
    if (!job) return task_fail(L, &err);
    return task_suspend(L, t, forget, job);
}

static int l_password_needs_rehash(lua_State *L) {
    lua_pushboolean(L, password_needs_rehash(check_str(L, 1), cost_at(L, 2)));
    return 1;
}

int luaopen_core_crypto(lua_State *L) {
    static const luaL_Reg functions[] = {
        {"sha256", l_sha256},
        {"sha256_raw", l_sha256_raw},
        {"hmac_sha256", l_hmac_sha256},
        {"hmac_sha256_raw", l_hmac_sha256_raw},
        {"hmac_sha1_raw", l_hmac_sha1_raw},
        {"random", l_random},
        {"random_hex", l_random_hex},
        {"equal", l_equal},
        {"hex", l_hex},
        {"unhex", l_unhex},
        {"base64", l_base64},
        {"base64url", l_base64url},
        {"unbase64", l_unbase64},
        {"base32", l_base32},
        {"crc32", l_crc32},
        {"hkdf", l_hkdf},
        {"seal", l_seal},
        {"open", l_open},
        {"password_hash", l_password_hash},
        {"password_verify", l_password_verify},
        {"password_needs_rehash", l_password_needs_rehash},
        {NULL, NULL},
    };
    if (!crypto_open()) return luaL_error(L, "the crypto library cannot start");
    password_queue_limit((unsigned)config_int("PASSWORD_QUEUE"));
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
