// link: runtime
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/metrics.h"

/* Runs `fn` in a child that writes array `index`. */
static void in_process(unsigned index, void (*fn)(void)) {
    assert_int_equal(fflush(stdout), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        metrics_attach(index);
        fn();
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static char *rendered(void) {
    struct buf b = {0};
    assert_true(metrics_render(&b));
    assert_true(buf_byte(&b, '\0'));
    return b.data;
}

static void assert_line(const char *line) {
    char *text = rendered();
    if (!strstr(text, line)) fail_msg("no line %s in:\n%s", line, text);
    free(text);
}

static void serve_some(void) {
    struct metric *requests = metric_counter("t_requests_total", "Requests", "method,code");
    metric_add(metric_series(requests, "GET", "200"), 3);
    metric_add(metric_series(requests, "POST", "201"), 1);
    struct metric *flight = metric_gauge("t_in_flight", "At work", METRIC_SUM, NULL);
    metric_set(metric_only(flight), 5);
}

static void test_processes_add_up(void **state) {
    (void)state;
    struct metric *requests = metric_counter("t_requests_total", "Requests", "method,code");
    metric_add(metric_series(requests, "GET", "200"), 1);
    in_process(1, serve_some);
    in_process(2, serve_some);
    assert_line("# TYPE t_requests_total counter\n");
    assert_line("t_requests_total{method=\"GET\",code=\"200\"} 7\n");
    /* Seen first in a child, and found here by its name. */
    assert_line("t_requests_total{method=\"POST\",code=\"201\"} 2\n");
    assert_int_equal((int)metric_value(requests, metric_series(requests, "POST", "201")), 2);
}

static void nothing(void) {}

static void test_a_restarted_process_keeps_counters_and_drops_gauges(void **state) {
    (void)state;
    in_process(1, serve_some);
    assert_line("t_in_flight 10\n");
    in_process(1, nothing);
    assert_line("t_in_flight 5\n");
    assert_line("t_requests_total{method=\"GET\",code=\"200\"} 10\n");
}

static void lag_2(void) {
    metric_set(metric_only(metric_gauge("t_lag_seconds", "Lag", METRIC_MAX, NULL)), 2);
    metric_set(metric_only(metric_gauge("t_up", "Up", METRIC_MIN, NULL)), 1);
}

static void lag_half(void) {
    metric_set(metric_only(metric_gauge("t_lag_seconds", "Lag", METRIC_MAX, NULL)), 0.5);
    metric_set(metric_only(metric_gauge("t_up", "Up", METRIC_MIN, NULL)), 0);
}

static void test_gauges_merge(void **state) {
    (void)state;
    in_process(1, lag_2);
    in_process(2, lag_half);
    assert_line("t_lag_seconds 2\n");
    assert_line("t_up 0\n");
    struct metric *unset = metric_gauge("t_never_set", "Nothing", METRIC_MAX, NULL);
    uint32_t slot = metric_only(unset);
    assert_int_equal((int)metric_value(unset, slot), 0);
    metric_add(slot, 2);
    metric_add(slot, -3);
    assert_line("t_never_set -1\n");
}

static void test_histogram(void **state) {
    (void)state;
    const double bounds[] = {0.1, 1};
    struct metric *h = metric_histogram("t_seconds", "Time", bounds, 2, "op");
    uint32_t slot = metric_series(h, "read");
    metric_observe(h, slot, 0.05);
    metric_observe(h, slot, 0.1);
    metric_observe(h, slot, 0.5);
    metric_observe(h, slot, 30);
    assert_line("t_seconds_bucket{op=\"read\",le=\"0.1\"} 2\n"
                "t_seconds_bucket{op=\"read\",le=\"1\"} 3\n"
                "t_seconds_bucket{op=\"read\",le=\"+Inf\"} 4\n"
                "t_seconds_sum{op=\"read\"} 30.65\n"
                "t_seconds_count{op=\"read\"} 4\n");
}

static void test_label_values_are_escaped(void **state) {
    (void)state;
    struct metric *m = metric_counter("t_odd_total", "Odd", "v");
    metric_add(metric_series(m, "a\"b\\c\nd\x01\xff"), 1);
    assert_line("t_odd_total{v=\"a\\\"b\\\\c\\nd??\"} 1\n");
}

static void test_a_flood_of_labels_ends_in_other(void **state) {
    (void)state;
    struct metric *m = metric_counter("t_flood_total", "Flood", "v");
    char value[16];
    double expected = 0;
    for (int i = 0; i < 5000; i++) {
        assert_true(snprintf(value, sizeof value, "v%d", i) > 0);
        metric_add(metric_series(m, value), 1);
        if (i >= 4096) expected++;
    }
    assert_true(metric_value(m, metric_series(m, "v4999")) == expected);
    assert_true(metric_value(m, metric_series(m, "v0")) == 1);
}

static void test_misuse_is_harmless(void **state) {
    (void)state;
    struct metric *m = metric_counter("t_twice", "A counter", NULL);
    struct metric *again = metric_counter("t_twice", "A counter", NULL);
    assert_ptr_equal(m, again);
    metric_add(metric_only(m), 1);
    /* The wrong number of labels goes to the bin. */
    assert_int_equal(metric_series(m, "x"), 0);
    metric_add(0, 100);
    assert_line("t_twice 1\n");
}

static int open_three(void **state) {
    (void)state;
    if (!metrics_open(3)) return -1;
    metrics_attach(0);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_processes_add_up),
        cmocka_unit_test(test_a_restarted_process_keeps_counters_and_drops_gauges),
        cmocka_unit_test(test_gauges_merge),
        cmocka_unit_test(test_histogram),
        cmocka_unit_test(test_label_values_are_escaped),
        cmocka_unit_test(test_misuse_is_harmless),
        cmocka_unit_test(test_a_flood_of_labels_ends_in_other),
    };
    return cmocka_run_group_tests(tests, open_three, NULL);
}
