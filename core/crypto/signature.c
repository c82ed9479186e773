/* Over libcrypto's EVP. A key is parsed once and kept; its algorithm is decided then. */
#include "crypto/signature.h"

#include <openssl/bio.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdlib.h>

#include "crypto/crypto.h"

enum { RSA_BITS_MIN = 2048, PEM_MAX = 65536 };

struct signature_key {
    EVP_PKEY *pkey;
    bool is_private;
    bool is_rsa;
};

/* A key with a pass phrase is refused, as if an empty one had been typed: nobody is there to type another. */
static char no_phrase[] = "";

static EVP_PKEY *read_pem(struct str pem, bool private) {
    BIO *bio = BIO_new_mem_buf(pem.at, (int)pem.len);
    if (!bio) return NULL;
    EVP_PKEY *pkey =
        private ? PEM_read_bio_PrivateKey(bio, NULL, NULL, no_phrase) : PEM_read_bio_PUBKEY(bio, NULL, NULL, no_phrase);
    BIO_free(bio);
    ERR_clear_error(); /* what could not be read is told by NULL; nobody else must find it in the queue */
    return pkey;
}

struct signature_key *signature_key_new(struct str pem, struct error *err) {
    if (pem.len == 0 || pem.len > PEM_MAX) {
        error_set(err, ERR_INVALID, "a key is PEM text of at most %d bytes", PEM_MAX);
        return NULL;
    }
    bool is_private = true;
    EVP_PKEY *pkey = read_pem(pem, true);
    if (!pkey) {
        is_private = false;
        pkey = read_pem(pem, false);
    }
    if (!pkey) {
        error_set(err, ERR_INVALID, "no PEM key without a pass phrase");
        return NULL;
    }
    bool is_rsa = EVP_PKEY_is_a(pkey, "RSA") == 1;
    if (!is_rsa && EVP_PKEY_is_a(pkey, "ED25519") != 1) {
        EVP_PKEY_free(pkey);
        error_set(err, ERR_INVALID, "neither an Ed25519 nor an RSA key");
        return NULL;
    }
    if (is_rsa && EVP_PKEY_get_bits(pkey) < RSA_BITS_MIN) {
        EVP_PKEY_free(pkey);
        error_set(err, ERR_INVALID, "an RSA key needs %d bits or more", RSA_BITS_MIN);
        return NULL;
    }
    struct signature_key *key = malloc(sizeof *key);
    if (!key) {
        EVP_PKEY_free(pkey);
        error_set(err, ERR_MEMORY, "out of memory");
        return NULL;
    }
    *key = (struct signature_key){.pkey = pkey, .is_private = is_private, .is_rsa = is_rsa};
    return key;
}

void signature_key_free(struct signature_key *key) {
    if (!key) return;
    EVP_PKEY_free(key->pkey);
    free(key);
}

const char *signature_algorithm(const struct signature_key *key) {
    return key->is_rsa ? "RS256" : "EdDSA";
}
bool signature_is_private(const struct signature_key *key) {
    return key->is_private;
}

/* Ed25519 hashes by itself. */
static const EVP_MD *digest_of(const struct signature_key *key) {
    return key->is_rsa ? EVP_sha256() : NULL;
}

bool signature_make(const struct signature_key *key, struct str message, struct buf *out, struct error *err) {
    if (!key->is_private) return error_set(err, ERR_INVALID, "a public key signs nothing");
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    size_t len = 0;
    const unsigned char *text = (const unsigned char *)message.at;
    bool ok = ctx && EVP_DigestSignInit(ctx, NULL, digest_of(key), NULL, key->pkey) == 1 &&
              EVP_DigestSign(ctx, NULL, &len, text, message.len) == 1;
    unsigned char *made = ok ? malloc(len) : NULL;
    ok = made && EVP_DigestSign(ctx, made, &len, text, message.len) == 1 && buf_add(out, str_n((char *)made, len));
    free(made);
    EVP_MD_CTX_free(ctx);
    ERR_clear_error();
    return ok || error_set(err, ERR_INTERNAL, "the message could not be signed");
}

bool signature_check(const struct signature_key *key, struct str message, struct str signature) {
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    bool ok = ctx && EVP_DigestVerifyInit(ctx, NULL, digest_of(key), NULL, key->pkey) == 1 &&
              EVP_DigestVerify(ctx, (const unsigned char *)signature.at, signature.len,
                               (const unsigned char *)message.at, message.len) == 1;
    EVP_MD_CTX_free(ctx);
    ERR_clear_error();
    return ok;
}

static bool add_number(const struct signature_key *key, const char *name, struct buf *out) {
    BIGNUM *number = NULL;
    if (EVP_PKEY_get_bn_param(key->pkey, name, &number) != 1) return false;
    size_t len = (size_t)BN_num_bytes(number);
    unsigned char *bytes = malloc(len ? len : 1);
    bool ok = bytes && BN_bn2bin(number, bytes) == (int)len && crypto_base64(str_n((char *)bytes, len), true, out);
    free(bytes);
    BN_free(number);
    return ok;
}

bool signature_jwk(const struct signature_key *key, struct buf *out, struct error *err) {
    bool ok;
    if (key->is_rsa) {
        ok = buf_add(out, str_of("{\"kty\":\"RSA\",\"alg\":\"RS256\",\"use\":\"sig\",\"n\":\"")) &&
             add_number(key, OSSL_PKEY_PARAM_RSA_N, out) && buf_add(out, str_of("\",\"e\":\"")) &&
             add_number(key, OSSL_PKEY_PARAM_RSA_E, out);
    } else {
        unsigned char raw[32];
        size_t len = sizeof raw;
        ok = EVP_PKEY_get_raw_public_key(key->pkey, raw, &len) == 1 &&
             buf_add(out, str_of("{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"alg\":\"EdDSA\",\"use\":\"sig\",\"x\":\"")) &&
             crypto_base64(str_n((char *)raw, len), true, out);
    }
    ERR_clear_error();
    ok = ok && buf_add(out, str_of("\"}"));
    return ok || error_set(err, ERR_INTERNAL, "the public key could not be written");
}
