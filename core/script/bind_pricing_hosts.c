/* The hosts of rules that say something in place of what is stored: classes of tax, prices of units and bundles, what
 * is offered for shipping. They differ from those of promotions in that nothing competes: rules are asked by priority,
 * and who answers first decides; but each rule of shipping goes on from what the one before it left. */
#include "script/bind_pricing_host.h"
#include "script/sandbox.h"

/* One rule of a hook, and what it had answered when it was run. */
struct asking {
    struct attempt a;
    const char *hook;
    size_t at; /* where to look for the next rule */
    struct rule_info rule;
    size_t said; /* how many things it answered; 0: it was silent, or failed */
};

/* Runs the next rule of the hook. *more false: there is none. */
static bool ask_next(struct asking *ask, bool (*read)(lua_State *L, void *data, struct error *err), bool *more,
                     struct error *err) {
    struct pricing_rules *h = ask->a.host;
    struct sandbox_report report;
    for (; ask->at < rules_count(h->set); ask->at++) {
        ask->rule = rules_at(h->set, ask->at);
        if (!str_eq(str_of(ask->rule.hook), str_of(ask->hook))) continue;
        ask->said = 0;
        bool ok = pricing_attempt(&ask->a, ask->at, read, &report);
        if (!ok) ask->said = 0;
        if (!pricing_note(h, ask->at, ask->hook, &report, ask->said, err)) return false;
        if (!ok && str_eq(str_of(ask->rule.on_error), STR("block"))) h->blocked_by = ask->rule.id;
        ask->at++;
        *more = true;
        return true;
    }
    *more = false;
    return true;
}

static struct asking ask_open(struct pricing_rules *h, const char *hook, const struct pricing_view *view) {
    return (struct asking){
        .a = {.host = h,
              .shot = {.hook = hook, .view = view, .source = h->L, .idx = h->input, .serial = pricing_serial()}},
        .hook = hook};
}

static struct str id_of(const struct rule_info *rule) {
    return str_of(*rule->rule_id ? rule->rule_id : rule->id);
}

struct price_asking {
    struct asking ask;
    struct price_answer answer;
};

static bool read_prices(lua_State *L, void *data, struct error *err) {
    struct price_asking *p = data;
    const struct pricing_view *view = p->ask.a.shot.view;
    const char *why = NULL;
    if (!pricing_read_prices(L, p->ask.a.host->arena, view, &p->answer, &p->ask.said, err)) return false;
    return p->ask.said == 0 || price_answer_check(&p->answer, view, &why) ||
           error_set(err, ERR_INVALID, "units: %s", why ? why : "out of form");
}

bool pricing_host_prices(void *data, const struct pricing_view *view, const struct line_price *prices,
                         struct arena *arena, const struct price_answer **answers, size_t *n, struct error *err) {
    struct pricing_rules *h = data;
    struct price_answer *list = arena_zalloc(arena, RULES_PER_HOOK, sizeof *list);
    *n = 0;
    if (!list || !lua_checkstack(h->L, 24)) return error_set(err, ERR_MEMORY, "out of memory");
    struct price_asking p = {.ask = ask_open(h, "price.lines", view)};
    p.ask.a.shot.prices = prices;
    for (bool more = true; *n < RULES_PER_HOOK;) {
        p.answer = (struct price_answer){0};
        if (!ask_next(&p.ask, read_prices, &more, err)) return false;
        if (!more) break;
        if (p.ask.said == 0) continue;
        p.answer.rule_id = id_of(&p.ask.rule);
        p.answer.version = p.ask.rule.number;
        list[(*n)++] = p.answer;
    }
    *answers = list;
    return true;
}

struct bundle_asking {
    struct asking ask;
    int64_t price;
    bool answered;
};

static bool read_bundle(lua_State *L, void *data, struct error *err) {
    struct bundle_asking *b = data;
    if (!pricing_read_bundle(L, b->ask.a.shot.bundle, &b->price, &b->answered, err)) return false;
    b->ask.said = b->answered;
    return true;
}

bool pricing_host_bundle(void *data, const struct pricing_view *view, const struct bundle_question *question,
                         struct bundle_answer *answer, bool *answered, struct error *err) {
    struct pricing_rules *h = data;
    *answered = false;
    if (!lua_checkstack(h->L, 24)) return error_set(err, ERR_MEMORY, "out of memory");
    struct bundle_asking b = {.ask = ask_open(h, "bundle.price", view)};
    b.ask.a.shot.bundle = question;
    for (bool more = true; !*answered;) {
        if (!ask_next(&b.ask, read_bundle, &more, err)) return false;
        if (!more) break;
        if (b.ask.said == 0) continue;
        *answer = (struct bundle_answer){.rule_id = id_of(&b.ask.rule), .version = b.ask.rule.number, .price = b.price};
        *answered = true;
    }
    return true;
}

struct class_asking {
    struct asking ask;
    struct str tax_class;
    bool answered;
};

static bool read_class(lua_State *L, void *data, struct error *err) {
    struct class_asking *c = data;
    if (!pricing_read_class(L, c->ask.a.host->arena, &c->tax_class, &c->answered, err)) return false;
    c->ask.said = c->answered;
    return true;
}

bool pricing_host_class(void *data, const struct pricing_view *view, size_t line, struct class_answer *answer,
                        bool *answered, struct error *err) {
    struct pricing_rules *h = data;
    *answered = false;
    if (!lua_checkstack(h->L, 24)) return error_set(err, ERR_MEMORY, "out of memory");
    struct class_asking c = {.ask = ask_open(h, "tax.class_for_item", view)};
    /* What rules see of the quote is the same for all its items, and stays as the first of them built it. */
    if (h->class_serial == 0) h->class_serial = c.ask.a.shot.serial;
    c.ask.a.shot.serial = h->class_serial;
    c.ask.a.shot.item = &view->line[line];
    for (bool more = true; !*answered;) {
        if (!ask_next(&c.ask, read_class, &more, err)) return false;
        if (!more) break;
        if (c.ask.said == 0) continue;
        *answer = (struct class_answer){
            .rule_id = id_of(&c.ask.rule), .version = c.ask.rule.number, .tax_class = c.tax_class};
        *answered = true;
    }
    return true;
}

struct rates_asking {
    struct asking ask;
    struct rates_answer answer;
    bool answered;
};

static bool read_rates(lua_State *L, void *data, struct error *err) {
    struct rates_asking *r = data;
    const struct pricing_shot *shot = &r->ask.a.shot;
    const char *why = NULL;
    if (!pricing_read_rates(L, r->ask.a.host->arena, shot->offer, shot->offers, &r->answer, &r->answered, err))
        return false;
    r->ask.said = r->answered;
    return !r->answered || rates_answer_check(&r->answer, shot->offer, shot->offers, &why) ||
           error_set(err, ERR_INVALID, "methods: %s", why ? why : "out of form");
}

bool pricing_host_rates(void *data, const struct pricing_view *view, size_t group, const struct shipping_offer *offers,
                        size_t n, struct arena *arena, const struct rates_answer **answers, size_t *count,
                        struct error *err) {
    struct pricing_rules *h = data;
    struct rates_answer *list = arena_zalloc(arena, RULES_PER_HOOK, sizeof *list);
    *count = 0;
    if (!list || !lua_checkstack(h->L, 24)) return error_set(err, ERR_MEMORY, "out of memory");
    struct rates_asking r = {.ask = ask_open(h, "shipping.rates", view)};
    r.ask.a.shot.parcel = &view->group[group];
    r.ask.a.shot.offer = offers;
    r.ask.a.shot.offers = n;
    for (bool more = true; *count < RULES_PER_HOOK && r.ask.a.shot.offers;) {
        r.answer = (struct rates_answer){0};
        if (!ask_next(&r.ask, read_rates, &more, err)) return false;
        if (!more) break;
        if (r.ask.said == 0) continue;
        r.answer.rule_id = id_of(&r.ask.rule);
        r.answer.version = r.ask.rule.number;
        list[(*count)++] = r.answer;
        r.ask.a.shot.offer = r.answer.offer;
        r.ask.a.shot.offers = r.answer.offers;
    }
    *answers = list;
    return true;
}

struct rounding_asking {
    struct asking ask;
    int64_t amount;
    bool answered;
};

static bool read_rounding(lua_State *L, void *data, struct error *err) {
    struct rounding_asking *r = data;
    const struct pricing_shot *shot = &r->ask.a.shot;
    if (!pricing_read_rounding(L, *shot->total, shot->view->currency, &r->amount, &r->answered, err)) return false;
    r->ask.said = r->answered;
    return true;
}

bool pricing_host_rounding(void *data, const struct pricing_view *view, int64_t total, struct rounding_answer *answer,
                           bool *answered, struct error *err) {
    struct pricing_rules *h = data;
    *answered = false;
    if (!lua_checkstack(h->L, 24)) return error_set(err, ERR_MEMORY, "out of memory");
    struct rounding_asking r = {.ask = ask_open(h, "currency.round", view)};
    r.ask.a.shot.total = &total;
    for (bool more = true; !*answered;) {
        if (!ask_next(&r.ask, read_rounding, &more, err)) return false;
        if (!more) break;
        if (r.ask.said == 0) continue;
        *answer =
            (struct rounding_answer){.rule_id = id_of(&r.ask.rule), .version = r.ask.rule.number, .amount = r.amount};
        *answered = true;
    }
    return true;
}
