/* The parts of core.pricing; private to the bind_pricing*.c files and to the host of rules. */
#ifndef KASMA_SCRIPT_BIND_PRICING_H
#define KASMA_SCRIPT_BIND_PRICING_H

#include <lua.h>

#include "commerce/pricing.h"
#include "script/rules.h"

struct pricing_names;

/* Reads the input table at `idx` (its form: head of bind_pricing.c) into `in`. Strings are borrowed from the table,
 * which must stay unchanged on the stack until the quote has been pushed; arrays are the arena's. Raises a Lua error
 * that names the member when the table is not of that form. */
void pricing_read(lua_State *L, int idx, const struct pricing_names *names, struct arena *a, struct pricing_input *in);
/* The index of member names that pricing_read needs, as a userdata that is pushed; made once a state. */
struct pricing_names *pricing_push_names(lua_State *L);
/* Pushes the quote as a table. */
void pricing_push(lua_State *L, int keys, const struct quote *q);
/* Pushes the table of member names that `keys` of pricing_push is the index of; made once a state. */
void pricing_push_keys(lua_State *L);

/* What the rules of one hook call are given. `source` is the platform's state, `idx` where the quote's input table
 * lies: what the caller put into `snapshot`, and into `attributes` and `properties` of lines, comes from there. */
struct pricing_shot {
    const char *hook;
    const struct pricing_view *view;
    lua_State *source;
    int idx;
    uint64_t serial; /* another for each hook call of each quote */
    /* What the hook decides about, where it is more than the view; NULL: not of this hook. */
    const struct line_price *prices; /* price.lines */
    const struct bundle_question *bundle;
    const struct quote_line *item;    /* tax.class_for_item: a line of the item */
    const struct quote_group *parcel; /* shipping.rates, with what is offered for it */
    const struct shipping_offer *offer;
    size_t offers;
    const int64_t *total; /* currency.round */
};

/* Pushes on `L`, a sandbox's state, what a rule may know of a quote (sheet 02, 6.2); call it where Lua may raise. The
 * first rule of a shot that runs in a state builds it, others get views of it. False: `err`. */
bool pricing_push_shot(lua_State *L, struct pricing_shot *shot, struct error *err);
/* Pushes {record = {field, ...}} of everything a shot holds: for the catalogue of hooks. */
void pricing_push_records(lua_State *L);
/* The input is on top: pushes the subject of a hook that has one of its own; it is the run's. False: it has none. */
bool pricing_push_subject(lua_State *L, const struct pricing_shot *shot);
/* Adds the records of these subjects to the table on top. */
void pricing_add_subject_records(lua_State *L);

/* How the rules of a set take part in a quote, and what became of each run. */
struct pricing_rules {
    struct pricing_hooks hooks; /* for the quote; its data is this struct */
    lua_State *L;
    int input;
    struct rule_set *set;
    struct arena *arena;
    uint64_t class_serial;  /* of the shots of tax.class_for_item */
    uint64_t left;          /* instructions that the rules of this quote still share */
    uint64_t wall_us;       /* spent in rules */
    uint64_t began_us;      /* of this thread's own time */
    bool late;              /* the wall net of a run or of the quote was hit: the quote must not be answered */
    const char *blocked_by; /* a rule that failed and blocks; NULL: none */
    struct str output;      /* of the rule that ran last, on trial */
    struct pricing_run *run, *last;
};

void pricing_rules_begin(struct pricing_rules *r, lua_State *L, int input, struct rule_set *set, struct arena *a);
/* Pushes the list of runs, in their order; `keys` is the index of the table that pricing_push_run_keys pushes once a
 * state. */
void pricing_push_runs(lua_State *L, int keys, const struct pricing_rules *r);
void pricing_push_run_keys(lua_State *L);

/* The operations in the table on top of `L` ({operations = {...}} or nil), copied into the arena. Allocates nothing in
 * L. False: the first fault, also an unknown key or a number that is not an integer. */
bool pricing_read_operations(lua_State *L, struct arena *a, struct rule_result *out, struct error *err);
/* What the table on top answers to price.lines ({units = {line id = price}, label}), and to bundle.price ({price}); nil
 * answers nothing. As above. */
bool pricing_read_prices(lua_State *L, struct arena *a, const struct pricing_view *view, struct price_answer *out,
                         size_t *named, struct error *err);
bool pricing_read_bundle(lua_State *L, const struct bundle_question *question, int64_t *price, bool *answered,
                         struct error *err);
/* The text on top, of 1 to 64 bytes. As above. */
bool pricing_read_class(lua_State *L, struct arena *a, struct str *tax_class, bool *answered, struct error *err);
/* The number on top, as an amount that a total may be rounded to. As above. */
bool pricing_read_rounding(lua_State *L, int64_t total, const struct currency *currency, int64_t *amount,
                           bool *answered, struct error *err);
/* The list of {id, name, price, estimated_days, hidden} on top, each of one that was offered. As above. */
bool pricing_read_rates(lua_State *L, struct arena *a, const struct shipping_offer *offers, size_t n,
                        struct rates_answer *out, bool *answered, struct error *err);
/* The list of {line, rate_ppm, name, jurisdiction, compound} on top of `L`; *answered false for nil. As above. */
bool pricing_read_taxes(lua_State *L, struct arena *a, const struct pricing_view *view,
                        const struct tax_answer **answers, size_t *n, bool *answered, struct error *err);

#endif
