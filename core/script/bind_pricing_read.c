/* From a Lua table to struct pricing_input. What each table may hold is data: one row a member, with its kind and its
 * place in the struct; members that no row names are passed over, so that rows of SQL can be handed on with more in
 * them. */
#include <lauxlib.h>
#include <math.h>
#include <stdlib.h>

#include "script/bind_money.h"
#include "script/bind_pricing.h"
#include "script/calendar.h"

enum kind { END, STRING, INTEGER, BOOLEAN, TIME, WORD, STRINGS, TABLE, ARRAY, CUSTOM };

struct reader {
    lua_State *L;
    const struct pricing_names *names;
    struct arena *arena;
    struct pricing_input *in;
    const char *outer; /* the table being read, for messages */
    size_t index;      /* within its array, from 1; 0 = no array */
};

struct field;

struct array {
    const struct field *fields;
    size_t size;     /* of one element */
    size_t count_at; /* where the count goes, in the struct that holds the array */
    size_t most;
    void (*defaults)(void *element);
};

struct field {
    const char *name;
    enum kind kind;
    size_t at;
    const char *const *words;   /* WORD: in the order of the enum, NULL-terminated */
    const struct field *fields; /* TABLE */
    const struct array *array;
    void (*custom)(struct reader *r, void *base); /* the value is on top of the stack and stays there */
};

#define NAMES_SLOTS 1024 /* a power of two, over twice the rows of all tables */

/* Where the rows of all tables are found by the address of their interned name. */
struct pricing_names {
    struct {
        const char *name; /* NULL: free */
        const struct field *table, *row;
    } slot[NAMES_SLOTS];
};

static size_t names_slot(const struct field *table, const char *name) {
    uint64_t mixed = ((uint64_t)(uintptr_t)name ^ (uint64_t)(uintptr_t)table << 7) * UINT64_C(0x9E3779B97F4A7C15);
    return (size_t)(mixed >> 54);
}

static const struct field *names_find(const struct pricing_names *names, const struct field *table, const char *name) {
    for (size_t i = names_slot(table, name); names->slot[i].name; i = (i + 1) % NAMES_SLOTS)
        if (names->slot[i].name == name && names->slot[i].table == table) return names->slot[i].row;
    return NULL;
}

static void fail(struct reader *r, const char *name, const char *expected) {
    if (r->index) luaL_error(r->L, "quote: %s[%d].%s: %s expected", r->outer, (int)r->index, name, expected);
    luaL_error(r->L, "quote: %s%s%s: %s expected", r->outer, *r->outer ? "." : "", name, expected);
}

static void *room(struct reader *r, size_t n, size_t size) {
    void *p = arena_zalloc(r->arena, n ? n : 1, size);
    if (!p) luaL_error(r->L, "out of memory");
    return p;
}

static struct str string_at(lua_State *L, int idx) {
    struct str s;
    s.at = lua_tolstring(L, idx, &s.len);
    return s;
}

static void read_fields(struct reader *r, const struct field *fields, void *base);

static void read_time(struct reader *r, const char *name, int64_t *out) {
    if (lua_type(r->L, -1) == LUA_TSTRING) {
        if (!calendar_parse(string_at(r->L, -1), NULL, out)) fail(r, name, "an ISO time");
    } else if (!bind_integer(r->L, -1, out)) {
        fail(r, name, "milliseconds or an ISO time");
    }
}

static void read_word(struct reader *r, const struct field *f, unsigned *out) {
    if (lua_type(r->L, -1) != LUA_TSTRING) fail(r, f->name, "a word");
    for (unsigned i = 0; f->words[i]; i++) {
        if (!str_eq(string_at(r->L, -1), str_of(f->words[i]))) continue;
        *out = i;
        return;
    }
    fail(r, f->name, "a known word");
}

static void read_strings(struct reader *r, const char *name, struct str_list *out) {
    if (lua_type(r->L, -1) != LUA_TTABLE) fail(r, name, "a list of texts");
    size_t n = lua_objlen(r->L, -1);
    struct str *list = room(r, n, sizeof *list);
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(r->L, -1, (int)i + 1);
        if (lua_type(r->L, -1) != LUA_TSTRING) fail(r, name, "a list of texts");
        list[i] = string_at(r->L, -1);
        lua_pop(r->L, 1);
    }
    *out = (struct str_list){.at = list, .n = n};
}

static void read_array(struct reader *r, const struct field *f, void *base) {
    const struct array *array = f->array;
    if (lua_type(r->L, -1) != LUA_TTABLE) fail(r, f->name, "an array");
    size_t n = lua_objlen(r->L, -1);
    if (n > array->most) fail(r, f->name, "a shorter array");
    char *list = room(r, n, array->size);
    struct reader inner = *r;
    inner.outer = f->name;
    for (size_t i = 0; i < n; i++) {
        lua_rawgeti(r->L, -1, (int)i + 1);
        inner.index = i + 1;
        if (lua_type(r->L, -1) != LUA_TTABLE) fail(r, f->name, "an array of tables");
        if (array->defaults) array->defaults(list + i * array->size);
        read_fields(&inner, array->fields, list + i * array->size);
        lua_pop(r->L, 1);
    }
    const void *at = list;
    memcpy((char *)base + f->at, &at, sizeof at);
    memcpy((char *)base + array->count_at, &n, sizeof n);
}

/* The value of one member is on top of the stack. */
static void read_field(struct reader *r, const struct field *f, void *base) {
    void *at = (char *)base + f->at;
    int type = lua_type(r->L, -1);
    switch (f->kind) {
    case STRING:
        if (type != LUA_TSTRING) fail(r, f->name, "a text");
        *(struct str *)at = string_at(r->L, -1);
        return;
    case INTEGER:
        if (!bind_integer(r->L, -1, at)) fail(r, f->name, "an integer");
        return;
    case BOOLEAN:
        if (type != LUA_TBOOLEAN) fail(r, f->name, "a boolean");
        *(bool *)at = lua_toboolean(r->L, -1);
        return;
    case TIME:
        read_time(r, f->name, at);
        return;
    case WORD:
        read_word(r, f, at);
        return;
    case STRINGS:
        read_strings(r, f->name, at);
        return;
    case TABLE: {
        if (type != LUA_TTABLE) fail(r, f->name, "a table");
        struct reader inner = *r;
        inner.outer = f->name;
        inner.index = 0;
        read_fields(&inner, f->fields, at);
        return;
    }
    case ARRAY:
        read_array(r, f, base);
        return;
    case CUSTOM:
        f->custom(r, base);
        return;
    case END:
        return;
    }
}

/* The table is on top of the stack. Its members are walked, not the rows of `fields`: a row of a table has many members
 * that are mostly absent. Two texts are the same one when their addresses are (Lua interns them). */
static void read_fields(struct reader *r, const struct field *fields, void *base) {
    luaL_checkstack(r->L, 8, "quote");
    lua_pushnil(r->L);
    while (lua_next(r->L, -2)) {
        /* json.null means absent. */
        if (lua_type(r->L, -2) == LUA_TSTRING && lua_type(r->L, -1) != LUA_TLIGHTUSERDATA) {
            const struct field *f = names_find(r->names, fields, lua_tolstring(r->L, -2, NULL));
            if (f) read_field(r, f, base);
        }
        lua_pop(r->L, 1);
    }
}

#define ROW(name_, kind_, at_) .name = (name_), .kind = (kind_), .at = (at_)
// NOLINTBEGIN(bugprone-macro-parentheses): struct tags and members take none
#define FIELD(type, member, kind_)                                                                                     \
    { ROW(#member, kind_, offsetof(struct type, member)) }
#define NAMED(type, name_, member, kind_)                                                                              \
    { ROW(name_, kind_, offsetof(struct type, member)) }
#define WORDS(type, name_, member, words_)                                                                             \
    { ROW(name_, WORD, offsetof(struct type, member)), .words = (words_) }
#define ROWS(type, name_, member, array_)                                                                              \
    { ROW(name_, ARRAY, offsetof(struct type, member)), .array = (array_) }
#define PART(type, name_, member, fields_)                                                                             \
    { ROW(name_, TABLE, offsetof(struct type, member)), .fields = (fields_) }
// NOLINTEND(bugprone-macro-parentheses)
#define SPECIAL(name_, function)                                                                                       \
    { ROW(name_, CUSTOM, 0), .custom = (function) }
#define LAST                                                                                                           \
    { .kind = END }

_Static_assert(sizeof(enum promotion_kind) == sizeof(unsigned), "words are read into enums");

static const char *const target_words[] = {"all", "category", "product", "variant", "tag", "vendor", "bundle", NULL};
static const char *const level_words[] = {"line", "order", "shipping", NULL};
static const char *const value_words[] = {"percent", "fixed", "price", NULL};
static const char *const promotion_words[] = {"discount", "flash_sale", "b1g1", "free_shipping", "script", NULL};
static const char *const coupon_words[] = {"percentage", "fixed", "free_shipping", NULL};
static const char *const bundle_words[] = {"fixed", "percent_off", NULL};
static const char *const mode_words[] = {"half_up", "half_down", "floor", "ceil", "half_even", NULL};
static const char *const tax_level_words[] = {"line", "unit", "order", NULL};
static const char *const tax_shipping_words[] = {"by_class", "weighted", "none", NULL};
static const char *const exempt_words[] = {"none", "exempt", "reverse_charge", NULL};

static const struct field price_row_fields[] = {
    FIELD(price_row, currency, STRING), FIELD(price_row, customer_group, STRING), FIELD(price_row, min_qty, INTEGER),
    FIELD(price_row, price, INTEGER),   FIELD(price_row, sale_price, INTEGER),    FIELD(price_row, starts_ms, TIME),
    FIELD(price_row, ends_ms, TIME),    FIELD(price_row, of_variant, BOOLEAN),    LAST,
};
static const struct array price_rows = {.fields = price_row_fields,
                                        .size = sizeof(struct price_row),
                                        .count_at = offsetof(struct pricing_line, rows),
                                        .most = 1000};

static const struct field portion_fields[] = {FIELD(pricing_portion, warehouse_id, STRING),
                                              FIELD(pricing_portion, qty, INTEGER), LAST};
static const struct array portions = {.fields = portion_fields,
                                      .size = sizeof(struct pricing_portion),
                                      .count_at = offsetof(struct pricing_line, portions),
                                      .most = PRICING_PORTIONS_MAX};

static void read_fixed_unit(struct reader *r, void *base) {
    struct pricing_line *line = base;
    if (!bind_integer(r->L, -1, &line->fixed_unit)) fail(r, "fixed_unit", "an integer");
    line->has_fixed_unit = true;
}

static const struct field line_fields[] = {
    FIELD(pricing_line, id, STRING),
    FIELD(pricing_line, product_id, STRING),
    FIELD(pricing_line, variant_id, STRING),
    FIELD(pricing_line, purchase_type, STRING),
    FIELD(pricing_line, bundle_id, STRING),
    FIELD(pricing_line, bundle_key, STRING),
    FIELD(pricing_line, sku, STRING),
    FIELD(pricing_line, name, STRING),
    FIELD(pricing_line, vendor_id, STRING),
    FIELD(pricing_line, tax_class, STRING),
    FIELD(pricing_line, warehouse_id, STRING),
    ROWS(pricing_line, "portions", portion, &portions),
    FIELD(pricing_line, category_ids, STRINGS),
    FIELD(pricing_line, tag_ids, STRINGS),
    FIELD(pricing_line, qty, INTEGER),
    FIELD(pricing_line, price, INTEGER),
    FIELD(pricing_line, sale_price, INTEGER),
    FIELD(pricing_line, price_currency, STRING),
    ROWS(pricing_line, "prices", row, &price_rows),
    SPECIAL("fixed_unit", read_fixed_unit),
    FIELD(pricing_line, subscriber_bps, INTEGER),
    FIELD(pricing_line, weight_g, INTEGER),
    FIELD(pricing_line, volume_cm3, INTEGER),
    FIELD(pricing_line, stock, INTEGER),
    FIELD(pricing_line, requires_shipping, BOOLEAN),
    LAST,
};
static const struct array lines = {.fields = line_fields,
                                   .size = sizeof(struct pricing_line),
                                   .count_at = offsetof(struct pricing_input, lines),
                                   .most = PRICING_LINES_MAX};

static void gift_defaults(void *element) {
    ((struct pricing_line *)element)->stock = -1;
}
static const struct array gifts = {.fields = line_fields,
                                   .size = sizeof(struct pricing_line),
                                   .count_at = offsetof(struct pricing_input, gifts),
                                   .most = PRICING_LINES_MAX,
                                   .defaults = gift_defaults};

static void read_rate(struct reader *r, void *base) {
    struct pricing_rate *rate = base;
    /* Below the value lie its name and the row. */
    lua_getfield(r->L, -3, "from");
    const struct currency *from = bind_currency(r->L, -1), *to = currency_find(r->in->currency);
    lua_pop(r->L, 1);
    if (!from || !to) fail(r, "from", "a currency of ISO 4217");
    if (!bind_rate(r->L, lua_gettop(r->L), from, to, &rate->rate)) fail(r, "legs", "one or two exchange rates");
}
static const struct field rate_fields[] = {FIELD(pricing_rate, from, STRING), SPECIAL("legs", read_rate), LAST};
static const struct array rates = {.fields = rate_fields,
                                   .size = sizeof(struct pricing_rate),
                                   .count_at = offsetof(struct pricing_input, rates),
                                   .most = 200};

static const struct field bundle_item_fields[] = {FIELD(bundle_item, product_id, STRING),
                                                  FIELD(bundle_item, variant_id, STRING),
                                                  FIELD(bundle_item, qty, INTEGER), LAST};
static const struct array bundle_items = {.fields = bundle_item_fields,
                                          .size = sizeof(struct bundle_item),
                                          .count_at = offsetof(struct pricing_bundle, items),
                                          .most = 50};
static const struct field bundle_fields[] = {
    FIELD(pricing_bundle, id, STRING),
    FIELD(pricing_bundle, name, STRING),
    FIELD(pricing_bundle, currency, STRING),
    WORDS(pricing_bundle, "pricing", pricing, bundle_words),
    FIELD(pricing_bundle, price, INTEGER),
    FIELD(pricing_bundle, percent_off_bps, INTEGER),
    FIELD(pricing_bundle, max_per_order, INTEGER),
    FIELD(pricing_bundle, starts_ms, TIME),
    FIELD(pricing_bundle, ends_ms, TIME),
    FIELD(pricing_bundle, inactive, BOOLEAN),
    FIELD(pricing_bundle, auto_apply, BOOLEAN),
    ROWS(pricing_bundle, "items", item, &bundle_items),
    LAST,
};
static const struct array bundles = {.fields = bundle_fields,
                                     .size = sizeof(struct pricing_bundle),
                                     .count_at = offsetof(struct pricing_input, bundles),
                                     .most = PRICING_BUNDLES_MAX};

static const struct field target_fields[] = {WORDS(targets, "kind", kind, target_words), FIELD(targets, ids, STRINGS),
                                             LAST};

static void read_weekdays(struct reader *r, void *base) {
    struct promotion *p = base;
    if (lua_type(r->L, -1) != LUA_TTABLE) fail(r, "weekdays", "a list of 1..7");
    for (size_t i = 1; i <= lua_objlen(r->L, -1); i++) {
        int64_t day;
        lua_rawgeti(r->L, -1, (int)i);
        if (!bind_integer(r->L, -1, &day) || day < 1 || day > 7) fail(r, "weekdays", "a list of 1..7");
        p->weekdays |= 1u << day;
        lua_pop(r->L, 1);
    }
}

static void promotion_defaults(void *element) {
    struct promotion *p = element;
    p->buy_qty = p->get_qty = 1;
    p->get_bps = BPS_WHOLE;
}
static const struct field promotion_fields[] = {
    FIELD(promotion, id, STRING),
    FIELD(promotion, code, STRING),
    FIELD(promotion, label, STRING),
    FIELD(promotion, currency, STRING),
    FIELD(promotion, exclusion_group, STRING),
    FIELD(promotion, version, INTEGER),
    WORDS(promotion, "kind", kind, promotion_words),
    WORDS(promotion, "value_type", value_type, value_words),
    WORDS(promotion, "level", level, level_words),
    FIELD(promotion, value, INTEGER),
    PART(promotion, "targets", targets, target_fields),
    FIELD(promotion, min_order, INTEGER),
    FIELD(promotion, min_qty, INTEGER),
    FIELD(promotion, max_discount, INTEGER),
    FIELD(promotion, buy_qty, INTEGER),
    FIELD(promotion, get_qty, INTEGER),
    FIELD(promotion, get_bps, INTEGER),
    FIELD(promotion, pool, BOOLEAN),
    FIELD(promotion, priority, INTEGER),
    FIELD(promotion, stackable, BOOLEAN),
    FIELD(promotion, exclusive, BOOLEAN),
    FIELD(promotion, stop_after, BOOLEAN),
    FIELD(promotion, include_bundled, BOOLEAN),
    FIELD(promotion, first_order_only, BOOLEAN),
    FIELD(promotion, inactive, BOOLEAN),
    FIELD(promotion, customer_groups, STRINGS),
    FIELD(promotion, tier_ids, STRINGS),
    SPECIAL("weekdays", read_weekdays),
    FIELD(promotion, hour_from, INTEGER),
    FIELD(promotion, hour_to, INTEGER),
    FIELD(promotion, usage_limit, INTEGER),
    FIELD(promotion, used_count, INTEGER),
    FIELD(promotion, customer_limit, INTEGER),
    FIELD(promotion, customer_used, INTEGER),
    FIELD(promotion, budget, INTEGER),
    FIELD(promotion, budget_used, INTEGER),
    FIELD(promotion, max_units, INTEGER),
    FIELD(promotion, units_used, INTEGER),
    FIELD(promotion, max_units_customer, INTEGER),
    FIELD(promotion, units_customer, INTEGER),
    FIELD(promotion, starts_ms, TIME),
    FIELD(promotion, ends_ms, TIME),
    LAST,
};
static const struct array promotions = {.fields = promotion_fields,
                                        .size = sizeof(struct promotion),
                                        .count_at = offsetof(struct pricing_input, promotions),
                                        .most = PRICING_PROMOTIONS_MAX,
                                        .defaults = promotion_defaults};

static void coupon_defaults(void *element) {
    ((struct pricing_coupon *)element)->found = true;
}
static const struct field coupon_fields[] = {
    FIELD(pricing_coupon, id, STRING),
    FIELD(pricing_coupon, code, STRING),
    FIELD(pricing_coupon, label, STRING),
    FIELD(pricing_coupon, currency, STRING),
    WORDS(pricing_coupon, "kind", kind, coupon_words),
    FIELD(pricing_coupon, version, INTEGER),
    FIELD(pricing_coupon, value, INTEGER),
    FIELD(pricing_coupon, min_order, INTEGER),
    FIELD(pricing_coupon, max_discount, INTEGER),
    FIELD(pricing_coupon, usage_limit, INTEGER),
    FIELD(pricing_coupon, used_count, INTEGER),
    FIELD(pricing_coupon, customer_limit, INTEGER),
    FIELD(pricing_coupon, customer_used, INTEGER),
    FIELD(pricing_coupon, found, BOOLEAN),
    FIELD(pricing_coupon, inactive, BOOLEAN),
    FIELD(pricing_coupon, stackable, BOOLEAN),
    FIELD(pricing_coupon, exclude_discounted, BOOLEAN),
    FIELD(pricing_coupon, first_order_only, BOOLEAN),
    FIELD(pricing_coupon, script_rejected, BOOLEAN),
    PART(pricing_coupon, "targets", targets, target_fields),
    FIELD(pricing_coupon, customer_ids, STRINGS),
    FIELD(pricing_coupon, customer_groups, STRINGS),
    FIELD(pricing_coupon, starts_ms, TIME),
    FIELD(pricing_coupon, ends_ms, TIME),
    LAST,
};
static const struct array coupons = {.fields = coupon_fields,
                                     .size = sizeof(struct pricing_coupon),
                                     .count_at = offsetof(struct pricing_input, coupons),
                                     .most = PRICING_COUPONS_MAX,
                                     .defaults = coupon_defaults};

static const struct field card_fields[] = {FIELD(pricing_card, id, STRING),       FIELD(pricing_card, code, STRING),
                                           FIELD(pricing_card, currency, STRING), FIELD(pricing_card, balance, INTEGER),
                                           FIELD(pricing_card, expires_ms, TIME), LAST};
static const struct array cards = {.fields = card_fields,
                                   .size = sizeof(struct pricing_card),
                                   .count_at = offsetof(struct pricing_input, cards),
                                   .most = PRICING_CARDS_MAX};

static const struct field wallet_fields[] = {FIELD(pricing_wallet, id, STRING), FIELD(pricing_wallet, currency, STRING),
                                             FIELD(pricing_wallet, balance, INTEGER),
                                             FIELD(pricing_wallet, most, INTEGER), LAST};

static const struct field customer_fields[] = {
    FIELD(pricing_customer, id, STRING),
    FIELD(pricing_customer, tier_id, STRING),
    FIELD(pricing_customer, groups, STRINGS),
    FIELD(pricing_customer, first_order, BOOLEAN),
    FIELD(pricing_customer, tier_free_shipping, BOOLEAN),
    FIELD(pricing_customer, tier_discount_bps, INTEGER),
    FIELD(pricing_customer, multiplier_pct, INTEGER),
    LAST,
};

/* earn = {to = base currency, legs = {...}}: from the cart's currency to the base. */
static void read_earn(struct reader *r, void *base) {
    struct pricing_points *points = base;
    if (lua_type(r->L, -1) != LUA_TTABLE) fail(r, "earn", "a table");
    lua_getfield(r->L, -1, "to");
    const struct currency *from = currency_find(r->in->currency), *to = bind_currency(r->L, -1);
    lua_getfield(r->L, -2, "legs");
    if (!from || !to || !bind_rate(r->L, lua_gettop(r->L), from, to, &points->earn_rate))
        fail(r, "earn", "a currency and one or two exchange rates");
    lua_pop(r->L, 2);
}
static const struct field points_fields[] = {
    FIELD(pricing_points, requested, INTEGER),
    FIELD(pricing_points, available, INTEGER),
    FIELD(pricing_points, value, INTEGER),
    FIELD(pricing_points, step, INTEGER),
    FIELD(pricing_points, redeem_max_bps, INTEGER),
    FIELD(pricing_points, currency, STRING),
    FIELD(pricing_points, earn_unit, INTEGER),
    SPECIAL("earn", read_earn),
    LAST,
};

static const struct field place_fields[] = {
    FIELD(shipping_place, country, STRING), FIELD(shipping_place, province, STRING),
    FIELD(shipping_place, region, STRING),  FIELD(shipping_place, city, STRING),
    FIELD(shipping_place, zip, STRING),     LAST};
static void read_place(struct reader *r, void *base) {
    struct pricing_shipping *shipping = base;
    if (lua_type(r->L, -1) != LUA_TTABLE) fail(r, "place", "a table");
    struct reader inner = *r;
    inner.outer = "place";
    read_fields(&inner, place_fields, &shipping->place);
    shipping->has_place = true;
}

static const struct field zone_fields[] = {
    FIELD(shipping_zone, id, STRING),         FIELD(shipping_zone, countries, STRINGS),
    FIELD(shipping_zone, provinces, STRINGS), FIELD(shipping_zone, regions, STRINGS),
    FIELD(shipping_zone, zips, STRINGS),      FIELD(shipping_zone, priority, INTEGER),
    FIELD(shipping_zone, inactive, BOOLEAN),  LAST,
};
static const struct array zones = {.fields = zone_fields,
                                   .size = sizeof(struct shipping_zone),
                                   .count_at = offsetof(struct pricing_shipping, zones),
                                   .most = PRICING_METHODS_MAX};

static const struct field band_fields[] = {FIELD(shipping_band, from_g, INTEGER), FIELD(shipping_band, to_g, INTEGER),
                                           FIELD(shipping_band, price, INTEGER), LAST};
static const struct array bands = {.fields = band_fields,
                                   .size = sizeof(struct shipping_band),
                                   .count_at = offsetof(struct shipping_method, bands),
                                   .most = 1000};

/* "3-5 business days" counts as 5: the largest number of the text. */
static void read_days(struct reader *r, void *base) {
    struct shipping_method *m = base;
    if (bind_integer(r->L, -1, &m->days)) return;
    if (lua_type(r->L, -1) != LUA_TSTRING) fail(r, "estimated_days", "a text or a number");
    struct str text = string_at(r->L, -1);
    for (size_t i = 0; i < text.len;) {
        size_t digits = 0;
        while (i + digits < text.len && text.at[i + digits] >= '0' && text.at[i + digits] <= '9') digits++;
        int64_t days;
        if (digits && str_int64(str_n(text.at + i, digits), &days) && days > m->days) m->days = days;
        i += digits ? digits : 1;
    }
}
static void method_defaults(void *element) {
    struct shipping_method *m = element;
    m->free_over = m->days = -1;
}
static const struct field method_fields[] = {
    FIELD(shipping_method, id, STRING),
    FIELD(shipping_method, name, STRING),
    FIELD(shipping_method, zone_id, STRING),
    FIELD(shipping_method, currency, STRING),
    FIELD(shipping_method, base, INTEGER),
    FIELD(shipping_method, per_kg, INTEGER),
    NAMED(shipping_method, "step_grams", step_g, INTEGER),
    NAMED(shipping_method, "volumetric_divisor", divisor, INTEGER),
    NAMED(shipping_method, "min_weight_g", min_g, INTEGER),
    NAMED(shipping_method, "max_weight_g", max_g, INTEGER),
    FIELD(shipping_method, free_over, INTEGER),
    SPECIAL("estimated_days", read_days),
    FIELD(shipping_method, inactive, BOOLEAN),
    ROWS(shipping_method, "bands", band, &bands),
    LAST,
};
static const struct array methods = {.fields = method_fields,
                                     .size = sizeof(struct shipping_method),
                                     .count_at = offsetof(struct pricing_shipping, methods),
                                     .most = PRICING_METHODS_MAX,
                                     .defaults = method_defaults};
static const struct field shipping_fields[] = {
    SPECIAL("place", read_place),
    FIELD(pricing_shipping, method_id, STRING),
    FIELD(pricing_shipping, list, BOOLEAN),
    ROWS(pricing_shipping, "zones", zone, &zones),
    ROWS(pricing_shipping, "methods", method, &methods),
    LAST,
};

static const struct field tax_rule_fields[] = {
    FIELD(tax_rule, id, STRING),
    FIELD(tax_rule, name, STRING),
    FIELD(tax_rule, country, STRING),
    FIELD(tax_rule, region, STRING),
    FIELD(tax_rule, zip, STRING),
    FIELD(tax_rule, tax_class, STRING),
    FIELD(tax_rule, stack_group, STRING),
    FIELD(tax_rule, jurisdiction, STRING),
    FIELD(tax_rule, ppm, INTEGER),
    FIELD(tax_rule, calc_order, INTEGER),
    FIELD(tax_rule, priority, INTEGER),
    NAMED(tax_rule, "from_ms", valid_from, TIME),
    NAMED(tax_rule, "to_ms", valid_to, TIME),
    FIELD(tax_rule, compound, BOOLEAN),
    FIELD(tax_rule, inactive, BOOLEAN),
    LAST,
};
static const struct array tax_rules = {.fields = tax_rule_fields,
                                       .size = sizeof(struct tax_rule),
                                       .count_at = offsetof(struct pricing_tax, rules),
                                       .most = PRICING_TAX_RULES_MAX};
static const struct field tax_place_fields[] = {FIELD(tax_place, country, STRING), FIELD(tax_place, region, STRING),
                                                FIELD(tax_place, zip, STRING), LAST};
static const struct field tax_fields[] = {
    FIELD(pricing_tax, inclusive, BOOLEAN),
    FIELD(pricing_tax, keep_net, BOOLEAN),
    FIELD(pricing_tax, off, BOOLEAN),
    WORDS(pricing_tax, "mode", mode, mode_words),
    WORDS(pricing_tax, "level", level, tax_level_words),
    WORDS(pricing_tax, "shipping", shipping, tax_shipping_words),
    FIELD(pricing_tax, shipping_class, STRING),
    PART(pricing_tax, "place", place, tax_place_fields),
    FIELD(pricing_tax, home_country, STRING),
    WORDS(pricing_tax, "exempt", exempt, exempt_words),
    ROWS(pricing_tax, "rules", rule, &tax_rules),
    LAST,
};

static const struct field input_fields[] = {
    FIELD(pricing_input, currency, STRING),
    NAMED(pricing_input, "now_ms", now_ms, TIME),
    FIELD(pricing_input, weekday, INTEGER),
    FIELD(pricing_input, hour, INTEGER),
    FIELD(pricing_input, priority_mode, BOOLEAN),
    FIELD(pricing_input, max_coupons, INTEGER),
    FIELD(pricing_input, rounding_step, INTEGER),
    ROWS(pricing_input, "lines", line, &lines),
    ROWS(pricing_input, "gifts", gift, &gifts),
    ROWS(pricing_input, "rates", rate, &rates),
    ROWS(pricing_input, "bundles", bundle, &bundles),
    ROWS(pricing_input, "promotions", promotion, &promotions),
    ROWS(pricing_input, "coupons", coupon, &coupons),
    ROWS(pricing_input, "cards", card, &cards),
    PART(pricing_input, "wallet", wallet, wallet_fields),
    PART(pricing_input, "customer", customer, customer_fields),
    PART(pricing_input, "points", points, points_fields),
    PART(pricing_input, "shipping", shipping, shipping_fields),
    PART(pricing_input, "tax", tax, tax_fields),
    LAST,
};

struct pricing_names *pricing_push_names(lua_State *L) {
    static const struct field *const tables[] = {
        price_row_fields, portion_fields,   line_fields,   rate_fields,  bundle_item_fields, bundle_fields,
        target_fields,    promotion_fields, coupon_fields, card_fields,  wallet_fields,      customer_fields,
        points_fields,    place_fields,     zone_fields,   band_fields,  method_fields,      shipping_fields,
        tax_rule_fields,  tax_place_fields, tax_fields,    input_fields,
    };
    struct pricing_names *names = lua_newuserdata(L, sizeof *names);
    memset(names, 0, sizeof *names);
    lua_newtable(L); /* keeps the texts, and so their addresses */
    for (size_t t = 0; t < sizeof tables / sizeof tables[0]; t++) {
        for (const struct field *f = tables[t]; f->kind != END; f++) {
            lua_pushstring(L, f->name);
            const char *name = lua_tolstring(L, -1, NULL);
            size_t i = names_slot(tables[t], name);
            while (names->slot[i].name) i = (i + 1) % NAMES_SLOTS;
            names->slot[i].name = name;
            names->slot[i].table = tables[t];
            names->slot[i].row = f;
            lua_rawseti(L, -2, (int)lua_objlen(L, -2) + 1);
        }
    }
    lua_setfenv(L, -2);
    return names;
}

void pricing_read(lua_State *L, int idx, const struct pricing_names *names, struct arena *a, struct pricing_input *in) {
    *in = (struct pricing_input){.max_coupons = 1, .weekday = 1, .wallet = {.most = -1}};
    struct reader r = {.L = L, .names = names, .arena = a, .in = in, .outer = ""};
    luaL_checktype(L, idx, LUA_TTABLE);
    lua_getfield(L, idx, "currency"); /* before the rest: rates need it */
    if (lua_type(L, -1) == LUA_TSTRING) in->currency = string_at(L, -1);
    lua_pop(L, 1);
    lua_pushvalue(L, idx);
    read_fields(&r, input_fields, in);
    lua_pop(L, 1);
    if (in->weekday < 1 || in->weekday > 7) fail(&r, "weekday", "1..7");
}
