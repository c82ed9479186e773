#include "commerce/pricing_work.h"

#include <stdlib.h>

#include "commerce/place.h"

void *work_grow(struct work *w, void *at, size_t n, size_t *cap, size_t size) {
    if (n < *cap) return at;
    size_t wider = *cap ? *cap * 2 : 16;
    void *fresh = arena_zalloc(w->arena, wider, size);
    if (!fresh) return NULL;
    if (n) memcpy(fresh, at, n * size);
    *cap = wider;
    return fresh;
}

int64_t world_net(const struct world *x) {
    int64_t net = 0;
    for (size_t i = 0; i < x->lines; i++) net += x->line[i].net;
    return net;
}

bool world_note(struct work *w, struct world *x, int stage, struct str rule, int64_t version, int64_t before,
                int64_t after, const char *note) {
    struct quote_trace *trace = work_grow(w, x->trace, x->traces, &x->traces_cap, sizeof *trace);
    if (!trace) return work_memory(w);
    x->trace = trace;
    x->trace[x->traces++] = (struct quote_trace){
        .stage = stage, .rule = rule, .version = version, .before = before, .after = after, .note = note};
    return true;
}

bool world_reject(struct work *w, struct world *x, struct str code, const char *reason) {
    struct quote_rejected *rejected = work_grow(w, x->rejected, x->rejections, &x->rejections_cap, sizeof *rejected);
    if (!rejected) return work_memory(w);
    x->rejected = rejected;
    x->rejected[x->rejections++] = (struct quote_rejected){.code = code, .reason = reason};
    return true;
}

static bool find_source(struct work *w, struct world *x, const struct quote_source *source, size_t *at) {
    for (*at = 0; *at < x->sources; (*at)++) {
        const struct quote_source *have = &x->source[*at];
        if (have->kind == source->kind && have->level == source->level && str_eq(have->id, source->id)) return true;
    }
    struct quote_source *grown = work_grow(w, x->source, x->sources, &x->sources_cap, sizeof *grown);
    if (!grown) return work_memory(w);
    x->source = grown;
    x->source[x->sources] = *source;
    x->source[x->sources].amount = 0;
    x->source[x->sources++].units = 0;
    return true;
}

bool world_reduce(struct work *w, struct world *x, const struct quote_source *source, int64_t line, int64_t amount) {
    size_t at;
    if (!find_source(w, x, source, &at)) return false;
    x->source[at].amount += amount;
    x->source[at].units += source->units;
    if (line < 0) {
        x->shipping.discount += amount;
        x->shipping.net -= amount;
    } else {
        x->line[line].discount += amount;
        x->line[line].net -= amount;
    }
    for (size_t i = 0; i < x->rows; i++) {
        if (x->row[i].source != at || x->row[i].line != line) continue;
        x->row[i].amount += amount;
        return true;
    }
    struct quote_row *row = work_grow(w, x->row, x->rows, &x->rows_cap, sizeof *row);
    if (!row) return work_memory(w);
    x->row = row;
    x->row[x->rows++] = (struct quote_row){.source = at, .line = line, .amount = amount};
    return true;
}

static int key_compare(const void *left, const void *right) {
    const struct quote_line *a = *(const struct quote_line *const *)left;
    const struct quote_line *b = *(const struct quote_line *const *)right;
    int order = text_order(a->item->product_id, b->item->product_id);
    if (!order) order = text_order(a->item->variant_id, b->item->variant_id);
    if (!order) order = text_order(a->item->purchase_type, b->item->purchase_type);
    if (!order) order = text_order(a->bundle_key, b->bundle_key);
    return order ? order : text_order(a->id, b->id);
}

bool world_rank(struct work *w, struct world *x) {
    struct quote_line **order = arena_zalloc(w->arena, x->lines ? x->lines : 1, sizeof(struct quote_line *));
    if (!order) return work_memory(w);
    for (size_t i = 0; i < x->lines; i++) order[i] = &x->line[i];
    if (x->lines) qsort(order, x->lines, sizeof(struct quote_line *), key_compare);
    for (size_t i = 0; i < x->lines; i++) order[i]->rank = (uint32_t)i;
    return true;
}

static void *copy_of(struct work *w, const void *at, size_t n, size_t room, size_t size) {
    void *fresh = arena_zalloc(w->arena, room ? room : 1, size);
    if (fresh && n) memcpy(fresh, at, n * size);
    return fresh;
}

bool world_copy(struct work *w, const struct world *from, struct world *to) {
    *to = *from;
    size_t room = from->lines + (w->results ? GIFT_LINES_MAX : 0);
    to->line = copy_of(w, from->line, from->lines, room, sizeof *to->line);
    to->stopped = arena_zalloc(w->arena, room ? room : 1, sizeof *to->stopped);
    to->after_promotions = arena_zalloc(w->arena, room ? room : 1, sizeof *to->after_promotions);
    to->source = copy_of(w, from->source, from->sources, from->sources, sizeof *to->source);
    to->row = copy_of(w, from->row, from->rows, from->rows, sizeof *to->row);
    to->trace = copy_of(w, from->trace, from->traces, from->traces, sizeof *to->trace);
    to->sources_cap = from->sources;
    to->rows_cap = from->rows;
    to->traces_cap = from->traces;
    return (to->line && to->stopped && to->after_promotions && to->source && to->row && to->trace) || work_memory(w);
}

bool list_has(struct str_list list, struct str s) {
    for (size_t i = 0; i < list.n; i++)
        if (str_eq(list.at[i], s)) return true;
    return false;
}

bool lists_meet(struct str_list a, struct str_list b) {
    for (size_t i = 0; i < a.n; i++)
        if (list_has(b, a.at[i])) return true;
    return false;
}

enum price_level promotion_level(const struct promotion *p) {
    if (p->kind == PROMOTION_FREE_SHIPPING) return LEVEL_SHIPPING;
    return p->kind == PROMOTION_B1G1 || p->kind == PROMOTION_FLASH_SALE ? LEVEL_LINE : p->level;
}

bool line_matches(const struct quote_line *line, const struct targets *targets) {
    switch (targets->kind) {
    case TARGET_ALL:
        return true;
    case TARGET_CATEGORY:
        return lists_meet(targets->ids, line->item->category_ids);
    case TARGET_PRODUCT:
        return list_has(targets->ids, line->item->product_id);
    case TARGET_VARIANT:
        return line->item->variant_id.len && list_has(targets->ids, line->item->variant_id);
    case TARGET_TAG:
        return lists_meet(targets->ids, line->item->tag_ids);
    case TARGET_VENDOR:
        return line->item->vendor_id.len && list_has(targets->ids, line->item->vendor_id);
    case TARGET_BUNDLE:
        return line->in_bundle && (targets->ids.n == 0 || list_has(targets->ids, line->bundle_id));
    }
    return false;
}

bool amount_fits(const struct work *w, int64_t amount, struct str currency) {
    return amount == 0 || currency.len == 0 || str_eq(currency, str_of(w->currency->code));
}

bool window_open(int64_t starts_ms, int64_t ends_ms, int64_t now_ms) {
    return (starts_ms == 0 || now_ms >= starts_ms) && (ends_ms == 0 || now_ms < ends_ms);
}

bool work_convert(struct work *w, int64_t amount, struct str currency, int64_t *out) {
    if (currency.len == 0 || str_eq(currency, str_of(w->currency->code))) {
        *out = amount;
        return true;
    }
    for (size_t i = 0; i < w->in->rates; i++) {
        if (!str_eq(w->in->rate[i].from, currency)) continue;
        return ratio_apply(amount, w->in->rate[i].rate, ROUND_HALF_UP, out) || work_range(w);
    }
    return error_set(w->err, ERR_INVALID, "no exchange rate from %.*s", STR_FMT(currency));
}
