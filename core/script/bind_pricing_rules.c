/* The rules of a set in a quote: which run, with how much of the budget they share, and what stands in for one that
 * fails. `skip`: the built-in result; `fallback`: its stored operations; `block`: the quote is answered, and says that
 * nothing may be sold. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "runtime/log.h"
#include "script/bind_pricing_host.h"
#include "script/json.h"
#include "script/sandbox.h"

#define QUOTE_INSTRUCTIONS 2000000
#define QUOTE_WALL_US 40000
#define OUTPUT_MAX ((size_t)64 * 1024)

struct pricing_run {
    struct pricing_run *next;
    size_t rule;
    const char *hook;
    enum outcome outcome;
    int line;
    uint64_t instructions, micros;
    size_t heap, result_bytes, operations;
    bool tripped;
    const char *message, *reason, *stack;
    struct str log;
    struct str output; /* of a trial: the operations as JSON */
};

uint64_t pricing_serial(void) {
    static uint64_t serials; /* exact as a double for longer than any process lives */
    return ++serials;
}

static uint64_t thread_us(void) {
    struct timespec ts;
    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts) != 0) return 0;
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static bool build(lua_State *L, void *data, struct error *err) {
    struct attempt *a = data;
    return pricing_push_shot(L, &a->shot, err);
}

/* What a rule on trial has answered, for tests that compare it word by word; a rule that is live pays nothing for it.
 * It is copied out of the sandbox first: encoding allocates, and a state at its limit must not be asked for more. */
static void keep_output(lua_State *L, struct pricing_rules *h) {
    struct buf text = {0};
    struct error err = {0};
    int top = lua_gettop(h->L);
    h->output = (struct str){0};
    if (lua_istable(L, -1) && sandbox_copy(L, -1, h->L, OUTPUT_MAX, &err)) {
        if (json_encode_sorted(h->L, -1, &text, &err)) h->output.at = arena_strdup(h->arena, buf_str(&text));
        if (h->output.at) h->output.len = text.len;
    }
    lua_settop(h->L, top);
    buf_free(&text);
}

static bool read_operations(lua_State *L, void *data, struct error *err) {
    struct attempt *a = data;
    const char *why = NULL;
    if (rules_is_trial(a->host->set)) keep_output(L, a->host);
    if (!pricing_read_operations(L, a->host->arena, a->result, err)) return false;
    return operations_check(a->result, a->shot.view, &why) ||
           error_set(err, ERR_INVALID, "%s", why ? why : "out of form");
}

static bool read_taxes(lua_State *L, void *data, struct error *err) {
    struct attempt *a = data;
    return pricing_read_taxes(L, a->host->arena, a->shot.view, &a->taxes, &a->ntaxes, &a->answered, err);
}

static const char *kept(struct arena *a, const char *text) {
    return *text ? arena_strdup(a, str_of(text)) : NULL;
}

bool pricing_note(struct pricing_rules *h, size_t rule, const char *hook, const struct sandbox_report *report,
                  size_t operations, struct error *err) {
    struct pricing_run *run = arena_zalloc(h->arena, 1, sizeof *run);
    if (!run) return error_set(err, ERR_MEMORY, "out of memory");
    *run = (struct pricing_run){.rule = rule,
                                .hook = hook,
                                .outcome = report->outcome,
                                .line = report->line,
                                .instructions = report->instructions,
                                .micros = report->micros,
                                .heap = report->heap_peak,
                                .result_bytes = report->result,
                                .operations = operations,
                                .tripped = report->tripped,
                                .message = kept(h->arena, report->message),
                                .reason = kept(h->arena, report->reason),
                                .stack = kept(h->arena, report->stack)};
    struct str log = report->log_lines ? rules_log(h->set) : (struct str){0};
    if (log.len) run->log = (struct str){.at = arena_strdup(h->arena, log), .len = log.len};
    if (!run->log.at) run->log.len = 0;
    run->output = h->output;
    h->output = (struct str){0};
    if (h->last) {
        h->last->next = run;
    } else {
        h->run = run;
    }
    h->last = run;
    return true;
}

bool pricing_attempt(struct attempt *a, size_t rule, bool (*read)(lua_State *L, void *data, struct error *err),
                     struct sandbox_report *report) {
    struct pricing_rules *h = a->host;
    struct sandbox_limits limits = sandbox_pure;
    if (h->left == 0) {
        *report = (struct sandbox_report){.outcome = OUTCOME_BUDGET,
                                          .message = "the rules of one quote share 2,000,000 instructions"};
        return false;
    }
    bool trial = rules_is_trial(h->set); /* nobody waits for it */
    if (trial) limits.wall_us *= 20;
    bool short_of = h->left < limits.instructions;
    if (short_of) limits.instructions = h->left;
    bool ok = rules_run(h->set, rule, &limits, build, read, a, report);
    h->left -= report->instructions < h->left ? report->instructions : h->left;
    h->wall_us += report->micros;
    if (report->outcome == OUTCOME_INSTRUCTIONS && short_of) report->outcome = OUTCOME_BUDGET;
    /* The wall is cheap to read and the thread's own time decides, so that a busy machine fails no quote. */
    if (report->outcome == OUTCOME_TIME ||
        (!trial && h->wall_us > QUOTE_WALL_US && thread_us() - h->began_us > QUOTE_WALL_US))
        h->late = true;
    return ok;
}

/* The stored operations of a rule that failed. */
static bool use_fallback(struct attempt *a, const struct rule_info *rule) {
    lua_State *L = a->host->L;
    struct error err = {0};
    const char *why = NULL;
    int top = lua_gettop(L);
    lua_createtable(L, 0, 1);
    bool ok = json_decode(L, rule->fallback, &err);
    if (ok) {
        lua_setfield(L, -2, "operations");
        ok = pricing_read_operations(L, a->host->arena, a->result, &err) &&
             operations_check(a->result, a->shot.view, &why);
    }
    lua_settop(L, top);
    if (!ok) log_line(LOG_WARN, "rule %s: its fallback: %s", rule->id, why ? why : err.message);
    return ok;
}

static bool is(const char *a, const char *b) {
    return strcmp(a, b) == 0;
}

static size_t count_of(const struct rule_set *set, const char *hook) {
    size_t n = 0;
    for (size_t i = 0; i < rules_count(set); i++) n += is(rules_at(set, i).hook, hook);
    return n;
}

static bool promotion(void *data, const struct pricing_view *view, struct arena *arena,
                      const struct rule_result **results, size_t *n, struct error *err) {
    struct pricing_rules *h = data;
    struct sandbox_report report;
    size_t most = count_of(h->set, "promotion");
    struct rule_result *list = arena_zalloc(arena, most ? most : 1, sizeof *list);
    *n = 0;
    if (!list) return error_set(err, ERR_MEMORY, "out of memory");
    if (most && !lua_checkstack(h->L, 24)) return error_set(err, ERR_MEMORY, "out of memory");
    struct attempt a = {
        .host = h,
        .shot = {.hook = "promotion", .view = view, .source = h->L, .idx = h->input, .serial = pricing_serial()}};
    for (size_t i = 0; most && i < rules_count(h->set); i++) {
        struct rule_info rule = rules_at(h->set, i);
        if (!is(rule.hook, "promotion")) continue;
        a.result = &list[*n];
        bool ok = pricing_attempt(&a, i, read_operations, &report);
        if (!pricing_note(h, i, "promotion", &report, ok ? a.result->operations : 0, err)) return false;
        if (!ok) {
            *a.result = (struct rule_result){.invalid = true};
            if (is(rule.on_error, "block")) h->blocked_by = rule.id;
            if (is(rule.on_error, "fallback") && rule.fallback.len) a.result->invalid = !use_fallback(&a, &rule);
        }
        a.result->rule_id = str_of(*rule.rule_id ? rule.rule_id : rule.id);
        a.result->name = str_of(rule.name);
        a.result->version = rule.number;
        a.result->priority = rule.priority;
        ++*n;
    }
    *results = list;
    return true;
}

/* The first rule that answers decides. */
static bool tax_resolve(void *data, const struct pricing_view *view, struct arena *arena,
                        const struct tax_answer **answers, size_t *n, bool *answered, struct error *err) {
    struct pricing_rules *h = data;
    struct sandbox_report report;
    (void)arena;
    *answered = false;
    if (!lua_checkstack(h->L, 24)) return error_set(err, ERR_MEMORY, "out of memory");
    struct attempt a = {
        .host = h,
        .shot = {.hook = "tax.resolve", .view = view, .source = h->L, .idx = h->input, .serial = pricing_serial()}};
    for (size_t i = 0; !*answered && i < rules_count(h->set); i++) {
        struct rule_info rule = rules_at(h->set, i);
        if (!is(rule.hook, "tax.resolve")) continue;
        bool ok = pricing_attempt(&a, i, read_taxes, &report);
        if (!pricing_note(h, i, "tax.resolve", &report, ok ? a.ntaxes : 0, err)) return false;
        if (!ok && is(rule.on_error, "block")) h->blocked_by = rule.id;
        if (!ok || !a.answered) continue;
        *answers = a.taxes;
        *n = a.ntaxes;
        *answered = true;
    }
    return true;
}

void pricing_rules_begin(struct pricing_rules *h, lua_State *L, int input, struct rule_set *set, struct arena *a) {
    *h = (struct pricing_rules){.L = L, .input = input, .set = set, .arena = a, .left = QUOTE_INSTRUCTIONS};
    if (!set || rules_count(set) == 0) return;
    h->began_us = thread_us();
    h->hooks = (struct pricing_hooks){.data = h,
                                      .tax_class = count_of(set, "tax.class_for_item") ? pricing_host_class : NULL,
                                      .currency_round = count_of(set, "currency.round") ? pricing_host_rounding : NULL,
                                      .shipping_rates = count_of(set, "shipping.rates") ? pricing_host_rates : NULL,
                                      .price_lines = count_of(set, "price.lines") ? pricing_host_prices : NULL,
                                      .bundle_price = count_of(set, "bundle.price") ? pricing_host_bundle : NULL,
                                      .promotion = count_of(set, "promotion") ? promotion : NULL,
                                      .tax_resolve = count_of(set, "tax.resolve") ? tax_resolve : NULL};
}

// clang-format off
#define RUN_FIELDS(X) \
    X(id) X(rule_id) X(name) X(hook) X(version) X(on_error) X(outcome) X(message) X(reason) X(stack) X(number) X(line) \
    X(instructions) X(micros) X(heap) X(result_bytes) X(operations) X(tripped) X(log) X(output)
// clang-format on
#define X(name) RUN_##name,
enum run_field { RUN_none, RUN_FIELDS(X) RUN_fields };
#undef X

void pricing_push_run_keys(lua_State *L) {
#define X(name) #name,
    static const char *const names[] = {RUN_FIELDS(X)};
#undef X
    lua_createtable(L, sizeof names / sizeof *names, 0);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        lua_pushstring(L, names[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
}

/* Each sets a member of the run on top. */
static void set_text(lua_State *L, int keys, enum run_field field, const char *value) {
    if (!value || !*value) return;
    lua_rawgeti(L, keys, (int)field);
    lua_pushstring(L, value);
    lua_rawset(L, -3);
}

static void set_number(lua_State *L, int keys, enum run_field field, double value) {
    lua_rawgeti(L, keys, (int)field);
    lua_pushnumber(L, value);
    lua_rawset(L, -3);
}

void pricing_push_runs(lua_State *L, int keys, const struct pricing_rules *h) {
    int n = 0;
    lua_newtable(L);
    for (const struct pricing_run *run = h->run; run; run = run->next) {
        struct rule_info rule = rules_at(h->set, run->rule);
        lua_createtable(L, 0, RUN_fields - 1);
        set_text(L, keys, RUN_id, rule.id);
        set_text(L, keys, RUN_rule_id, rule.rule_id);
        set_text(L, keys, RUN_name, rule.name);
        set_text(L, keys, RUN_hook, run->hook);
        set_text(L, keys, RUN_version, rule.version);
        set_text(L, keys, RUN_on_error, rule.on_error);
        set_text(L, keys, RUN_outcome, outcome_name(run->outcome));
        set_text(L, keys, RUN_message, run->message);
        set_text(L, keys, RUN_reason, run->reason);
        set_text(L, keys, RUN_stack, run->stack);
        set_number(L, keys, RUN_number, (double)rule.number);
        if (run->line) set_number(L, keys, RUN_line, run->line);
        set_number(L, keys, RUN_instructions, (double)run->instructions);
        set_number(L, keys, RUN_micros, (double)run->micros);
        set_number(L, keys, RUN_heap, (double)run->heap);
        set_number(L, keys, RUN_result_bytes, (double)run->result_bytes);
        set_number(L, keys, RUN_operations, (double)run->operations);
        lua_rawgeti(L, keys, RUN_tripped);
        lua_pushboolean(L, run->tripped);
        lua_rawset(L, -3);
        if (run->log.len) {
            lua_rawgeti(L, keys, RUN_log);
            lua_pushlstring(L, run->log.at, run->log.len);
            lua_rawset(L, -3);
        }
        if (run->output.len) {
            lua_rawgeti(L, keys, RUN_output);
            lua_pushlstring(L, run->output.at, run->output.len);
            lua_rawset(L, -3);
        }
        lua_rawseti(L, -2, ++n);
    }
    if (n == 0) json_mark_array(L, -1);
}
