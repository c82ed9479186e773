// link: http
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sys/stat.h>

#include "http/file.h"
#include "http_client.h"

static struct server *server;
static char dir[] = "/tmp/kasma-test-file-XXXXXX";

static void put(const char *name, const char *text, size_t n) {
    char path[256];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static int group_setup(void **state) {
    (void)state;
    if (!loop_open() || !mkdtemp(dir)) return -1;
    char sub[256];
    (void)snprintf(sub, sizeof sub, "%s/sub", dir);
    if (mkdir(sub, 0755) != 0) return -1;
    put("digits.txt", "0123456789", 10);
    put("empty.css", "", 0);
    put(".hidden", "secret", 6);
    put("sub/index.html", "<p>index</p>", 12);
    char *big = malloc(1000000);
    for (int i = 0; i < 1000000; i++) big[i] = (char)('a' + i % 26);
    put("big.bin", big, 1000000);
    put("big.css", big, 100000);
    free(big);
    struct server_settings set;
    server_settings_default(&set);
    set.access_log = false;
    server = server_new(&set);
    struct error err;
    if (!server || !file_routes(server_routes(server), STR("/files/"), dir, &err)) return -1;
    test_listen(server);
    return 0;
}

static int group_teardown(void **state) {
    (void)state;
    WAIT_UNTIL(server_connections(server) == 0);
    assert_int_equal(server_in_flight(server), 0);
    server_close(server);
    for (int i = 0; i < 10; i++) turn_loop();
    char command[300];
    static const char *const names[] = {"digits.txt", "empty.css", ".hidden", "sub/index.html",
                                        "sub",        "big.bin",   "big.css", ""};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        (void)snprintf(command, sizeof command, "%s/%s", dir, names[i]);
        assert_int_equal(remove(command), 0);
    }
    return 0;
}

static char *get(const char *path, const char *headers) {
    char request[600];
    (void)snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: t\r\n%s\r\n", path, headers);
    return talk(request);
}

static void expect(const char *path, const char *headers, const char *status, const char *holds, const char *body) {
    char *text = get(path, headers);
    const char *end = strstr(text, "\r\n\r\n");
    if (strncmp(text + 9, status, 3) != 0 || (holds && !strstr(text, holds))) print_error("%s\n%.500s\n", path, text);
    assert_int_equal(strncmp(text + 9, status, 3), 0);
    if (holds) assert_non_null(strstr(text, holds));
    if (body) assert_string_equal(end + 4, body);
    free(text);
}

static void test_whole_files(void **state) {
    (void)state;
    expect("/files/digits.txt", "", "200", "Content-Type: text/plain; charset=utf-8\r\n", "0123456789");
    expect("/files/digits.txt", "", "200", "Accept-Ranges: bytes\r\n", NULL);
    expect("/files/digits.txt", "", "200", "Last-Modified: ", NULL);
    expect("/files/DIGITS.txt", "", "404", NULL, NULL); /* file names keep their case */
    expect("/files/empty.css", "", "200", "Content-Length: 0\r\n", "");
    expect("/files/sub/", "", "200", "text/html", "<p>index</p>");
    expect("/files/sub", "", "200", "text/html", "<p>index</p>");
    char *text = get("/files/big.bin", "");
    assert_non_null(strstr(text, "Content-Length: 1000000\r\n"));
    const char *body = strstr(text, "\r\n\r\n") + 4;
    assert_int_equal(strlen(body), 1000000);
    for (int i = 0; i < 1000000; i++) assert_int_equal(body[i], 'a' + i % 26);
    free(text);
    text = talk("HEAD /files/big.bin HTTP/1.1\r\nHost: t\r\n\r\n");
    assert_non_null(strstr(text, "Content-Length: 1000000\r\n"));
    assert_string_equal(strstr(text, "\r\n\r\n"), "\r\n\r\n");
    free(text);
}

static void test_what_is_not_served(void **state) {
    (void)state;
    static const char *const paths[] = {"/files/nope",
                                        "/files/../etc/passwd",
                                        "/files/%2e%2e/%2e%2e/etc/passwd",
                                        "/files/.hidden",
                                        "/files/sub/../../x",
                                        "/files//etc/passwd",
                                        "/files/%2fetc/passwd",
                                        "/files/digits.txt%00.css",
                                        "/files/a%5c..%5cb",
                                        "/files/%2e/digits.txt",
                                        "/files/",
                                        "/files/digits.txt/x"};
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) expect(paths[i], "", "404", "\"statusCode\":404", NULL);
    char *text = talk("POST /files/digits.txt HTTP/1.1\r\nHost: t\r\n\r\n");
    assert_int_equal(strncmp(text, "HTTP/1.1 404", 12), 0);
    free(text);
}

static void test_conditions(void **state) {
    (void)state;
    char *text = get("/files/digits.txt", "");
    char tag[64], headers[200], date[64];
    assert_int_equal(sscanf(strstr(text, "ETag: "), "ETag: %63s", tag), 1);
    assert_int_equal(sscanf(strstr(text, "Last-Modified: "), "Last-Modified: %63[^\r]", date), 1);
    free(text);
    assert_int_equal(tag[0], '"');
    (void)snprintf(headers, sizeof headers, "If-None-Match: %s\r\n", tag);
    expect("/files/digits.txt", headers, "304", tag, "");
    (void)snprintf(headers, sizeof headers, "If-Modified-Since: %s\r\n", date);
    expect("/files/digits.txt", headers, "304", NULL, "");
    (void)snprintf(headers, sizeof headers, "If-None-Match: \"x\"\r\nIf-Modified-Since: %s\r\n", date);
    expect("/files/digits.txt", headers, "200", NULL, NULL);
    (void)snprintf(headers, sizeof headers, "Range: bytes=1-2\r\nIf-Range: %s\r\n", tag);
    expect("/files/digits.txt", headers, "206", NULL, "12");
    expect("/files/digits.txt", "Range: bytes=1-2\r\nIf-Range: \"old\"\r\n", "200", NULL, "0123456789");
}

static void test_ranges(void **state) {
    (void)state;
    expect("/files/digits.txt", "Range: bytes=2-4\r\n", "206", "Content-Range: bytes 2-4/10\r\n", "234");
    expect("/files/digits.txt", "Range: bytes=-1\r\n", "206", "Content-Range: bytes 9-9/10\r\n", "9");
    expect("/files/digits.txt", "Range: bytes=20-\r\n", "416", "Content-Range: bytes */10\r\n", "");
    expect("/files/digits.txt", "Range: nonsense\r\n", "200", NULL, "0123456789");
    expect("/files/digits.txt", "Range: bytes=0-1, 8-9\r\n", "206",
           "Content-Type: multipart/byteranges; boundary=kasma-range\r\n",
           "\r\n--kasma-range\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Range: bytes 0-1/10\r\n\r\n01"
           "\r\n--kasma-range\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Range: bytes 8-9/10\r\n\r\n89"
           "\r\n--kasma-range--\r\n");
    char *text = get("/files/big.bin", "Range: bytes=26-599999\r\n");
    assert_non_null(strstr(text, "Content-Length: 599974\r\n"));
    assert_int_equal(strstr(text, "\r\n\r\n")[4], 'a');
    free(text);
}

static void test_compression(void **state) {
    (void)state;
    expect("/files/big.css", "Accept-Encoding: gzip\r\n", "200", "Content-Encoding: gzip\r\n", NULL);
    expect("/files/big.css", "", "200", "Content-Length: 100000\r\n", NULL);
    char *text = get("/files/big.bin", "Accept-Encoding: gzip\r\n");
    assert_null(strstr(text, "Content-Encoding"));
    free(text);
}

static void test_client_goes_away(void **state) {
    (void)state;
    for (int turns = 0; turns < 6; turns++) {
        struct client c;
        client_open(&c);
        client_says(&c, "GET /files/big.bin HTTP/1.1\r\nHost: t\r\n\r\n");
        for (int i = 0; i < turns; i++) turn_loop();
        client_close(&c);
    }
    WAIT_UNTIL(server_in_flight(server) == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_files), cmocka_unit_test(test_what_is_not_served),
        cmocka_unit_test(test_conditions),  cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_compression), cmocka_unit_test(test_client_goes_away),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
