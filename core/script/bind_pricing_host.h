/* What the hosts of rules in a quote share; private to the bind_pricing*.c files. */
#ifndef KASMA_SCRIPT_BIND_PRICING_HOST_H
#define KASMA_SCRIPT_BIND_PRICING_HOST_H

#include "script/bind_pricing.h"

/* What one run is built from and read into. Hosts that read something else begin their own struct with this one. */
struct attempt {
    struct pricing_rules *host;
    struct pricing_shot shot;
    struct rule_result *result;
    const struct tax_answer *taxes;
    size_t ntaxes;
    bool answered;
};

/* Another number each time, for shots. */
uint64_t pricing_serial(void);
/* Runs one rule within what the quote has left; `read` is given the attempt. */
bool pricing_attempt(struct attempt *a, size_t rule, bool (*read)(lua_State *L, void *data, struct error *err),
                     struct sandbox_report *report);
/* Keeps what became of a run. False: out of memory. */
bool pricing_note(struct pricing_rules *h, size_t rule, const char *hook, const struct sandbox_report *report,
                  size_t operations, struct error *err);

/* Hosts, as struct pricing_hooks has them. */
bool pricing_host_rounding(void *data, const struct pricing_view *view, int64_t total, struct rounding_answer *answer,
                           bool *answered, struct error *err);
bool pricing_host_class(void *data, const struct pricing_view *view, size_t line, struct class_answer *answer,
                        bool *answered, struct error *err);
bool pricing_host_rates(void *data, const struct pricing_view *view, size_t group, const struct shipping_offer *offers,
                        size_t n, struct arena *a, const struct rates_answer **answers, size_t *count,
                        struct error *err);
bool pricing_host_prices(void *data, const struct pricing_view *view, const struct line_price *prices, struct arena *a,
                         const struct price_answer **answers, size_t *n, struct error *err);
bool pricing_host_bundle(void *data, const struct pricing_view *view, const struct bundle_question *question,
                         struct bundle_answer *answer, bool *answered, struct error *err);

#endif
