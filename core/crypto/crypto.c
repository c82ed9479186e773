#include "crypto/crypto.h"

#include <limits.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/kdf.h>
#include <sodium.h>
#include <zlib.h>

#define NONCE 12
#define TAG 16

bool crypto_open(void) {
    return sodium_init() >= 0;
}

bool crypto_sha256(struct str s, unsigned char out[SHA256_BYTES]) {
    return crypto_hash_sha256(out, (const unsigned char *)s.at, s.len) == 0;
}

static bool hmac(const EVP_MD *md, struct str key, struct str s, unsigned char *out, unsigned size) {
    unsigned n = 0;
    if (key.len > INT_MAX) return false;
    const void *k = key.len ? key.at : "";
    return HMAC(md, k, (int)key.len, (const unsigned char *)(s.len ? s.at : ""), s.len, out, &n) != NULL && n == size;
}

bool crypto_hmac_sha256(struct str key, struct str s, unsigned char out[SHA256_BYTES]) {
    return hmac(EVP_sha256(), key, s, out, SHA256_BYTES);
}

bool crypto_hmac_sha1(struct str key, struct str s, unsigned char out[20]) {
    return hmac(EVP_sha1(), key, s, out, 20);
}

bool crypto_hkdf(struct str key, struct str info, unsigned char *out, size_t n) {
    if (n < 1 || n > (size_t)255 * SHA256_BYTES || key.len > INT_MAX || info.len > 1024) return false;
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_id(EVP_PKEY_HKDF, NULL);
    size_t len = n;
    bool ok = ctx && EVP_PKEY_derive_init(ctx) > 0 && EVP_PKEY_CTX_set_hkdf_md(ctx, EVP_sha256()) > 0 &&
              EVP_PKEY_CTX_set1_hkdf_key(ctx, (const unsigned char *)key.at, (int)key.len) > 0 &&
              EVP_PKEY_CTX_add1_hkdf_info(ctx, (const unsigned char *)info.at, (int)info.len) > 0 &&
              EVP_PKEY_derive(ctx, out, &len) > 0 && len == n;
    EVP_PKEY_CTX_free(ctx);
    return ok;
}

void crypto_random(void *out, size_t n) {
    randombytes_buf(out, n);
}

bool crypto_equal(struct str a, struct str b) {
    return a.len == b.len && (a.len == 0 || sodium_memcmp(a.at, b.at, a.len) == 0);
}

uint32_t crypto_crc32(struct str s) {
    return (uint32_t)crc32_z(0, (const unsigned char *)s.at, s.len);
}

static bool bad_key(struct str key, struct error *err) {
    if (key.len == SEAL_KEY_BYTES) return false;
    error_set(err, ERR_INVALID, "the key must have %d bytes", SEAL_KEY_BYTES);
    return true;
}

bool crypto_seal(struct str key, struct str plain, struct str aad, struct buf *out, struct error *err) {
    if (bad_key(key, err)) return false;
    if (plain.len > INT_MAX - SEAL_EXTRA || aad.len > INT_MAX) return error_set(err, ERR_LIMIT, "too long to seal");
    size_t start = out->len;
    if (!buf_reserve(out, plain.len + SEAL_EXTRA)) return error_set(err, ERR_MEMORY, "out of memory");
    unsigned char *nonce = (unsigned char *)out->data + start, *text = nonce + NONCE;
    crypto_random(nonce, NONCE);
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    int n = 0, tail = 0;
    bool ok = ctx && EVP_EncryptInit_ex(ctx, EVP_aes_256_gcm(), NULL, (const unsigned char *)key.at, nonce) == 1 &&
              (aad.len == 0 || EVP_EncryptUpdate(ctx, NULL, &n, (const unsigned char *)aad.at, (int)aad.len) == 1);
    n = 0;
    ok = ok &&
         (plain.len == 0 || EVP_EncryptUpdate(ctx, text, &n, (const unsigned char *)plain.at, (int)plain.len) == 1) &&
         EVP_EncryptFinal_ex(ctx, text + n, &tail) == 1 &&
         EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_GCM_GET_TAG, TAG, text + n + tail) == 1;
    EVP_CIPHER_CTX_free(ctx);
    if (!ok) return error_set(err, ERR_INTERNAL, "sealing failed");
    out->len = start + NONCE + (size_t)n + (size_t)tail + TAG;
    return true;
}

bool crypto_unseal(struct str key, struct str sealed, struct str aad, struct buf *out, struct error *err) {
    if (bad_key(key, err)) return false;
    if (sealed.len < SEAL_EXTRA || sealed.len > INT_MAX || aad.len > INT_MAX)
        return error_set(err, ERR_INVALID, "not a sealed value");
    size_t len = sealed.len - SEAL_EXTRA, start = out->len;
    if (!buf_reserve(out, len + 1)) return error_set(err, ERR_MEMORY, "out of memory");
    const unsigned char *nonce = (const unsigned char *)sealed.at, *text = nonce + NONCE;
    unsigned char tag[TAG], *plain = (unsigned char *)out->data + start;
    memcpy(tag, text + len, TAG);
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    int n = 0, tail = 0;
    bool ok = ctx && EVP_DecryptInit_ex(ctx, EVP_aes_256_gcm(), NULL, (const unsigned char *)key.at, nonce) == 1 &&
              (aad.len == 0 || EVP_DecryptUpdate(ctx, NULL, &n, (const unsigned char *)aad.at, (int)aad.len) == 1);
    n = 0;
    ok = ok && (len == 0 || EVP_DecryptUpdate(ctx, plain, &n, text, (int)len) == 1) &&
         EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_GCM_SET_TAG, TAG, tag) == 1 &&
         EVP_DecryptFinal_ex(ctx, plain + n, &tail) == 1;
    EVP_CIPHER_CTX_free(ctx);
    if (!ok) {
        sodium_memzero(plain, len);
        return error_set(err, ERR_INVALID, "not sealed with this key");
    }
    out->len = start + (size_t)n + (size_t)tail;
    return true;
}

bool crypto_hex(struct str s, struct buf *out) {
    static const char digits[] = "0123456789abcdef";
    if (!buf_reserve(out, s.len * 2)) return false;
    for (size_t i = 0; i < s.len; i++) {
        out->data[out->len++] = digits[(unsigned char)s.at[i] >> 4];
        out->data[out->len++] = digits[(unsigned char)s.at[i] & 15];
    }
    return true;
}

bool crypto_unhex(struct str s, struct buf *out) {
    size_t n = 0;
    if (s.len % 2 || !buf_reserve(out, s.len / 2 + 1)) return false;
    const char *end = NULL;
    if (sodium_hex2bin((unsigned char *)out->data + out->len, s.len / 2 + 1, s.at, s.len, NULL, &n, &end) != 0 ||
        end != s.at + s.len)
        return false;
    out->len += n;
    return true;
}

bool crypto_base64(struct str s, bool url, struct buf *out) {
    int variant = url ? sodium_base64_VARIANT_URLSAFE_NO_PADDING : sodium_base64_VARIANT_ORIGINAL;
    size_t room = sodium_base64_encoded_len(s.len, variant); /* with its NUL */
    if (!buf_reserve(out, room) ||
        !sodium_bin2base64(out->data + out->len, room, (const unsigned char *)s.at, s.len, variant))
        return false;
    out->len += strlen(out->data + out->len);
    return true;
}

bool crypto_unbase64(struct str s, struct buf *out) {
    while (s.len > 0 && s.at[s.len - 1] == '=') s.len--;
    bool url = false;
    for (size_t i = 0; i < s.len; i++) url = url || s.at[i] == '-' || s.at[i] == '_';
    int variant = url ? sodium_base64_VARIANT_URLSAFE_NO_PADDING : sodium_base64_VARIANT_ORIGINAL_NO_PADDING;
    size_t n = 0;
    const char *end = NULL;
    if (!buf_reserve(out, s.len + 1)) return false;
    if (sodium_base642bin((unsigned char *)out->data + out->len, s.len + 1, s.at, s.len, NULL, &n, &end, variant) !=
            0 ||
        end != s.at + s.len)
        return false;
    out->len += n;
    return true;
}

bool crypto_base32(struct str s, struct buf *out) {
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    uint32_t bits = 0;
    int held = 0;
    for (size_t i = 0; i < s.len; i++) {
        bits = bits << 8 | (unsigned char)s.at[i];
        held += 8;
        while (held >= 5) {
            held -= 5;
            if (!buf_byte(out, alphabet[bits >> held & 31])) return false;
        }
    }
    return held == 0 || buf_byte(out, alphabet[bits << (5 - held) & 31]);
}
