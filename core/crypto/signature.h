/* Signatures with a key pair: EdDSA (Ed25519) and RS256 (RSA from 2048 bits, PKCS #1 v1.5, SHA-256). A key is its PEM
 * text, private or public; which algorithm it makes and takes follows from the key alone, so that no message can choose
 * another. */
#ifndef KASMA_CRYPTO_SIGNATURE_H
#define KASMA_CRYPTO_SIGNATURE_H

#include "runtime/buf.h"
#include "runtime/error.h"

struct signature_key;

/* Reads a PEM key. The caller frees it. NULL with ERR_INVALID: no PEM, a kind of key that signs nothing here, or an RSA
 * key that is too short. */
struct signature_key *signature_key_new(struct str pem, struct error *err);
void signature_key_free(struct signature_key *key);

/* "EdDSA" or "RS256". */
const char *signature_algorithm(const struct signature_key *key);
bool signature_is_private(const struct signature_key *key);

/* Appends the raw signature of the message. ERR_INVALID for a public key. */
bool signature_make(const struct signature_key *key, struct str message, struct buf *out, struct error *err);
/* True when the signature is the message's by this key; anything else is false, and no error. */
bool signature_check(const struct signature_key *key, struct str message, struct str signature);

/* Appends the public half as a JSON Web Key without its kid: {"kty":..,"alg":..,"use":"sig",..}. */
bool signature_jwk(const struct signature_key *key, struct buf *out, struct error *err);

#endif
