// link: crypto
/* Signatures with key pairs: the vector of RFC 8037, round trips, and the keys that are refused. */
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "crypto/crypto.h"
#include "crypto/signature.h"

/* The key of RFC 8037, appendix A, in PKCS #8. */
static const char RFC_KEY[] =
    "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n"
    "-----END PRIVATE KEY-----\n";

static struct signature_key *read_key(const char *pem) {
    struct error err;
    struct signature_key *key = signature_key_new(str_of(pem), &err);
    if (!key) fail_msg("%s", err.message);
    return key;
}

static void refused(struct str pem) {
    struct error err;
    struct signature_key *key = signature_key_new(pem, &err);
    assert_null(key);
    assert_int_equal(err.kind, ERR_INVALID);
}

/* The PEM of one half; the caller frees the BIO that holds it. */
static struct str pem_of(EVP_PKEY *pair, bool private, BIO **held) {
    *held = BIO_new(BIO_s_mem());
    assert_int_equal(private ? PEM_write_bio_PrivateKey(*held, pair, NULL, NULL, 0, NULL, NULL)
                             : PEM_write_bio_PUBKEY(*held, pair),
                     1);
    char *text;
    long n = BIO_get_mem_data(*held, &text);
    return str_n(text, (size_t)n);
}

static void test_of_the_rfc(void **state) {
    (void)state;
    struct signature_key *key = read_key(RFC_KEY);
    assert_string_equal(signature_algorithm(key), "EdDSA");
    assert_true(signature_is_private(key));
    struct str message = STR("eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc");
    struct buf made = {0}, text = {0}, jwk = {0};
    struct error err;
    assert_true(signature_make(key, message, &made, &err));
    assert_true(crypto_base64(buf_str(&made), true, &text) && buf_byte(&text, '\0'));
    assert_string_equal(text.data,
                        "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg");
    assert_true(signature_check(key, message, buf_str(&made)));
    assert_true(signature_jwk(key, &jwk, &err) && buf_byte(&jwk, '\0'));
    assert_string_equal(jwk.data, "{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"alg\":\"EdDSA\",\"use\":\"sig\","
                                  "\"x\":\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}");
    assert_null(strstr(jwk.data, "nWGxne"));
    buf_free(&made);
    buf_free(&text);
    buf_free(&jwk);
    signature_key_free(key);
}

static void round_trip(EVP_PKEY *pair, const char *algorithm) {
    BIO *one, *two;
    struct error err;
    struct signature_key *private = signature_key_new(pem_of(pair, true, &one), &err);
    struct signature_key *public = signature_key_new(pem_of(pair, false, &two), &err);
    assert_non_null(private);
    assert_non_null(public);
    assert_string_equal(signature_algorithm(private), algorithm);
    assert_string_equal(signature_algorithm(public), algorithm);
    assert_false(signature_is_private(public));
    static const char bytes[] = "a\0b.c\xff";
    struct str message = str_n(bytes, sizeof bytes - 1);
    struct buf made = {0}, nothing = {0}, jwk = {0};
    assert_true(signature_make(private, message, &made, &err));
    assert_true(signature_check(public, message, buf_str(&made)));
    assert_true(signature_check(private, message, buf_str(&made)));
    assert_false(signature_check(public, STR("another message"), buf_str(&made)));
    assert_false(signature_check(public, message, STR("")));
    assert_false(signature_check(public, message, str_n(made.data, made.len - 1)));
    made.data[3] ^= 1;
    assert_false(signature_check(public, message, buf_str(&made)));
    assert_false(signature_make(public, message, &nothing, &err));
    assert_int_equal(nothing.len, 0);
    assert_true(signature_jwk(public, &jwk, &err));
    buf_free(&made);
    buf_free(&jwk);
    signature_key_free(private);
    signature_key_free(public);
    BIO_free(one);
    BIO_free(two);
}

static void test_round_trips(void **state) {
    (void)state;
    EVP_PKEY *ed = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519"), *rsa = EVP_RSA_gen(2048);
    round_trip(ed, "EdDSA");
    round_trip(rsa, "RS256");
    EVP_PKEY_free(ed);
    EVP_PKEY_free(rsa);
}

static void test_keys_are_not_mixed(void **state) {
    (void)state;
    EVP_PKEY *pair = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    BIO *held;
    struct error err;
    struct signature_key *other = signature_key_new(pem_of(pair, true, &held), &err), *key = read_key(RFC_KEY);
    struct buf made = {0};
    assert_true(signature_make(other, STR("x"), &made, &err));
    assert_false(signature_check(key, STR("x"), buf_str(&made)));
    buf_free(&made);
    signature_key_free(other);
    signature_key_free(key);
    BIO_free(held);
    EVP_PKEY_free(pair);
}

static void test_what_is_refused(void **state) {
    (void)state;
    static const char *const no_keys[] = {"", "x", "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
                                          "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1h\n"};
    for (size_t i = 0; i < sizeof no_keys / sizeof *no_keys; i++) refused(str_of(no_keys[i]));
    static char long_text[65537];
    memset(long_text, 'A', sizeof long_text);
    refused(str_n(long_text, sizeof long_text));

    EVP_PKEY *curve = EVP_EC_gen("P-256"), *short_rsa = EVP_RSA_gen(1024),
             *ed = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    BIO *held;
    refused(pem_of(curve, true, &held));
    BIO_free(held);
    refused(pem_of(short_rsa, true, &held));
    BIO_free(held);
    held = BIO_new(BIO_s_mem());
    assert_int_equal(
        PEM_write_bio_PrivateKey(held, ed, EVP_aes_128_cbc(), (const unsigned char *)"phrase", 6, NULL, NULL), 1);
    char *text;
    long n = BIO_get_mem_data(held, &text);
    refused(str_n(text, (size_t)n));
    BIO_free(held);
    EVP_PKEY_free(curve);
    EVP_PKEY_free(short_rsa);
    EVP_PKEY_free(ed);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_of_the_rfc),
        cmocka_unit_test(test_round_trips),
        cmocka_unit_test(test_keys_are_not_mixed),
        cmocka_unit_test(test_what_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
