// link: crypto
/* Published vectors: FIPS 180, RFC 4231, RFC 5869, RFC 4648, RFC 7515, Openwall's bcrypt, the argon2 reference. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include <openssl/evp.h>
#include <openssl/pem.h>

#include "crypto/crypto.h"
#include "crypto/password.h"
#include "crypto/token.h"
#include "runtime/loop.h"

static char *hex_of(struct str s) {
    struct buf b = {0};
    assert_true(crypto_hex(s, &b));
    assert_true(buf_byte(&b, '\0'));
    return b.data;
}

static struct buf raw_of(const char *hex) {
    struct buf b = {0};
    assert_true(crypto_unhex(str_of(hex), &b));
    return b;
}

#define assert_hex(bytes, n, expected)                                                                                 \
    do {                                                                                                               \
        char *shown = hex_of(str_n((const char *)(bytes), (n)));                                                       \
        assert_string_equal(shown, expected);                                                                          \
        free(shown);                                                                                                   \
    } while (0)

static void test_sha256(void **state) {
    (void)state;
    unsigned char out[SHA256_BYTES];
    assert_true(crypto_sha256(STR(""), out));
    assert_hex(out, 32, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_true(crypto_sha256(STR("abc"), out));
    assert_hex(out, 32, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

/* RFC 4231, cases 1, 2, 3 and 6. */
static void test_hmac(void **state) {
    (void)state;
    unsigned char out[SHA256_BYTES];
    char key[131], data[50];
    memset(key, 0x0b, 20);
    assert_true(crypto_hmac_sha256(str_n(key, 20), STR("Hi There"), out));
    assert_hex(out, 32, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    assert_true(crypto_hmac_sha256(STR("Jefe"), STR("what do ya want for nothing?"), out));
    assert_hex(out, 32, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    memset(key, 0xaa, sizeof key);
    memset(data, 0xdd, sizeof data);
    assert_true(crypto_hmac_sha256(str_n(key, 20), str_n(data, 50), out));
    assert_hex(out, 32, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe");
    assert_true(
        crypto_hmac_sha256(str_n(key, 131), STR("Test Using Larger Than Block-Size Key - Hash Key First"), out));
    assert_hex(out, 32, "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
    /* RFC 2202, case 2. */
    unsigned char sha1[20];
    assert_true(crypto_hmac_sha1(STR("Jefe"), STR("what do ya want for nothing?"), sha1));
    assert_hex(sha1, 20, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79");
}

/* RFC 5869, case 3: no salt, no info. */
static void test_hkdf(void **state) {
    (void)state;
    unsigned char out[42];
    char key[22];
    memset(key, 0x0b, sizeof key);
    assert_true(crypto_hkdf(str_n(key, 22), STR(""), out, 42));
    assert_hex(out, 42, "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8");
    unsigned char other[42];
    assert_true(crypto_hkdf(str_n(key, 22), STR("acme|mail"), other, 42));
    assert_memory_not_equal(out, other, 42);
    assert_false(crypto_hkdf(STR("k"), STR(""), out, 0));
}

static void test_seal(void **state) {
    (void)state;
    struct buf key = raw_of("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"), sealed = {0},
               plain = {0};
    struct error err;
    /* NIST GCM, test case 16 of the AES-256 set: nonce, ciphertext and tag in the order in which they are stored. */
    struct buf given = raw_of("cafebabefacedbaddecaf888"
                              "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
                              "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
                              "76fc6ece0f4e1768cddf8853bb2d551b");
    struct buf aad = raw_of("feedfacedeadbeeffeedfacedeadbeefabaddad2");
    assert_true(crypto_unseal(buf_str(&key), buf_str(&given), buf_str(&aad), &plain, &err));
    assert_hex(plain.data, plain.len,
               "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf"
               "5aa0de657ba637b39");
    buf_clear(&plain);

    assert_true(crypto_seal(buf_str(&key), STR("otp secret"), STR("acme|otp"), &sealed, &err));
    assert_int_equal(sealed.len, 10 + SEAL_EXTRA);
    assert_true(crypto_unseal(buf_str(&key), buf_str(&sealed), STR("acme|otp"), &plain, &err));
    assert_true(str_eq(buf_str(&plain), STR("otp secret")));
    /* Another tenant's, a changed byte, a cut one, a short key: refused. */
    assert_false(crypto_unseal(buf_str(&key), buf_str(&sealed), STR("other|otp"), &plain, &err));
    assert_int_equal(err.kind, ERR_INVALID);
    for (size_t i = 0; i < sealed.len; i++) {
        sealed.data[i] = (char)(sealed.data[i] ^ 1);
        assert_false(crypto_unseal(buf_str(&key), buf_str(&sealed), STR("acme|otp"), &plain, &err));
        sealed.data[i] = (char)(sealed.data[i] ^ 1);
    }
    for (size_t n = 0; n < sealed.len; n++)
        assert_false(crypto_unseal(buf_str(&key), str_n(sealed.data, n), STR("acme|otp"), &plain, &err));
    assert_true(str_eq(buf_str(&plain), STR("otp secret")));
    assert_false(crypto_seal(STR("short"), STR("x"), STR(""), &sealed, &err));
    /* Empty text, no aad. */
    buf_clear(&sealed);
    buf_clear(&plain);
    assert_true(crypto_seal(buf_str(&key), STR(""), STR(""), &sealed, &err));
    assert_true(crypto_unseal(buf_str(&key), buf_str(&sealed), STR(""), &plain, &err));
    assert_int_equal(plain.len, 0);
    buf_free(&key);
    buf_free(&given);
    buf_free(&aad);
    buf_free(&sealed);
    buf_free(&plain);
}

static void check_base(const char *plain, const char *base64, const char *base32) {
    struct buf out = {0};
    assert_true(crypto_base64(str_of(plain), false, &out));
    assert_true(str_eq(buf_str(&out), str_of(base64)));
    buf_clear(&out);
    assert_true(crypto_unbase64(str_of(base64), &out));
    assert_true(str_eq(buf_str(&out), str_of(plain)));
    buf_clear(&out);
    assert_true(crypto_base32(str_of(plain), &out));
    assert_true(str_eq(buf_str(&out), str_of(base32)));
    buf_free(&out);
}

static void test_encodings(void **state) {
    (void)state;
    check_base("f", "Zg==", "MY");
    check_base("fo", "Zm8=", "MZXQ");
    check_base("foo", "Zm9v", "MZXW6");
    check_base("foob", "Zm9vYg==", "MZXW6YQ");
    check_base("foobar", "Zm9vYmFy", "MZXW6YTBOI");
    struct buf out = {0};
    assert_true(crypto_base64(str_n("\xfb\xff\xfe", 3), true, &out));
    assert_true(str_eq(buf_str(&out), STR("-__-")));
    buf_clear(&out);
    assert_true(crypto_unbase64(STR("-__-"), &out));
    assert_memory_equal(out.data, "\xfb\xff\xfe", 3);
    buf_clear(&out);
    assert_false(crypto_unbase64(STR("a b="), &out));
    assert_false(crypto_unbase64(STR("Zg==!"), &out));
    assert_false(crypto_unhex(STR("abc"), &out));
    assert_false(crypto_unhex(STR("zz"), &out));
    assert_int_equal(crypto_crc32(STR("123456789")), 0xcbf43926);
    buf_free(&out);
    assert_true(crypto_equal(STR("same"), STR("same")));
    assert_false(crypto_equal(STR("same"), STR("sane")));
    assert_false(crypto_equal(STR("same"), STR("sam")));
    assert_true(crypto_equal(STR(""), STR("")));
    char a[32] = {0}, b[32] = {0};
    crypto_random(a, sizeof a);
    crypto_random(b, sizeof b);
    assert_memory_not_equal(a, b, sizeof a);
}

static void test_bcrypt(void **state) {
    (void)state;
    /* From Openwall's crypt_blowfish. */
    assert_true(password_verify(STR("U*U"), STR("$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW")));
    assert_true(password_verify(STR("U*U*"), STR("$2a$05$CCCCCCCCCCCCCCCCCCCCC.VGOzA784oUp/Z0DY336zx7pLYAy0lwK")));
    assert_true(password_verify(STR(""), STR("$2a$05$CCCCCCCCCCCCCCCCCCCCC.7uG0VCzI2bS7j6ymqJi9CdcdxiRTWNy")));
    assert_true(password_verify(STR("\xa3"), STR("$2y$05$/OK.fbVrR/bpIqNJ5ianF.Sa7shbm4.OzKpvFnX1pQLmQW96oUlCq")));
    assert_true(password_verify(STR("\xa3"), STR("$2b$05$/OK.fbVrR/bpIqNJ5ianF.Sa7shbm4.OzKpvFnX1pQLmQW96oUlCq")));
    assert_false(password_verify(STR("U*V"), STR("$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW")));
    /* A NUL does not end the comparison early. */
    assert_false(
        password_verify(str_n("U*U\0x", 5), STR("$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW")));
    /* Cut, of another kind, or no hash at all. */
    assert_false(password_verify(STR("U*U"), STR("$2a$05$CCCCCCCCCCCCCCCCCCCCC.")));
    assert_false(password_verify(STR("U*U"), STR("$2x$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW")));
    assert_false(password_verify(STR("U*U"), STR("$1$abc$def")));
    assert_false(password_verify(STR("U*U"), STR("")));
    assert_false(password_verify(STR("*0"), STR("*0")));
}

static void test_argon2(void **state) {
    (void)state;
    /* argon2 reference implementation, test.c: version 0x13, t=2, m=65536, p=1, salt "somesalt". */
    const char *known = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
    assert_true(password_verify(STR("password"), str_of(known)));
    assert_false(password_verify(STR("passworD"), str_of(known)));
    struct password_cost cost;
    assert_true(password_cost_parse(STR("64,1,1"), &cost));
    char hash[PASSWORD_HASH_MAX];
    struct error err;
    assert_true(password_hash(STR("hunter2"), cost, hash, &err));
    assert_memory_equal(hash, "$argon2id$v=19$m=64,t=1,p=1$", 28);
    assert_true(password_verify(STR("hunter2"), str_of(hash)));
    assert_false(password_verify(STR("hunter3"), str_of(hash)));
    assert_false(password_needs_rehash(str_of(hash), cost));
    cost.passes = 2;
    assert_true(password_needs_rehash(str_of(hash), cost));
    assert_true(password_needs_rehash(STR("$2b$05$CCCCCCCCCCCCCCCCCCCCC."), cost));
    static const char *const bad[] = {"", "1", "64,1", "64,1,2", "4,1,1", "64,0,1", "a,b,c", "64,1,1,1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_false(password_cost_parse(str_of(bad[i]), &cost));
    char *huge = calloc(1, PASSWORD_MAX + 1);
    assert_non_null(huge);
    assert_false(password_hash(str_n(huge, PASSWORD_MAX + 1), cost, hash, &err));
    assert_int_equal(err.kind, ERR_LIMIT);
    free(huge);
}

struct seen {
    int calls, matches;
};

static void note(void *data, const char *hash, bool match, const struct error *err) {
    struct seen *s = data;
    (void)hash;
    assert_null(err);
    s->calls++;
    s->matches += match;
}

static void test_queue_is_bounded(void **state) {
    (void)state;
    assert_true(loop_open());
    struct seen seen = {0};
    struct error err;
    const struct str hash = STR("$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW");
    password_queue_limit(6);
    struct password_job *jobs[6];
    for (int i = 0; i < 6; i++) {
        jobs[i] = password_verify_later(i % 2 ? STR("U*U") : STR("wrong"), hash, note, &seen, &err);
        assert_non_null(jobs[i]);
    }
    assert_null(password_verify_later(STR("U*U"), hash, note, &seen, &err));
    assert_int_equal(err.kind, ERR_BUSY);
    /* One that runs and one that waits are forgotten: neither is told. */
    password_forget(jobs[0]);
    password_forget(jobs[5]);
    int left = uv_run(loop_get(), UV_RUN_DEFAULT);
    assert_int_equal(left, 0);
    assert_int_equal(seen.calls, 4);
    assert_int_equal(seen.matches, 2);
    /* There is room again. */
    assert_non_null(password_verify_later(STR("U*U"), hash, note, &seen, &err));
    left = uv_run(loop_get(), UV_RUN_DEFAULT);
    assert_int_equal(left, 0);
    assert_int_equal(seen.calls, 5);
}

static bool verifies(const char *token, struct str key, const char *algorithm, const char *code) {
    struct buf claims = {0};
    struct error err = {0};
    bool ok = token_verify(token, key, algorithm, &claims, &err);
    if (ok)
        assert_non_null(memmem(claims.data, claims.len, "\"sub\"", 5));
    else
        assert_string_equal(err.code, code);
    buf_free(&claims);
    return ok;
}

static void test_tokens(void **state) {
    (void)state;
    struct str key = STR("0d4f1a8b5c7e92361f0a9b8c7d6e5f40");
    struct buf token = {0};
    struct error err;
    assert_true(token_sign("{\"sub\":\"u1\",\"exp\":1}", key, "HS256", &token, &err));
    assert_true(buf_byte(&token, '\0'));
    assert_true(verifies(token.data, key, "HS256", ""));
    assert_false(verifies(token.data, STR("another key of the same size...."), "HS256", "bad_signature"));
    assert_false(verifies(token.data, key, "HS512", "bad_signature"));
    token.data[token.len - 4] = token.data[token.len - 4] == 'A' ? 'B' : 'A';
    assert_false(verifies(token.data, key, "HS256", "bad_signature"));
    /* {"alg":"none"}.{"sub":"u1"} without and with a signature. */
    assert_false(verifies("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJzdWIiOiJ1MSJ9.", key, "HS256", "bad_signature"));
    assert_false(verifies("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJzdWIiOiJ1MSJ9.AAAA", key, "HS256", "bad_signature"));
    static const char *const no_tokens[] = {"",
                                            "a",
                                            "a.b",
                                            "a.b.c",
                                            "..",
                                            "eyJhbGciOiJIUzI1NiJ9",
                                            "eyJhbGciOiJIUzI1NiJ9.e30",
                                            "eyJhbGciOiJIUzI1NiJ9.bm8.x",
                                            "eyJhbGciOiJIUzI1NiJ9.e30.x.y"};
    for (size_t i = 0; i < sizeof no_tokens / sizeof *no_tokens; i++)
        assert_false(verifies(no_tokens[i], key, "HS256", "malformed"));
    assert_false(token_sign("{\"sub\":\"u1\"}", key, "none", &token, &err));
    assert_false(token_sign("no json", key, "HS256", &token, &err));
    buf_free(&token);
}

/* RFC 7515, A.1: HS256 with the key of the RFC. */
static void test_token_of_the_rfc(void **state) {
    (void)state;
    struct buf key = {0}, claims = {0};
    struct error err;
    assert_true(crypto_unbase64(
        STR("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"), &key));
    assert_true(
        token_verify("eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9."
                     "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ."
                     "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
                     buf_str(&key), "HS256", &claims, &err));
    assert_non_null(memmem(claims.data, claims.len, "\"joe\"", 5));
    buf_free(&key);
    buf_free(&claims);
}

/* The public key of an RS256 pair, taken as an HMAC secret by an attacker who only has the public key. */
static void test_algorithms_are_not_confused(void **state) {
    (void)state;
    EVP_PKEY *pair = EVP_EC_gen("P-256");
    assert_non_null(pair);
    BIO *out = BIO_new(BIO_s_mem());
    assert_int_equal(PEM_write_bio_PUBKEY(out, pair), 1);
    char *pem;
    long n = BIO_get_mem_data(out, &pem);
    struct str public = str_n(pem, (size_t)n);
    BIO *in = BIO_new(BIO_s_mem());
    assert_int_equal(PEM_write_bio_PrivateKey(in, pair, NULL, NULL, 0, NULL, NULL), 1);
    char *secret_pem;
    n = BIO_get_mem_data(in, &secret_pem);
    struct buf token = {0};
    struct error err;
    assert_true(token_sign("{\"sub\":\"u1\"}", str_n(secret_pem, (size_t)n), "ES256", &token, &err));
    assert_true(buf_byte(&token, '\0'));
    assert_true(verifies(token.data, public, "ES256", ""));
    buf_clear(&token);
    assert_true(token_sign("{\"sub\":\"admin\"}", public, "HS256", &token, &err));
    assert_true(buf_byte(&token, '\0'));
    assert_false(verifies(token.data, public, "ES256", "bad_signature"));
    buf_free(&token);
    BIO_free(out);
    BIO_free(in);
    EVP_PKEY_free(pair);
}

static int open_crypto(void **state) {
    (void)state;
    return crypto_open() ? 0 : -1;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sha256),
        cmocka_unit_test(test_hmac),
        cmocka_unit_test(test_hkdf),
        cmocka_unit_test(test_seal),
        cmocka_unit_test(test_encodings),
        cmocka_unit_test(test_bcrypt),
        cmocka_unit_test(test_argon2),
        cmocka_unit_test(test_queue_is_bounded),
        cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_token_of_the_rfc),
        cmocka_unit_test(test_algorithms_are_not_confused),
    };
    return cmocka_run_group_tests(tests, open_crypto, NULL);
}
