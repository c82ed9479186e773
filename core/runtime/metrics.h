/* Counters, gauges and histograms of all processes under one supervisor, printed as Prometheus text.
 *
 * The numbers lie in one shared anonymous mapping, made by metrics_open before the first fork: a directory of series
 * (name, label values, slot) that all processes share, and one array of slots per process. A process writes only its
 * own array, on its loop thread, with plain relaxed stores: no lock, no look-up, no cache line that another core
 * writes. /metrics adds up the arrays, so that any worker answers for all of them. A worker that is started again in a
 * dead one's place goes on from its counters; its gauges begin unset.
 *
 * Use: make the family once, look a series up once (per label values), keep the slot, and touch only the slot later:
 *
 *     static struct metric *requests;                    // = metric_counter("kasma_http_requests_total", "...",
 * "method,code"); uint32_t slot = metric_series(requests, "GET", "200"); metric_add(slot, 1);
 *
 * Nothing here fails on the caller: when the directory is full, or a family has too many series, numbers go to the
 * family's `other` series or to slot 0, which nobody reads. Label values never carry what a client chose freely (paths,
 * tenants, user agents): that is the caller's duty; the cap is the net. */
#ifndef KASMA_RUNTIME_METRICS_H
#define KASMA_RUNTIME_METRICS_H

#include "runtime/buf.h"

struct metric; /* a family: one name, one type, one list of label names; lives as long as the process */

/* How the values of several processes become one. */
enum metric_merge {
    METRIC_SUM, /* in flight, connections, bytes */
    METRIC_MAX, /* lag, age */
    METRIC_MIN, /* "is it up", "is it ready" */
};

/* Makes the shared mapping for `processes` processes; call before fork. Without it the first use makes one for this
 * process alone (tests, one-shot commands). False when the mapping cannot be made; everything then goes to slot 0. */
bool metrics_open(unsigned processes);
/* This process writes array `index` (0 .. processes-1) from now on. Call after fork, before the first number. */
void metrics_attach(unsigned index);

/* The family of that name, made on first use by any process; asking again returns the same one. `labels` is a list
 * of label names with commas, or NULL. NULL never comes back. */
struct metric *metric_counter(const char *name, const char *help, const char *labels);
struct metric *metric_gauge(const char *name, const char *help, enum metric_merge merge, const char *labels);
/* `bounds`: `count` rising upper bounds (at most 24), copied; NULL = 0.5 ms to 10 s. Values are in base units. */
struct metric *metric_histogram(const char *name, const char *help, const double *bounds, size_t count,
                                const char *labels);

/* The slot of a series; the values in the order of the label names, NULL after the last is supplied by the macro. */
#define metric_series(m, ...) metric_series_of((m), (const char *const[]){__VA_ARGS__, NULL})
uint32_t metric_series_of(struct metric *m, const char *const *values);
/* The slot of a family without labels. */
uint32_t metric_only(struct metric *m);
/* As metric_series, values as views (bytes that are not text are escaped). `count` must be the number of labels. */
uint32_t metric_lookup(struct metric *m, const struct str *values, size_t count);
size_t metric_label_count(const struct metric *m);

/* Counter: += n, which is never negative. Gauge: += n, may fall. */
void metric_add(uint32_t slot, double n);
/* Gauge. */
void metric_set(uint32_t slot, double value);
/* Histogram: one observation. */
void metric_observe(struct metric *m, uint32_t slot, double value);

/* Value of a counter or gauge over all processes, merged as its family says; a histogram gives its count. For tests
 * and status pages. 0 when nothing was written. */
double metric_value(struct metric *m, uint32_t slot);

/* Appends the Prometheus text format 0.0.4 of all families. False when out of memory. */
bool metrics_render(struct buf *out);

/* Refreshes process_* of this process (resident bytes, CPU seconds, open files); cheap enough for once a second. */
void metrics_sample_process(void);

#endif
