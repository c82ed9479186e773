/* Hashes, sealing, randomness and encodings: thin and checked over OpenSSL and libsodium, nothing of our own making. */
#ifndef KASMA_CRYPTO_CRYPTO_H
#define KASMA_CRYPTO_CRYPTO_H

#include "runtime/buf.h"
#include "runtime/error.h"

#define SHA256_BYTES 32
#define SEAL_KEY_BYTES 32
#define SEAL_EXTRA 28 /* nonce and tag */

/* Must be called once before anything else here. False: the library cannot start. */
bool crypto_open(void);

bool crypto_sha256(struct str s, unsigned char out[SHA256_BYTES]);
bool crypto_hmac_sha256(struct str key, struct str s, unsigned char out[SHA256_BYTES]);
/* SHA-1 only for RFC 6238 codes. */
bool crypto_hmac_sha1(struct str key, struct str s, unsigned char out[20]);
/* HKDF-SHA256 (RFC 5869) with an empty salt, 1..255*32 bytes. */
bool crypto_hkdf(struct str key, struct str info, unsigned char *out, size_t n);
void crypto_random(void *out, size_t n);
/* Takes as long for every pair of the same length. */
bool crypto_equal(struct str a, struct str b);
uint32_t crypto_crc32(struct str s);

/* AES-256-GCM with a random nonce: appends nonce, ciphertext, tag. */
bool crypto_seal(struct str key, struct str plain, struct str aad, struct buf *out, struct error *err);
/* False (ERR_INVALID): not sealed under this key and aad, or cut. */
bool crypto_unseal(struct str key, struct str sealed, struct str aad, struct buf *out, struct error *err);

bool crypto_hex(struct str s, struct buf *out);
bool crypto_unhex(struct str s, struct buf *out);
/* RFC 4648; `url`: the URL alphabet without padding. Decoding takes both alphabets, padding or none. */
bool crypto_base64(struct str s, bool url, struct buf *out);
bool crypto_unbase64(struct str s, struct buf *out);
bool crypto_base32(struct str s, struct buf *out); /* upper case, no padding */

#endif
