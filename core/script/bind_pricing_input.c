/* What rules of a quote are given: built once for all rules of a hook call, straight from the structs of the pipeline.
 *
 * Scalars lie in sources; lists and maps are made each time they are read (see sandbox_input.c). */
#include <lauxlib.h>
#include <string.h>

#include "script/bind_pricing.h"
#include "script/sandbox.h"

#define COPY_BYTES ((size_t)64 * 1024)

static const char *const input_fields[] = {"hook",     "now",  "currency", "tenant",
                                           "customer", "cart", "shipping", "subject"};
static const char *const now_fields[] = {"epoch", "year", "month", "day", "hour", "min", "sec", "wday", "tz"};
static const char *const currency_fields[] = {"code", "exponent"};
static const char *const tenant_fields[] = {"id", "country", "settings"};
static const char *const customer_fields[] = {
    "id", "guest", "groups", "tier", "orders_count", "lifetime_spent", "first_order", "locale", "points_available"};
static const char *const tier_fields[] = {"id", "name", "multiplier_pct"};
static const char *const cart_fields[] = {"id", "version", "gross", "net", "item_count", "coupon_codes", "lines"};
static const char *const line_fields[] = {"id",         "product_id", "variant_id", "sku",          "category_ids",
                                          "tag_ids",    "vendor_id",  "tax_class",  "qty",          "unit",
                                          "gross",      "net",        "weight_g",   "attributes",   "is_gift",
                                          "properties", "bundle_id",  "discounts",  "purchase_type"};
static const char *const discount_fields[] = {"kind", "source_id", "amount"};
static const char *const address_fields[] = {"country", "province", "region", "city", "zip"};
static const char *const shipping_fields[] = {"address", "method_id", "net", "groups"};
static const char *const group_fields[] = {"warehouse_id", "weight_g", "net"};
static const char *const promotion_fields[] = {"promotion"};
static const char *const tax_fields[] = {"lines", "address", "customer", "candidates", "date"};
static const char *const candidate_fields[] = {"line", "rate_ppm", "name", "jurisdiction", "compound"};

#define RECORD(where, list)                                                                                            \
    { .path = (where), .fields = (list), .count = sizeof(list) / sizeof *(list) }

static const struct sandbox_record input_record = RECORD("input", input_fields),
                                   tier_record = RECORD("input.customer.tier", tier_fields),
                                   discount_record = RECORD("line.discounts[]", discount_fields),
                                   group_record = RECORD("input.shipping.groups[]", group_fields),
                                   promotion_record = RECORD("input.subject", promotion_fields),
                                   tax_record = RECORD("input.subject", tax_fields),
                                   candidate_record = RECORD("input.subject.candidates[]", candidate_fields);

static void set_str(lua_State *L, const char *name, struct str s) {
    if (s.len == 0) return;
    lua_pushlstring(L, s.at, s.len);
    lua_setfield(L, -2, name);
}

static void set_int(lua_State *L, const char *name, int64_t n) {
    lua_pushnumber(L, (lua_Number)n);
    lua_setfield(L, -2, name);
}

static void set_bool(lua_State *L, const char *name, bool value) {
    lua_pushboolean(L, value);
    lua_setfield(L, -2, name);
}

static void push_list(lua_State *L, struct str_list list) {
    lua_createtable(L, (int)list.n, 0);
    for (size_t i = 0; i < list.n; i++) {
        lua_pushlstring(L, list.at[i].at, list.at[i].len);
        lua_rawseti(L, -2, (int)i + 1);
    }
}

/* ---- what the caller gave beside the figures ---- */

/* Sets the plain members of snapshot[name] that the record has on the table on top of L. */
static void set_given(lua_State *L, const struct pricing_shot *shot, const char *name, const struct sandbox_record *r) {
    lua_State *from = shot->source;
    int top = lua_gettop(from);
    lua_getfield(from, shot->idx, "snapshot");
    if (lua_istable(from, -1)) lua_getfield(from, -1, name);
    for (size_t i = 0; lua_istable(from, -1) && i < r->count; i++) {
        size_t len;
        const char *text;
        lua_getfield(from, -1, r->fields[i]);
        int type = lua_type(from, -1);
        if (type == LUA_TSTRING) {
            text = lua_tolstring(from, -1, &len);
            lua_pushlstring(L, text, len);
        } else if (type == LUA_TNUMBER) {
            lua_pushnumber(L, lua_tonumber(from, -1));
        } else if (type == LUA_TBOOLEAN) {
            lua_pushboolean(L, lua_toboolean(from, -1));
        }
        if (type == LUA_TSTRING || type == LUA_TNUMBER || type == LUA_TBOOLEAN) lua_setfield(L, -2, r->fields[i]);
        lua_pop(from, 1);
    }
    lua_settop(from, top);
}

/* Pushes a copy of what lies on top of the platform's stack when it is a table, else an empty one. */
static void push_copy(lua_State *L, lua_State *from) {
    struct error err = {0};
    if (lua_istable(from, -1) && sandbox_copy(from, -1, L, COPY_BYTES, &err)) return;
    lua_newtable(L);
}

static bool more_of_tenant(lua_State *L, const char *name, size_t place, void *context) {
    const struct pricing_shot *shot = context;
    lua_State *from = shot->source;
    (void)place;
    if (strcmp(name, "settings") != 0) return false;
    int top = lua_gettop(from);
    lua_getfield(from, shot->idx, "snapshot");
    if (lua_istable(from, -1)) lua_getfield(from, -1, "tenant");
    if (lua_istable(from, -1)) lua_getfield(from, -1, "settings");
    push_copy(L, from);
    lua_settop(from, top);
    return true;
}

static bool more_of_customer(lua_State *L, const char *name, size_t place, void *context) {
    const struct pricing_shot *shot = context;
    lua_State *from = shot->source;
    (void)place;
    if (strcmp(name, "groups") == 0) {
        push_list(L, shot->view->input->customer.groups);
        return true;
    }
    if (strcmp(name, "tier") != 0) return false;
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

static bool more_of_cart(lua_State *L, const char *name, size_t place, void *context) {
    const struct pricing_shot *shot = context;
    const struct pricing_input *in = shot->view->input;
    (void)place;
    if (strcmp(name, "coupon_codes") != 0) return false;
    lua_createtable(L, (int)in->coupons, 0);
    for (size_t i = 0; i < in->coupons; i++) {
        lua_pushlstring(L, in->coupon[i].code.at, in->coupon[i].code.len);
        lua_rawseti(L, -2, (int)i + 1);
    }
    return true;
}

static bool more_of_shipping(lua_State *L, const char *name, size_t place, void *context) {
    const struct pricing_shot *shot = context;
    const struct pricing_view *view = shot->view;
    (void)place;
    if (strcmp(name, "groups") != 0) return false;
    lua_createtable(L, (int)view->groups, 0);
    for (size_t i = 0; i < view->groups; i++) {
        lua_createtable(L, 0, 3);
        set_str(L, "warehouse_id", view->group[i].warehouse_id);
        set_int(L, "weight_g", view->group[i].weight_g);
        set_int(L, "net", view->group[i].merchandise);
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
        set_str(L, "source_id", from->id);
        set_int(L, "amount", view->row[i].amount);
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

static bool more_of_line(lua_State *L, const char *name, size_t place, void *context) {
    const struct pricing_shot *shot = context;
    const struct pricing_line *item = shot->view->line[place].item;
    if (strcmp(name, "category_ids") == 0) {
        push_list(L, item->category_ids);
    } else if (strcmp(name, "tag_ids") == 0) {
        push_list(L, item->tag_ids);
    } else if (strcmp(name, "discounts") == 0) {
        push_discounts(L, shot->view, place);
    } else if (strcmp(name, "attributes") == 0 || strcmp(name, "properties") == 0) {
        push_line_extra(L, shot, item, name);
    } else {
        return false;
    }
    return true;
}

/* ---- the sources ---- */

static const struct sandbox_source now_source = {.record = RECORD("input.now", now_fields)},
                                   currency_source = {.record = RECORD("input.currency", currency_fields)},
                                   tenant_source = {.record = RECORD("input.tenant", tenant_fields),
                                                    .more = more_of_tenant},
                                   customer_source = {.record = RECORD("input.customer", customer_fields),
                                                      .more = more_of_customer},
                                   cart_source = {.record = RECORD("input.cart", cart_fields), .more = more_of_cart},
                                   address_source = {.record = RECORD("input.shipping.address", address_fields)},
                                   shipping_source = {.record = RECORD("input.shipping", shipping_fields),
                                                      .more = more_of_shipping},
                                   line_source = {.record = RECORD("input.cart.lines[]", line_fields),
                                                  .more = more_of_line};

/* Places in the list of sources; the lines follow. */
enum { NOW = 1, CURRENCY, TENANT, CUSTOMER, CART, ADDRESS, SHIPPING, LINES };

static void keep(lua_State *L, int sources, const struct sandbox_source *kind, int place, size_t line) {
    sandbox_make_source(L, kind, line);
    lua_rawseti(L, sources, place);
}

static void build_line(lua_State *L, const struct quote_line *line) {
    const struct pricing_line *item = line->item;
    lua_createtable(L, 1, 16);
    set_str(L, "id", line->id);
    set_str(L, "product_id", item->product_id);
    set_str(L, "variant_id", item->variant_id);
    set_str(L, "sku", item->sku);
    set_str(L, "vendor_id", item->vendor_id);
    set_str(L, "tax_class", line->tax_class);
    set_int(L, "qty", line->qty);
    set_int(L, "unit", line->unit);
    set_int(L, "gross", line->gross);
    set_int(L, "net", line->net);
    set_int(L, "weight_g", item->weight_g);
    set_str(L, "bundle_id", line->bundle_id);
    set_str(L, "purchase_type", item->purchase_type.len ? item->purchase_type : STR("one_time"));
    set_bool(L, "is_gift", line->is_gift);
}

/* Pushes the list of sources of a shot. */
static void build_sources(lua_State *L, const struct pricing_shot *shot) {
    const struct pricing_view *view = shot->view;
    const struct pricing_input *in = view->input;
    const struct shipping_place *place = &in->shipping.place;
    lua_createtable(L, (int)view->lines + LINES, 0);
    int list = lua_gettop(L);
    lua_createtable(L, 0, 9);
    set_given(L, shot, "now", &now_source.record);
    set_int(L, "epoch", in->now_ms / 1000);
    set_int(L, "wday", in->weekday);
    set_int(L, "hour", in->hour);
    keep(L, list, &now_source, NOW, 0);
    lua_createtable(L, 0, 2);
    lua_pushstring(L, view->currency->code);
    lua_setfield(L, -2, "code");
    set_int(L, "exponent", view->currency->exponent);
    keep(L, list, &currency_source, CURRENCY, 0);
    lua_createtable(L, 0, 2);
    set_given(L, shot, "tenant", &tenant_source.record);
    keep(L, list, &tenant_source, TENANT, 0);
    lua_createtable(L, 0, 8);
    set_given(L, shot, "customer", &customer_source.record);
    set_str(L, "id", in->customer.id);
    set_bool(L, "guest", in->customer.id.len == 0);
    set_bool(L, "first_order", in->customer.first_order);
    set_int(L, "points_available", in->points.available);
    keep(L, list, &customer_source, CUSTOMER, 0);
    lua_createtable(L, 0, 6);
    set_given(L, shot, "cart", &cart_source.record);
    int64_t items = 0;
    for (size_t i = 0; i < view->lines; i++) items += view->line[i].qty;
    set_int(L, "gross", view->gross);
    set_int(L, "net", view->net);
    set_int(L, "item_count", items);
    keep(L, list, &cart_source, CART, 0);
    lua_createtable(L, 0, 5); /* the address without names, streets and phones */
    set_str(L, "country", place->country.len ? place->country : in->tax.home_country);
    set_str(L, "province", place->province);
    set_str(L, "region", place->region);
    set_str(L, "city", place->city);
    set_str(L, "zip", place->zip);
    keep(L, list, &address_source, ADDRESS, 0);
    lua_createtable(L, 0, 3);
    set_str(L, "method_id",
            view->shipping && view->shipping->method ? view->shipping->method->id : in->shipping.method_id);
    if (view->shipping) set_int(L, "net", view->shipping->net);
    keep(L, list, &shipping_source, SHIPPING, 0);
    for (size_t i = 0; i < view->lines; i++) {
        build_line(L, &view->line[i]);
        keep(L, list, &line_source, LINES + (int)i, i);
    }
}

static char sources_key, serial_key; /* of the registry */

/* Pushes the sources of the shot, made when the state does not have them yet. */
static void push_sources(lua_State *L, const struct pricing_shot *shot) {
    lua_pushlightuserdata(L, &serial_key);
    lua_rawget(L, LUA_REGISTRYINDEX);
    bool mine = lua_tonumber(L, -1) == (lua_Number)shot->serial;
    lua_pop(L, 1);
    if (mine) {
        lua_pushlightuserdata(L, &sources_key);
        lua_rawget(L, LUA_REGISTRYINDEX);
        return;
    }
    build_sources(L, shot);
    lua_pushlightuserdata(L, &sources_key);
    lua_pushvalue(L, -2);
    lua_rawset(L, LUA_REGISTRYINDEX);
    lua_pushlightuserdata(L, &serial_key);
    lua_pushnumber(L, (lua_Number)shot->serial);
    lua_rawset(L, LUA_REGISTRYINDEX);
}

static void push_lines(lua_State *L, const struct pricing_view *view, int sources) {
    lua_createtable(L, (int)view->lines, 0);
    for (size_t i = 0; i < view->lines; i++) {
        sandbox_push_view(L, sources, LINES + (int)i);
        lua_rawseti(L, -2, (int)i + 1);
    }
}

static void push_candidates(lua_State *L, const struct pricing_view *view) {
    lua_newtable(L);
    int n = 0;
    for (size_t i = 0; i < view->lines; i++) {
        for (size_t k = 0; k < view->line[i].rates; k++) {
            const struct tax_rate *rate = &view->line[i].rate[k];
            lua_createtable(L, 0, 5);
            set_str(L, "line", view->line[i].id);
            set_int(L, "rate_ppm", rate->ppm);
            set_str(L, "name", rate->name);
            set_str(L, "jurisdiction", rate->jurisdiction);
            set_bool(L, "compound", rate->compound);
            sandbox_mark_record(L, &candidate_record);
            lua_rawseti(L, -2, ++n);
        }
    }
}

static void set_view(lua_State *L, int sources, int place, const char *name) {
    sandbox_push_view(L, sources, place);
    lua_setfield(L, -2, name);
}

bool pricing_push_shot(lua_State *L, struct pricing_shot *shot, struct error *err) {
    const struct pricing_view *view = shot->view;
    if (!lua_checkstack(L, 24) || !lua_checkstack(shot->source, 24)) return error_set(err, ERR_MEMORY, "out of memory");
    push_sources(L, shot);
    int sources = lua_gettop(L);
    sandbox_set_context(L, shot);
    lua_createtable(L, 0, 8);
    lua_pushstring(L, shot->hook);
    lua_setfield(L, -2, "hook");
    set_view(L, sources, NOW, "now");
    set_view(L, sources, CURRENCY, "currency");
    set_view(L, sources, TENANT, "tenant");
    set_view(L, sources, CUSTOMER, "customer");
    sandbox_push_view(L, sources, CART);
    push_lines(L, view, sources);
    lua_setfield(L, -2, "lines");
    lua_setfield(L, -2, "cart");
    sandbox_push_view(L, sources, SHIPPING);
    set_view(L, sources, ADDRESS, "address");
    lua_setfield(L, -2, "shipping");
    if (view->shipping) { /* tax.resolve comes when shipping is known */
        lua_createtable(L, 0, 5);
        push_lines(L, view, sources);
        lua_setfield(L, -2, "lines");
        set_view(L, sources, ADDRESS, "address");
        set_view(L, sources, CUSTOMER, "customer");
        push_candidates(L, view);
        lua_setfield(L, -2, "candidates");
        set_int(L, "date", view->input->now_ms / 1000);
        sandbox_mark_record(L, &tax_record);
    } else {
        lua_newtable(L);
        sandbox_mark_record(L, &promotion_record);
    }
    lua_setfield(L, -2, "subject");
    sandbox_mark_record(L, &input_record);
    lua_remove(L, sources);
    pricing_set_subject(L, shot);
    return true;
}

void pricing_push_records(lua_State *L) {
    static const struct {
        const char *name;
        const struct sandbox_record *record;
    } all[] = {{"input", &input_record},
               {"now", &now_source.record},
               {"currency", &currency_source.record},
               {"tenant", &tenant_source.record},
               {"customer", &customer_source.record},
               {"tier", &tier_record},
               {"cart", &cart_source.record},
               {"line", &line_source.record},
               {"discount", &discount_record},
               {"address", &address_source.record},
               {"shipping", &shipping_source.record},
               {"group", &group_record},
               {"tax", &tax_record},
               {"candidate", &candidate_record}};
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
