#include "crypto/token.h"

#include <errno.h>
#include <jwt.h>
#include <stdlib.h>

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

bool token_verify(const char *token, struct str key, const char *algorithm, struct buf *out, struct error *err) {
    jwt_alg_t alg;
    jwt_t *jwt = NULL;
    if (!algorithm_of(algorithm, &alg, err)) return false;
    int rc = jwt_decode(&jwt, token, (const unsigned char *)key.at, (int)key.len);
    if (rc != 0) return failed(err, rc == ENOMEM ? "memory" : "bad_signature", "the token is malformed or its signature is wrong");
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
