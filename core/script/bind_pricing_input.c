/* What rules of a quote are given, straight from the structs of the pipeline, when they ask for it (see
 * sandbox_input.c). */
#include <lauxlib.h>
#include <string.h>

#include "script/bind_pricing.h"
#include "script/bind_pricing_table.h"
#include "script/sandbox.h"

#define COPY_BYTES ((size_t)64 * 1024)

/* The members of each source and their numbers. */
// clang-format off
#define INPUT_FIELDS(X) X(hook) X(now) X(currency) X(tenant) X(customer) X(cart) X(shipping) X(subject)
#define NOW_FIELDS(X) X(epoch) X(year) X(month) X(day) X(hour) X(min) X(sec) X(wday) X(tz)
#define CURRENCY_FIELDS(X) X(code) X(exponent)
#define TENANT_FIELDS(X) X(id) X(country) X(settings)
#define CUSTOMER_FIELDS(X) \
    X(id) X(guest) X(groups) X(tier) X(orders_count) X(lifetime_spent) X(first_order) X(locale) X(points_available)
#define CART_FIELDS(X) X(id) X(version) X(gross) X(net) X(item_count) X(coupon_codes) X(lines)
#define LINE_FIELDS(X) \
    X(id) X(product_id) X(variant_id) X(sku) X(category_ids) X(tag_ids) X(vendor_id) X(tax_class) X(qty) X(unit) \
    X(gross) X(net) X(weight_g) X(attributes) X(is_gift) X(properties) X(bundle_id) X(discounts) X(purchase_type)
#define ADDRESS_FIELDS(X) X(country) X(province) X(region) X(city) X(zip)
#define SHIPPING_FIELDS(X) X(address) X(method_id) X(net) X(groups)
#define TAX_FIELDS(X) X(lines) X(address) X(customer) X(candidates) X(date)
// clang-format on

#define NAME(field) #field,
static const char *const input_fields[] = {INPUT_FIELDS(NAME)}, *const now_fields[] = {NOW_FIELDS(NAME)},
                         *const currency_fields[] = {CURRENCY_FIELDS(NAME)},
                         *const tenant_fields[] = {TENANT_FIELDS(NAME)},
                         *const customer_fields[] = {CUSTOMER_FIELDS(NAME)}, *const cart_fields[] = {CART_FIELDS(NAME)},
                         *const line_fields[] = {LINE_FIELDS(NAME)}, *const address_fields[] = {ADDRESS_FIELDS(NAME)},
                         *const shipping_fields[] = {SHIPPING_FIELDS(NAME)}, *const tax_fields[] = {TAX_FIELDS(NAME)};
static const char *const tier_fields[] = {"id", "name", "multiplier_pct"};
static const char *const discount_fields[] = {"kind", "source_id", "amount"};
static const char *const group_fields[] = {"warehouse_id", "weight_g", "net"};
static const char *const promotion_fields[] = {"promotion"};
static const char *const candidate_fields[] = {"line", "rate_ppm", "name", "jurisdiction", "compound"};

#define NUMBER(field) INPUT_##field,
enum input_field { INPUT_FIELDS(NUMBER) };
#undef NUMBER
#define NUMBER(field) NOW_##field,
enum now_field { NOW_FIELDS(NUMBER) };
#undef NUMBER
#define NUMBER(field) CURRENCY_##field,
enum currency_field { CURRENCY_FIELDS(NUMBER) };
#undef NUMBER
#define NUMBER(field) TENANT_##field,
enum tenant_field { TENANT_FIELDS(NUMBER) };
#undef NUMBER
#define NUMBER(field) CUSTOMER_##field,
enum customer_field { CUSTOMER_FIELDS(NUMBER) };
#undef NUMBER
#define NUMBER(field) CART_##field,
enum cart_field { CART_FIELDS(NUMBER) };
#undef NUMBER
#define NUMBER(field) LINE_##field,
enum line_field { LINE_FIELDS(NUMBER) };
#undef NUMBER
#define NUMBER(field) ADDRESS_##field,
enum address_field { ADDRESS_FIELDS(NUMBER) };
#undef NUMBER
#define NUMBER(field) SHIPPING_##field,
enum shipping_field { SHIPPING_FIELDS(NUMBER) };
#undef NUMBER
#define NUMBER(field) TAX_##field,
enum tax_field { TAX_FIELDS(NUMBER) };
#undef NUMBER

#define RECORD(where, list)                                                                                            \
    { .path = (where), .fields = (list), .count = sizeof(list) / sizeof *(list) }

static const struct sandbox_record tier_record = RECORD("input.customer.tier", tier_fields),
                                   discount_record = RECORD("line.discounts[]", discount_fields),
                                   group_record = RECORD("input.shipping.groups[]", group_fields),
                                   candidate_record = RECORD("input.subject.candidates[]", candidate_fields);

/* ---- what the caller gave beside the figures ---- */

/* Pushes snapshot[part][name] when it is plain. */
static bool push_given(lua_State *L, const struct pricing_shot *shot, const char *part, const char *name) {
    lua_State *from = shot->source;
    int top = lua_gettop(from);
    bool there = true;
    lua_getfield(from, shot->idx, "snapshot");
    if (lua_istable(from, -1)) lua_getfield(from, -1, part);
    if (lua_istable(from, -1)) lua_getfield(from, -1, name);
    int type = lua_gettop(from) == top + 3 ? lua_type(from, -1) : LUA_TNIL;
    if (type == LUA_TSTRING) {
        size_t len;
        const char *text = lua_tolstring(from, -1, &len);
        lua_pushlstring(L, text, len);
    } else if (type == LUA_TNUMBER) {
        lua_pushnumber(L, lua_tonumber(from, -1));
    } else if (type == LUA_TBOOLEAN) {
        lua_pushboolean(L, lua_toboolean(from, -1));
    } else {
        there = false;
    }
    lua_settop(from, top);
    return there;
}

/* Pushes a copy of what lies on top of the platform's stack when it is a table, else an empty one. */
static void push_copy(lua_State *L, lua_State *from) {
    struct error err = {0};
    if (lua_istable(from, -1) && sandbox_copy(from, -1, L, COPY_BYTES, &err)) return;
    lua_newtable(L);
}

static bool push_text(lua_State *L, struct str s) {
    if (s.len == 0) return false;
    lua_pushlstring(L, s.at, s.len);
    return true;
}

static bool push_int(lua_State *L, int64_t n) {
    lua_pushnumber(L, (lua_Number)n);
    return true;
}

static bool push_bool(lua_State *L, bool value) {
    lua_pushboolean(L, value);
    return true;
}

/* Places of the sources; the lines follow. */
enum { INPUT = 1, NOW, CURRENCY, TENANT, CUSTOMER, CART, ADDRESS, SHIPPING, PROMOTION, TAX, LINES };

static const struct sandbox_source input_source, now_source, currency_source, tenant_source, customer_source,
    cart_source, address_source, shipping_source, promotion_source, tax_source, line_source;

static bool view_of(lua_State *L, int place, const struct sandbox_source *kind) {
    sandbox_push_view(L, place, kind);
    return true;
}

static bool more_of_input(lua_State *L, size_t field, size_t line, void *context) {
    const struct pricing_shot *shot = context;
    (void)line;
    switch ((enum input_field)field) {
    case INPUT_hook:
        lua_pushstring(L, shot->hook);
        return true;
    case INPUT_now:
        return view_of(L, NOW, &now_source);
    case INPUT_currency:
        return view_of(L, CURRENCY, &currency_source);
    case INPUT_tenant:
        return view_of(L, TENANT, &tenant_source);
    case INPUT_customer:
        return view_of(L, CUSTOMER, &customer_source);
    case INPUT_cart:
        return view_of(L, CART, &cart_source);
    case INPUT_shipping:
        return view_of(L, SHIPPING, &shipping_source);
    case INPUT_subject: /* unless the run has one of its own */
        return shot->view->shipping ? view_of(L, TAX, &tax_source) : view_of(L, PROMOTION, &promotion_source);
    }
    return false;
}

static bool more_of_now(lua_State *L, size_t field, size_t line, void *context) {
    const struct pricing_shot *shot = context;
    const struct pricing_input *in = shot->view->input;
    (void)line;
    switch (field) {
    case NOW_epoch:
        return push_int(L, in->now_ms / 1000);
    case NOW_wday:
        return push_int(L, in->weekday);
    case NOW_hour:
        return push_int(L, in->hour);
    default:
        return push_given(L, shot, "now", now_fields[field]);
    }
}

static bool more_of_currency(lua_State *L, size_t field, size_t line, void *context) {
    const struct pricing_shot *shot = context;
    (void)line;
    if (field == CURRENCY_exponent) return push_int(L, shot->view->currency->exponent);
    lua_pushstring(L, shot->view->currency->code);
    return true;
}

static bool more_of_tenant(lua_State *L, size_t field, size_t line, void *context) {
    const struct pricing_shot *shot = context;
    lua_State *from = shot->source;
    (void)line;
    if (field != TENANT_settings) return push_given(L, shot, "tenant", tenant_fields[field]);
    int top = lua_gettop(from);
    lua_getfield(from, shot->idx, "snapshot");
    if (lua_istable(from, -1)) lua_getfield(from, -1, "tenant");
    if (lua_istable(from, -1)) lua_getfield(from, -1, "settings");
    push_copy(L, from);
    lua_settop(from, top);
    return true;
}

static bool push_tier(lua_State *L, const struct pricing_shot *shot) {
    lua_State *from = shot->source;
    int top = lua_gettop(from);
    lua_getfield(from, shot->idx, "snapshot");
    if (lua_istable(from, -1)) lua_getfield(from, -1, "customer");
    if (lua_istable(from, -1)) lua_getfield(from, -1, "tier");
    bool has = lua_istable(from, -1) && lua_gettop(from) == top + 3;
    if (has) {
        push_copy(L, from);
        sandbox_mark_record(L, &tier_record);
    }
    lua_settop(from, top);
    return has;
}

static bool more_of_customer(lua_State *L, size_t field, size_t line, void *context) {
    const struct pricing_shot *shot = context;
    const struct pricing_input *in = shot->view->input;
    (void)line;
    switch (field) {
    case CUSTOMER_id:
        return push_text(L, in->customer.id) || push_given(L, shot, "customer", "id");
    case CUSTOMER_guest:
        return push_bool(L, in->customer.id.len == 0);
    case CUSTOMER_first_order:
        return push_bool(L, in->customer.first_order);
    case CUSTOMER_points_available:
        return push_int(L, in->points.available);
    case CUSTOMER_groups:
        table_push_list(L, in->customer.groups);
        return true;
    case CUSTOMER_tier:
        return push_tier(L, shot);
    default:
        return push_given(L, shot, "customer", customer_fields[field]);
    }
}

static int64_t items_in(const struct pricing_view *view) {
    int64_t n = 0;
    for (size_t i = 0; i < view->lines; i++) n += view->line[i].qty;
    return n;
}

static bool more_of_cart(lua_State *L, size_t field, size_t line, void *context) {
    const struct pricing_shot *shot = context;
    const struct pricing_view *view = shot->view;
    const struct pricing_input *in = view->input;
    (void)line;
    switch (field) {
    case CART_gross:
        return push_int(L, view->gross);
    case CART_net:
        return push_int(L, view->net);
    case CART_item_count:
        return push_int(L, items_in(view));
    case CART_coupon_codes:
        lua_createtable(L, (int)in->coupons, 0);
        for (size_t i = 0; i < in->coupons; i++) {
            lua_pushlstring(L, in->coupon[i].code.at, in->coupon[i].code.len);
            lua_rawseti(L, -2, (int)i + 1);
        }
        return true;
    default:
        return push_given(L, shot, "cart", cart_fields[field]);
    }
}

/* The address without names, streets and phones. */
static bool more_of_address(lua_State *L, size_t field, size_t line, void *context) {
    const struct pricing_shot *shot = context;
    const struct pricing_input *in = shot->view->input;
    const struct shipping_place *place = &in->shipping.place;
    (void)line;
    switch ((enum address_field)field) {
    case ADDRESS_country:
        return push_text(L, place->country.len ? place->country : in->tax.home_country);
    case ADDRESS_province:
        return push_text(L, place->province);
    case ADDRESS_region:
        return push_text(L, place->region);
    case ADDRESS_city:
        return push_text(L, place->city);
    case ADDRESS_zip:
        return push_text(L, place->zip);
    }
    return false;
}

static bool more_of_shipping(lua_State *L, size_t field, size_t line, void *context) {
    const struct pricing_shot *shot = context;
    const struct pricing_view *view = shot->view;
    (void)line;
    if (field == SHIPPING_address) return view_of(L, ADDRESS, &address_source);
    if (field == SHIPPING_method_id)
        return push_text(L, view->shipping && view->shipping->method ? view->shipping->method->id
                                                                     : view->input->shipping.method_id);
    if (field == SHIPPING_net) return view->shipping && push_int(L, view->shipping->net);
    if (field != SHIPPING_groups) return false;
    lua_createtable(L, (int)view->groups, 0);
    for (size_t i = 0; i < view->groups; i++) {
        lua_createtable(L, 0, 3);
        table_set_str(L, "warehouse_id", view->group[i].warehouse_id);
        table_set_int(L, "weight_g", view->group[i].weight_g);
        table_set_int(L, "net", view->group[i].merchandise);
        sandbox_mark_record(L, &group_record);
        lua_rawseti(L, -2, (int)i + 1);
    }
    return true;
}

static void push_discounts(lua_State *L, const struct pricing_view *view, size_t line) {
    lua_newtable(L);
    int n = 0;
    for (size_t i = 0; i < view->rows; i++) {
        if (view->row[i].line != (int64_t)line) continue;
        const struct quote_source *from = &view->source[view->row[i].source];
        lua_createtable(L, 0, 3);
        lua_pushstring(L, source_kind_name(from->kind));
        lua_setfield(L, -2, "kind");
        table_set_str(L, "source_id", from->id);
        table_set_int(L, "amount", view->row[i].amount);
        sandbox_mark_record(L, &discount_record);
        lua_rawseti(L, -2, ++n);
    }
}

/* attributes and properties of a line of the input; a line that a rule gave away has none. */
static void push_line_extra(lua_State *L, const struct pricing_shot *shot, const struct pricing_line *item,
                            const char *name) {
    lua_State *from = shot->source;
    const struct pricing_input *in = shot->view->input;
    int top = lua_gettop(from);
    if (item < in->line || item >= in->line + in->lines) {
        lua_newtable(L);
        return;
    }
    lua_getfield(from, shot->idx, "lines");
    lua_rawgeti(from, -1, (int)(item - in->line) + 1);
    if (lua_istable(from, -1)) lua_getfield(from, -1, name);
    push_copy(L, from);
    lua_settop(from, top);
}

/* Lists of the run are set; see pricing_push_shot. */
static bool more_of_tax(lua_State *L, size_t field, size_t line, void *context) {
    const struct pricing_shot *shot = context;
    (void)line;
    if (field == TAX_address) return view_of(L, ADDRESS, &address_source);
    if (field == TAX_customer) return view_of(L, CUSTOMER, &customer_source);
    return field == TAX_date && push_int(L, shot->view->input->now_ms / 1000);
}

static bool more_of_line(lua_State *L, size_t field, size_t number, void *context) {
    const struct pricing_shot *shot = context;
    const struct quote_line *line = &shot->view->line[number];
    const struct pricing_line *item = line->item;
    switch ((enum line_field)field) {
    case LINE_id:
        return push_text(L, line->id);
    case LINE_product_id:
        return push_text(L, item->product_id);
    case LINE_variant_id:
        return push_text(L, item->variant_id);
    case LINE_sku:
        return push_text(L, item->sku);
    case LINE_category_ids:
        table_push_list(L, item->category_ids);
        return true;
    case LINE_tag_ids:
        table_push_list(L, item->tag_ids);
        return true;
    case LINE_vendor_id:
        return push_text(L, item->vendor_id);
    case LINE_tax_class:
        return push_text(L, line->tax_class);
    case LINE_qty:
        return push_int(L, line->qty);
    case LINE_unit:
        return push_int(L, line->unit);
    case LINE_gross:
        return push_int(L, line->gross);
    case LINE_net:
        return push_int(L, line->net);
    case LINE_weight_g:
        return push_int(L, item->weight_g);
    case LINE_is_gift:
        return push_bool(L, line->is_gift);
    case LINE_attributes:
    case LINE_properties:
        push_line_extra(L, shot, item, line_fields[field]);
        return true;
    case LINE_bundle_id:
        return push_text(L, line->bundle_id);
    case LINE_discounts:
        push_discounts(L, shot->view, number);
        return true;
    case LINE_purchase_type:
        return push_text(L, item->purchase_type.len ? item->purchase_type : STR("one_time"));
    }
    return false;
}

/* ---- the sources ---- */

#define BIT(field) (UINT64_C(1) << (field))
static const struct sandbox_source
    input_source = {.record = RECORD("input", input_fields),
                    .more = more_of_input,
                    .views = BIT(INPUT_now) | BIT(INPUT_currency) | BIT(INPUT_tenant) | BIT(INPUT_customer) |
                             BIT(INPUT_cart) | BIT(INPUT_shipping)},
    now_source = {.record = RECORD("input.now", now_fields), .more = more_of_now},
    currency_source = {.record = RECORD("input.currency", currency_fields), .more = more_of_currency},
    tenant_source = {.record = RECORD("input.tenant", tenant_fields), .more = more_of_tenant},
    customer_source = {.record = RECORD("input.customer", customer_fields), .more = more_of_customer},
    cart_source = {.record = RECORD("input.cart", cart_fields), .more = more_of_cart},
    address_source = {.record = RECORD("input.shipping.address", address_fields), .more = more_of_address},
    shipping_source = {.record = RECORD("input.shipping", shipping_fields),
                       .more = more_of_shipping,
                       .views = BIT(SHIPPING_address)},
    promotion_source = {.record = RECORD("input.subject", promotion_fields)},
    tax_source = {.record = RECORD("input.subject", tax_fields),
                  .more = more_of_tax,
                  .views = BIT(TAX_address) | BIT(TAX_customer)},
    line_source = {.record = RECORD("input.cart.lines[]", line_fields),
                   .more = more_of_line,
                   .kept = BIT(LINE_id) | BIT(LINE_product_id) | BIT(LINE_variant_id) | BIT(LINE_sku) |
                           BIT(LINE_vendor_id) | BIT(LINE_tax_class) | BIT(LINE_qty) | BIT(LINE_unit) |
                           BIT(LINE_gross) | BIT(LINE_net) | BIT(LINE_weight_g) | BIT(LINE_is_gift) |
                           BIT(LINE_bundle_id) | BIT(LINE_purchase_type)};
#undef BIT

static void push_candidates(lua_State *L, const struct pricing_view *view) {
    lua_newtable(L);
    int n = 0;
    for (size_t i = 0; i < view->lines; i++) {
        for (size_t k = 0; k < view->line[i].rates; k++) {
            const struct tax_rate *rate = &view->line[i].rate[k];
            lua_createtable(L, 0, 5);
            table_set_str(L, "line", view->line[i].id);
            table_set_int(L, "rate_ppm", rate->ppm);
            table_set_str(L, "name", rate->name);
            table_set_str(L, "jurisdiction", rate->jurisdiction);
            table_set_bool(L, "compound", rate->compound);
            sandbox_mark_record(L, &candidate_record);
            lua_rawseti(L, -2, ++n);
        }
    }
}

bool pricing_push_shot(lua_State *L, struct pricing_shot *shot, struct error *err) {
    const struct pricing_view *view = shot->view;
    int lines = (int)view->lines;
    if (!lua_checkstack(L, 24) || !lua_checkstack(shot->source, 24)) return error_set(err, ERR_MEMORY, "out of memory");
    if (sandbox_begin_shot(L, shot->serial, shot, LINES))
        for (int i = 0; i < lines; i++) sandbox_fill_source(L, LINES + i, &line_source, (size_t)i);
    /* Lists are plain tables: a rule may do with them what it likes, so each run has its own. */
    sandbox_push_views(L, LINES, &line_source, lines);
    sandbox_set_member(L, CART, &cart_source, "lines");
    if (view->shipping) { /* tax.resolve comes when shipping is known */
        sandbox_push_views(L, LINES, &line_source, lines);
        sandbox_set_member(L, TAX, &tax_source, "lines");
        push_candidates(L, view);
        sandbox_set_member(L, TAX, &tax_source, "candidates");
    }
    sandbox_push_view(L, INPUT, &input_source);
    if (!pricing_push_subject(L, shot)) lua_pushnil(L);
    sandbox_set_member(L, INPUT, &input_source, "subject");
    return true;
}

void pricing_push_records(lua_State *L) {
    static const struct {
        const char *name;
        const struct sandbox_record *record;
    } all[] = {{"input", &input_source.record},       {"now", &now_source.record},
               {"currency", &currency_source.record}, {"tenant", &tenant_source.record},
               {"customer", &customer_source.record}, {"tier", &tier_record},
               {"cart", &cart_source.record},         {"line", &line_source.record},
               {"discount", &discount_record},        {"address", &address_source.record},
               {"shipping", &shipping_source.record}, {"group", &group_record},
               {"tax", &tax_source.record},           {"candidate", &candidate_record}};
    lua_createtable(L, 0, sizeof all / sizeof *all);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        lua_createtable(L, (int)all[i].record->count, 0);
        for (size_t k = 0; k < all[i].record->count; k++) {
            lua_pushstring(L, all[i].record->fields[k]);
            lua_rawseti(L, -2, (int)k + 1);
        }
        lua_setfield(L, -2, all[i].name);
    }
}
