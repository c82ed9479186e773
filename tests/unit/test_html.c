// link: content
/* What comes out of the sanitiser is safe to show and what goes in stays readable. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "content/html.h"

static void check(const char *in, const char *want) {
    struct buf out = {0};
    struct error err;
    assert_true(html_sanitize(str_of(in), &out, &err));
    assert_true(buf_byte(&out, '\0'));
    assert_string_equal(out.data, want);
    buf_free(&out);
}

static void keeps_text_lists_and_images(void **state) {
    (void)state;
    check("<p>Trà <b>sen</b></p><ul><li>1<li>2</ul>", "<p>Trà <b>sen</b></p><ul><li>1</li><li>2</li></ul>");
    check("<img src=\"https://img.example/a.png\" alt=\"a &quot;b\">",
          "<img src=\"https://img.example/a.png\" alt=\"a &quot;b\">");
    check("<a href=\"/p/1\">x</a>", "<a href=\"/p/1\" rel=\"noopener nofollow\">x</a>");
    check("<p style=\"color: red; position: fixed; text-align:center\">x</p>",
          "<p style=\"color:red;text-align:center\">x</p>");
}

static void drops_what_runs(void **state) {
    (void)state;
    check("<script>alert(1)</script>ok", "ok");
    check("<p onclick=\"x()\">ok</p>", "<p>ok</p>");
    check("<a href=\"javascript:alert(1)\">x</a>", "<a rel=\"noopener nofollow\">x</a>");
    check("<a href=\" JaVa\tscript:alert(1)\">x</a>", "<a rel=\"noopener nofollow\">x</a>");
    check("<img src=x:y onerror=alert(1)>", "");
    check("<svg onload=alert(1)><p>in</p></svg>", "<p>in</p>");
    check("<iframe src=\"https://evil.example/\"></iframe>", "");
    check("<iframe src=\"https://www.youtube.com/embed/abc\"></iframe>",
          "<iframe src=\"https://www.youtube.com/embed/abc\"></iframe>");
    check("<p style=\"background-color:url(javascript:x)\">x</p>", "<p>x</p>");
    check("<!-- --!><img src=x onerror=alert(1)> -->a", "<img src=\"x\"> --&gt;a");
    check("<noscript><p title=\"</noscript><img src=x onerror=alert(1)>\">",
          "<p title=\"&lt;/noscript&gt;&lt;img src=x onerror=alert(1)&gt;\"></p>");
}

static void refuses_what_is_too_much(void **state) {
    (void)state;
    size_t n = HTML_MAX + 1;
    char *big = malloc(n);
    assert_non_null(big);
    memset(big, 'a', n);
    struct buf out = {0};
    struct error err;
    assert_false(html_sanitize(str_n(big, n), &out, &err));
    assert_int_equal(err.kind, ERR_LIMIT);
    for (size_t i = 0; i + 5 <= 5000; i += 5) memcpy(big + i, "<div>", 5);
    assert_false(html_sanitize(str_n(big, 5000), &out, &err));
    assert_int_equal(err.kind, ERR_LIMIT);
    /* A thousand open tags are put into each of twenty thousand paragraphs: gigabytes, if nobody stops it. */
    struct buf tangle = {0};
    assert_true(buf_add(&tangle, STR("<div>")));
    for (int i = 0; i < 1000; i++) assert_true(buf_printf(&tangle, "<b x=%d>", i));
    assert_true(buf_add(&tangle, STR("</div>")));
    while (tangle.len + 8 <= HTML_MAX) assert_true(buf_add(&tangle, STR("<p>x</p>")));
    assert_false(html_sanitize(buf_str(&tangle), &out, &err));
    assert_int_equal(err.kind, ERR_LIMIT);
    assert_false(html_text(buf_str(&tangle), 100, &out, &err));
    assert_int_equal(err.kind, ERR_LIMIT);
    buf_free(&tangle);
    free(big);
    buf_free(&out);
}

static void makes_an_excerpt(void **state) {
    (void)state;
    struct buf out = {0};
    struct error err;
    assert_true(html_text(STR("<h1>Trà  sen</h1>\n<p>Tây <b>Hồ</b>!</p><script>x</script>"), 255, &out, &err));
    assert_true(buf_byte(&out, '\0'));
    assert_string_equal(out.data, "Trà sen Tây Hồ!");
    buf_clear(&out);
    assert_true(html_text(STR("<p>Trà sen</p>"), 3, &out, &err));
    assert_true(buf_byte(&out, '\0'));
    assert_string_equal(out.data, "Trà");
    buf_free(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keeps_text_lists_and_images),
        cmocka_unit_test(drops_what_runs),
        cmocka_unit_test(refuses_what_is_too_much),
        cmocka_unit_test(makes_an_excerpt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
