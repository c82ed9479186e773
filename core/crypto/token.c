#include "crypto/token.h"

#include <errno.h>
#include <jwt.h>
#include <stdlib.h>

#include "crypto/crypto.h"

static bool algorithm_of(const char *name, jwt_alg_t *out, struct error *err) {
    static const char *const allowed[] = {"HS256", "HS384", "HS512", "RS256", "ES256"};
    for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++) {
        if (strcmp(name, allowed[i]) != 0) continue;
        *out = jwt_str_alg(name);
        return true;
    }
    return error_set(err, ERR_INVALID, "%s is no algorithm of ours", name);
}

static bool failed(struct error *err, const char *code, const char *message) {
    error_set(err, ERR_INVALID, "%s", message);
    size_t n = strlen(code);
    memcpy(err->code, code, n + 1);
    return false;
}

bool token_sign(const char *claims, struct str key, const char *algorithm, struct buf *out, struct error *err) {
    jwt_alg_t alg;
    jwt_t *jwt = NULL;
    if (!algorithm_of(algorithm, &alg, err)) return false;
    bool ok = jwt_new(&jwt) == 0 && jwt_add_grants_json(jwt, claims) == 0 &&
              jwt_set_alg(jwt, alg, (const unsigned char *)key.at, (int)key.len) == 0;
    char *text = ok ? jwt_encode_str(jwt) : NULL;
    ok = text && buf_add(out, str_of(text));
    free(text);
    jwt_free(jwt);
    return ok || error_set(err, ERR_INTERNAL, "the token could not be signed");
}

/* Three parts, the first two base64 of something in braces. libjwt says the same of a bad form and a bad signature. */
static bool has_form(const char *token) {
    struct str rest = str_of(token);
    for (int i = 0; i < 3; i++) {
        const char *dot = rest.len ? memchr(rest.at, '.', rest.len) : NULL;
        size_t len = dot ? (size_t)(dot - rest.at) : rest.len;
        if ((dot != NULL) != (i < 2)) return false;
        if (i == 2) break; /* empty under `none`, which is a bad signature */
        struct buf text = {0};
        bool ok = crypto_unbase64(str_n(rest.at, len), &text) && text.len >= 2 && text.data[0] == '{' &&
                  text.data[text.len - 1] == '}';
        buf_free(&text);
        if (!ok) return false;
        rest = str_n(dot + 1, rest.len - len - 1);
    }
    return true;
}

bool token_verify(const char *token, struct str key, const char *algorithm, struct buf *out, struct error *err) {
    jwt_alg_t alg;
    jwt_t *jwt = NULL;
    if (!algorithm_of(algorithm, &alg, err)) return false;
    if (!has_form(token)) return failed(err, "malformed", "not a token");
    int rc = jwt_decode(&jwt, token, (const unsigned char *)key.at, (int)key.len);
    if (rc != 0)
        return rc == ENOMEM ? error_set(err, ERR_MEMORY, "out of memory")
                            : failed(err, "bad_signature", "the signature is wrong");
    if (jwt_get_alg(jwt) != alg) {
        jwt_free(jwt);
        return failed(err, "bad_signature", "the token is signed with another algorithm");
    }
    char *claims = jwt_get_grants_json(jwt, NULL);
    bool ok = claims && buf_add(out, str_of(claims));
    free(claims);
    jwt_free(jwt);
    return ok || error_set(err, ERR_MEMORY, "out of memory");
}
