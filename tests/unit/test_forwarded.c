// link: http
/* Who a request comes from behind proxies: addresses, networks and X-Forwarded-For. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "http/forwarded.h"

static const char *normal(const char *text) {
    static char out[ADDRESS_TEXT_MAX];
    struct address a;
    if (!address_parse(str_of(text), &a)) return "";
    size_t len = address_format(&a, out);
    assert_int_equal(len, strlen(out));
    return out;
}

static void addresses_are_read_as_proxies_write_them(void **state) {
    (void)state;
    static const char *const forms[][2] = {
        {"203.0.113.9", "203.0.113.9"},
        {"203.0.113.9:4711", "203.0.113.9"},
        {"::ffff:203.0.113.9", "203.0.113.9"},
        {"::FFFF:cb00:7109", "203.0.113.9"},
        {"[::ffff:203.0.113.9]:80", "203.0.113.9"},
        {"2001:DB8::0:1", "2001:db8::1"},
        {"[2001:db8::1]", "2001:db8::1"},
        {"[2001:db8::1]:443", "2001:db8::1"},
        {"fe80::1%eth0", "fe80::1"},
        {"::", "::"},
    };
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) assert_string_equal(normal(forms[i][0]), forms[i][1]);
    static const char *const none[] = {
        "",          "unknown",  "_hidden",  "unix",       "1.2.3",         "1.2.3.4.5",
        "256.1.1.1", "01.2.3.4", "1.2.3.4:", "1.2.3.4:x",  "1.2.3.4:70000", "[::1",
        "[]",        "[1.2.3.4", ":::",      "1::2::3",    "::1/64",        "for=1.2.3.4",
        "%",         "1.2.3.4 ", "12345::",  "[%eth0]:80", "0x7f.1"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) assert_string_equal(normal(none[i]), "");
}

static struct networks networks(const char *text) {
    struct networks n;
    struct error err;
    if (!networks_parse(str_of(text), &n, &err)) fail_msg("%s: %s", text, err.message);
    return n;
}

static bool have(const char *list, const char *text) {
    struct networks n = networks(list);
    struct address a;
    assert_true(address_parse(str_of(text), &a));
    return networks_have(&n, &a);
}

static void networks_hold_their_addresses_to_the_bit(void **state) {
    (void)state;
    assert_true(have("10.0.0.0/8", "10.255.255.255"));
    assert_false(have("10.0.0.0/8", "11.0.0.0"));
    assert_true(have("10.1.2.128/25, 10.9.0.0/16", "10.1.2.129"));
    assert_false(have("10.1.2.128/25, 10.9.0.0/16", "10.1.2.127"));
    assert_true(have("10.1.2.128/25, 10.9.0.0/16", "::ffff:10.9.3.3"));
    assert_true(have("192.0.2.1", "192.0.2.1"));
    assert_false(have("192.0.2.1", "192.0.2.2"));
    assert_true(have("0.0.0.0/0", "8.8.8.8"));
    assert_false(have("0.0.0.0/0", "2001:db8::1"));
    assert_true(have("::/0", "8.8.8.8"));
    assert_true(have("fd00:3::/64", "fd00:3::ffff:1"));
    assert_false(have("fd00:3::/64", "fd00:3:0:1::1"));
    assert_true(have("::1", "::1"));
    assert_true(have("::ffff:10.0.0.0/104", "10.2.3.4"));
    assert_false(have("", "10.2.3.4"));
    struct networks n;
    struct error err;
    static const char *const bad[] = {"10.0.0.0/33",  "10.0.0.0/", "10.0.0.0/-1", "::1/129",      "proxy.example.org",
                                      "10.0.0.0/8/8", "[::1]/128", "/8",          "10.0.0.1:80/8"};
    for (size_t i = 0; i + 1 < sizeof bad / sizeof *bad; i++) assert_false(networks_parse(str_of(bad[i]), &n, &err));
    char many[NETWORKS_MAX * 8 + 16];
    size_t at = 0;
    for (int i = 0; i <= NETWORKS_MAX; i++) {
        memcpy(many + at, "1.2.3.4,", 8);
        at += 8;
    }
    assert_true(networks_parse(str_n(many, at - 8), &n, &err));
    assert_false(networks_parse(str_n(many, at), &n, &err));
}

static const char *client(const char *proxies, const char *peer, const char *one, const char *two) {
    static char out[ADDRESS_TEXT_MAX];
    struct networks n = networks(proxies);
    struct str lines[2] = {str_of(one), str_of(two)};
    return forwarded_client(&n, str_of(peer), lines, two ? 2 : one ? 1 : 0, out) ? out : peer;
}

static void only_a_trusted_peer_names_a_client(void **state) {
    (void)state;
    assert_string_equal(client("", "198.51.100.7", "203.0.113.9", NULL), "198.51.100.7");
    assert_string_equal(client("10.0.0.0/8", "198.51.100.7", "203.0.113.9", NULL), "198.51.100.7");
    assert_string_equal(client("10.0.0.0/8", "unix", "203.0.113.9", NULL), "unix");
    assert_string_equal(client("10.0.0.0/8", "10.0.0.1", NULL, NULL), "10.0.0.1");
    assert_string_equal(client("10.0.0.0/8", "10.0.0.1", "203.0.113.9", NULL), "203.0.113.9");
    assert_string_equal(client("10.0.0.0/8", "10.0.0.1", "203.0.113.9:99", NULL), "203.0.113.9");
}

static void what_a_client_wrote_itself_is_not_believed(void **state) {
    (void)state;
    assert_string_equal(client("10.0.0.0/8", "10.0.0.1", "127.0.0.1, 203.0.113.9", NULL), "203.0.113.9");
    assert_string_equal(client("10.0.0.0/8", "10.0.0.1", "127.0.0.1", "203.0.113.9"), "203.0.113.9");
    assert_string_equal(client("10.0.0.0/8", "10.0.0.1", "127.0.0.1, 203.0.113.9", "10.0.0.2,10.0.0.3"), "203.0.113.9");
    assert_string_equal(client("10.0.0.0/8", "10.0.0.1", "10.0.0.3", "10.0.0.2"), "10.0.0.3");
    assert_string_equal(client("10.0.0.0/8", "10.0.0.1", "1.2.3.4, nonsense, 10.0.0.2", NULL), "10.0.0.2");
    assert_string_equal(client("10.0.0.0/8", "10.0.0.1", "1.2.3.4,,  ,", NULL), "1.2.3.4");
    assert_string_equal(client("10.0.0.0/8", "10.0.0.1", " , ", ""), "10.0.0.1");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addresses_are_read_as_proxies_write_them),
        cmocka_unit_test(networks_hold_their_addresses_to_the_bit),
        cmocka_unit_test(only_a_trusted_peer_names_a_client),
        cmocka_unit_test(what_a_client_wrote_itself_is_not_believed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
