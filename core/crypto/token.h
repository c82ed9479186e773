/* JSON web tokens over libjwt. The algorithm is the verifier's choice, never the token's: `none` and a swapped
 * algorithm are refused. */
#ifndef KASMA_CRYPTO_TOKEN_H
#define KASMA_CRYPTO_TOKEN_H

#include "runtime/buf.h"
#include "runtime/error.h"

/* `algorithm`: HS256, HS384, HS512, RS256, ES256 (the key is then PEM). `claims` is a JSON object's text. Appends the
 * token. */
bool token_sign(const char *claims, struct str key, const char *algorithm, struct buf *out, struct error *err);
/* Appends the claims as JSON text. Expiry is not looked at: the caller compares exp with the business clock.
 * False: ERR_INVALID with code "malformed" or "bad_signature". */
bool token_verify(const char *token, struct str key, const char *algorithm, struct buf *out, struct error *err);

#endif
