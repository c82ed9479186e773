/* What a hook of a quote decides about (`input.subject`), where that is more than the quote's own lines. Built for each
 * run, from the structs of the pipeline. */
#include <lauxlib.h>

#include "script/bind_pricing.h"
#include "script/bind_pricing_table.h"
#include "script/sandbox.h"

static const char *const prices_fields[] = {"lines"};
static const char *const price_line_fields[] = {"id",      "product_id", "variant_id",   "sku",  "category_ids",
                                                "tag_ids", "vendor_id",  "qty",          "unit", "list",
                                                "sale",    "breaks",     "purchase_type"};
static const char *const break_fields[] = {"min_qty", "price", "sale"};
static const char *const bundle_subject_fields[] = {"bundle", "components", "qty"};
static const char *const bundle_fields[] = {"id", "name", "pricing", "price", "percent_off_bps", "max_per_order"};
static const char *const component_fields[] = {"line_id", "product_id", "variant_id", "sku", "qty", "unit", "gross"};
static const char *const class_fields[] = {"product", "category", "customer", "address"};
static const char *const product_fields[] = {
    "id",       "variant_id",   "sku",     "name", "tax_class",        "vendor_id",
    "weight_g", "category_ids", "tag_ids", "list", "requires_shipping"};
static const char *const category_fields[] = {"id", "path"};
static const char *const rates_fields[] = {"methods", "parcel", "address", "subtotal", "customer"};
static const char *const method_fields[] = {"id", "name", "price", "estimated_days", "hidden"};
static const char *const parcel_fields[] = {"warehouse_id", "weight_g", "net"};
static const char *const round_fields[] = {"amount", "currency", "purpose"};

#define RECORD(where, list)                                                                                            \
    { .path = (where), .fields = (list), .count = sizeof(list) / sizeof *(list) }

static const struct sandbox_record prices_record = RECORD("input.subject", prices_fields),
                                   price_line_record = RECORD("input.subject.lines[]", price_line_fields),
                                   break_record = RECORD("line.breaks[]", break_fields),
                                   bundle_subject_record = RECORD("input.subject", bundle_subject_fields),
                                   bundle_record = RECORD("input.subject.bundle", bundle_fields),
                                   component_record = RECORD("input.subject.components[]", component_fields),
                                   class_record = RECORD("input.subject", class_fields),
                                   product_record = RECORD("input.subject.product", product_fields),
                                   category_record = RECORD("input.subject.category", category_fields),
                                   rates_record = RECORD("input.subject", rates_fields),
                                   method_record = RECORD("input.subject.methods[]", method_fields),
                                   parcel_record = RECORD("input.subject.parcel", parcel_fields),
                                   round_record = RECORD("input.subject", round_fields);

static void push_price_line(lua_State *L, const struct quote_line *line, const struct line_price *price) {
    const struct pricing_line *item = line->item;
    lua_createtable(L, 0, sizeof price_line_fields / sizeof *price_line_fields);
    table_set_str(L, "id", line->id);
    table_set_str(L, "product_id", item->product_id);
    table_set_str(L, "variant_id", item->variant_id);
    table_set_str(L, "sku", item->sku);
    table_set_list(L, "category_ids", item->category_ids);
    table_set_list(L, "tag_ids", item->tag_ids);
    table_set_str(L, "vendor_id", item->vendor_id);
    table_set_str(L, "purchase_type", item->purchase_type.len ? item->purchase_type : STR("one_time"));
    table_set_int(L, "qty", line->qty);
    table_set_int(L, "unit", line->unit);
    table_set_int(L, "list", price->list);
    if (price->sale) table_set_int(L, "sale", price->sale);
    lua_createtable(L, (int)price->breaks, 0);
    for (size_t i = 0; i < price->breaks; i++) {
        lua_createtable(L, 0, 3);
        table_set_int(L, "min_qty", price->at[i].min_qty);
        table_set_int(L, "price", price->at[i].price);
        if (price->at[i].sale) table_set_int(L, "sale", price->at[i].sale);
        sandbox_mark_record(L, &break_record);
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_setfield(L, -2, "breaks");
    sandbox_mark_record(L, &price_line_record);
}

static void push_prices(lua_State *L, const struct pricing_shot *shot) {
    const struct pricing_view *view = shot->view;
    lua_createtable(L, 0, 1);
    lua_createtable(L, (int)view->lines, 0);
    for (size_t i = 0; i < view->lines; i++) {
        push_price_line(L, &view->line[i], &shot->prices[i]);
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_setfield(L, -2, "lines");
    sandbox_mark_record(L, &prices_record);
}

static void push_component(lua_State *L, struct str line_id, struct str product, struct str variant, struct str sku,
                           int64_t qty, const struct quote_line *line) {
    lua_createtable(L, 0, sizeof component_fields / sizeof *component_fields);
    table_set_str(L, "line_id", line_id);
    table_set_str(L, "product_id", product);
    table_set_str(L, "variant_id", variant);
    table_set_str(L, "sku", sku);
    table_set_int(L, "qty", qty);
    if (line) table_set_int(L, "unit", line->listed_unit);
    if (line) table_set_int(L, "gross", line->listed_unit * line->qty);
    sandbox_mark_record(L, &component_record);
}

/* The lines of a bundle that is in the cart; of one that applies by itself what it is made of. */
static void push_components(lua_State *L, const struct pricing_shot *shot) {
    const struct pricing_view *view = shot->view;
    const struct bundle_question *q = shot->bundle;
    int n = 0;
    lua_newtable(L);
    for (size_t i = 0; q->member && i < view->lines; i++) {
        const struct quote_line *line = &view->line[i];
        if (!q->member[i]) continue;
        push_component(L, line->id, line->item->product_id, line->item->variant_id, line->item->sku, line->qty, line);
        lua_rawseti(L, -2, ++n);
    }
    for (size_t i = 0; !q->member && i < q->bundle->items; i++) {
        const struct bundle_item *item = &q->bundle->item[i];
        push_component(L, STR(""), item->product_id, item->variant_id, STR(""), item->qty, NULL);
        lua_rawseti(L, -2, ++n);
    }
}

static void push_bundle(lua_State *L, const struct pricing_shot *shot) {
    const struct pricing_bundle *bundle = shot->bundle->bundle;
    bool fixed = bundle->pricing == BUNDLE_FIXED;
    lua_createtable(L, 0, 3);
    lua_createtable(L, 0, sizeof bundle_fields / sizeof *bundle_fields);
    table_set_str(L, "id", bundle->id);
    table_set_str(L, "name", bundle->name);
    table_set_str(L, "pricing", fixed ? STR("fixed") : STR("percent_off"));
    if (fixed) table_set_int(L, "price", bundle->price);
    if (!fixed) table_set_int(L, "percent_off_bps", bundle->percent_off_bps);
    table_set_int(L, "max_per_order", bundle->max_per_order);
    sandbox_mark_record(L, &bundle_record);
    lua_setfield(L, -2, "bundle");
    push_components(L, shot);
    lua_setfield(L, -2, "components");
    table_set_int(L, "qty", shot->bundle->qty);
    sandbox_mark_record(L, &bundle_subject_record);
}

/* The buyer and the address of the input at `input`, as members of the table on top. */
static void set_whereabouts(lua_State *L, int input) {
    lua_getfield(L, input, "customer");
    lua_setfield(L, -2, "customer");
    lua_getfield(L, input, "shipping");
    lua_getfield(L, -1, "address");
    lua_setfield(L, -3, "address");
    lua_pop(L, 1);
}

static void push_class(lua_State *L, int input, const struct quote_line *line) {
    const struct pricing_line *item = line->item;
    lua_createtable(L, 0, 4);
    lua_createtable(L, 0, sizeof product_fields / sizeof *product_fields);
    table_set_str(L, "id", item->product_id);
    table_set_str(L, "variant_id", item->variant_id);
    table_set_str(L, "sku", item->sku);
    table_set_str(L, "name", item->name);
    table_set_str(L, "tax_class", item->tax_class);
    table_set_str(L, "vendor_id", item->vendor_id);
    table_set_int(L, "weight_g", item->weight_g);
    table_set_int(L, "list", line->listed_unit);
    table_set_list(L, "category_ids", item->category_ids);
    table_set_list(L, "tag_ids", item->tag_ids);
    lua_pushboolean(L, item->requires_shipping);
    lua_setfield(L, -2, "requires_shipping");
    sandbox_mark_record(L, &product_record);
    lua_setfield(L, -2, "product");
    if (item->category_ids.n) { /* its own is the last of them, those above it come before */
        lua_createtable(L, 0, 2);
        table_set_str(L, "id", item->category_ids.at[item->category_ids.n - 1]);
        table_set_list(L, "path", item->category_ids);
        sandbox_mark_record(L, &category_record);
        lua_setfield(L, -2, "category");
    }
    set_whereabouts(L, input);
    sandbox_mark_record(L, &class_record);
}

static void push_rates(lua_State *L, int input, const struct pricing_shot *shot) {
    lua_createtable(L, 0, sizeof rates_fields / sizeof *rates_fields);
    lua_createtable(L, (int)shot->offers, 0);
    for (size_t i = 0; i < shot->offers; i++) {
        const struct shipping_offer *offer = &shot->offer[i];
        lua_createtable(L, 0, sizeof method_fields / sizeof *method_fields);
        table_set_str(L, "id", offer->method->id);
        table_set_str(L, "name", offer->name);
        table_set_int(L, "price", offer->price);
        if (offer->days >= 0) table_set_int(L, "estimated_days", offer->days);
        sandbox_mark_record(L, &method_record);
        lua_rawseti(L, -2, (int)i + 1);
    }
    lua_setfield(L, -2, "methods");
    lua_createtable(L, 0, 3);
    table_set_str(L, "warehouse_id", shot->parcel->warehouse_id);
    table_set_int(L, "weight_g", shot->parcel->weight_g);
    table_set_int(L, "net", shot->parcel->merchandise);
    sandbox_mark_record(L, &parcel_record);
    lua_setfield(L, -2, "parcel");
    table_set_int(L, "subtotal", shot->view->net);
    set_whereabouts(L, input);
    sandbox_mark_record(L, &rates_record);
}

bool pricing_push_subject(lua_State *L, const struct pricing_shot *shot) {
    int input = lua_gettop(L);
    if (shot->total) {
        lua_createtable(L, 0, 3);
        table_set_int(L, "amount", *shot->total);
        table_set_str(L, "currency", str_of(shot->view->currency->code));
        table_set_str(L, "purpose", STR("total"));
        sandbox_mark_record(L, &round_record);
    } else if (shot->item) {
        push_class(L, input, shot->item);
    } else if (shot->parcel) {
        push_rates(L, input, shot);
    } else if (shot->prices) {
        push_prices(L, shot);
    } else if (shot->bundle) {
        push_bundle(L, shot);
    } else {
        return false;
    }
    return true;
}

void pricing_add_subject_records(lua_State *L) {
    static const struct {
        const char *name;
        const struct sandbox_record *record;
    } all[] = {{"prices", &prices_record},       {"price_line", &price_line_record},
               {"price_break", &break_record},   {"bundle_subject", &bundle_subject_record},
               {"bundle", &bundle_record},       {"component", &component_record},
               {"class_subject", &class_record}, {"product", &product_record},
               {"category", &category_record},   {"rates_subject", &rates_record},
               {"method", &method_record},       {"parcel", &parcel_record},
               {"round", &round_record}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        lua_createtable(L, (int)all[i].record->count, 0);
        for (size_t k = 0; k < all[i].record->count; k++) {
            lua_pushstring(L, all[i].record->fields[k]);
            lua_rawseti(L, -2, (int)k + 1);
        }
        lua_setfield(L, -2, all[i].name);
    }
}
