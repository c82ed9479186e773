/* Lines that leave from several warehouses.
 *
 * Prices, discounts and taxes know nothing of warehouses: a rule that asks for three units of a line sees three, and
 * the shopper pays the same wherever they lie. Only parcels look at the portions. At the end each figure of such a line
 * is divided by its units in their order, as a refund divides it, so that the portions sum to the line to the last
 * unit.
 *
 * A bundle may have split the line before: the units of an item then stand in several lines, and its portions are laid
 * over them in the order of their ids, which is the same in whatever order bundles and lines came. */
#include "commerce/pricing_work.h"

#include "commerce/place.h"

void world_lay(struct world *x) {
    for (size_t line = 0; line < x->lines; line++) {
        x->line[line].before = 0;
        for (size_t i = 0; x->line[line].item->portions && i < x->lines; i++)
            if (x->line[i].item == x->line[line].item && text_order(x->line[i].id, x->line[line].id) < 0)
                x->line[line].before += x->line[i].qty;
    }
}

size_t world_portions(const struct world *x, size_t line) {
    size_t n = x->line[line].item->portions;
    return n ? n : 1;
}

static int64_t within(int64_t unit, int64_t qty) {
    return unit < 0 ? 0 : unit > qty ? qty : unit;
}

struct str world_portion(const struct world *x, size_t line, size_t k, int64_t *from, int64_t *to) {
    const struct pricing_line *item = x->line[line].item;
    int64_t qty = x->line[line].qty;
    *from = 0;
    *to = qty;
    if (item->portions == 0) return item->warehouse_id;
    int64_t start = -x->line[line].before;
    for (size_t i = 0; i < k; i++) start += item->portion[i].qty;
    *from = within(start, qty);
    *to = within(start + item->portion[k].qty, qty);
    return item->portion[k].warehouse_id;
}

static int64_t share(int64_t total, int64_t qty, int64_t from, int64_t to) {
    return money_split(total, qty, to) - money_split(total, qty, from);
}

int64_t world_there(const struct world *x, size_t line, struct str warehouse, int64_t total) {
    const struct pricing_line *item = x->line[line].item;
    int64_t qty = x->line[line].qty, start = -x->line[line].before;
    if (item->portions == 0) return str_eq(item->warehouse_id, warehouse) ? total : 0;
    for (size_t k = 0; k < item->portions; start += item->portion[k++].qty) {
        if (!str_eq(item->portion[k].warehouse_id, warehouse)) continue;
        return share(total, qty, within(start, qty), within(start + item->portion[k].qty, qty));
    }
    return 0;
}

/* The reductions of a line over its portions: each by units as far as that fits, so that those of a portion sum to its
 * discount. */
static bool divide_rows(struct work *w, struct world *x, size_t i, const struct quote_portion *portion, size_t n) {
    int64_t *left = arena_zalloc(w->arena, x->rows ? x->rows : 1, sizeof *left);
    int64_t **part = arena_zalloc(w->arena, x->rows ? x->rows : 1, sizeof *part);
    if (!left || !part) return work_memory(w);
    for (size_t r = 0; r < x->rows; r++) {
        if (x->row[r].line != (int64_t)i) continue;
        left[r] = x->row[r].amount;
        part[r] = arena_zalloc(w->arena, n, sizeof *part[r]);
        if (!part[r]) return work_memory(w);
        x->row[r].portion = part[r];
    }
    int64_t from = 0;
    for (size_t k = 0; k < n; k++) {
        int64_t open = portion[k].discount, to = from + portion[k].qty;
        /* First what each is worth by its units, then whatever still fits. */
        for (int more = 0; more < 2; more++)
            for (size_t r = 0; r < x->rows; r++) {
                if (!part[r]) continue;
                int64_t take = more ? left[r] : share(x->row[r].amount, x->line[i].qty, from, to);
                if (take > left[r]) take = left[r];
                if (take > open) take = open;
                part[r][k] += take;
                left[r] -= take;
                open -= take;
            }
        from = to;
    }
    return true;
}

static bool divide(struct work *w, struct world *x, size_t i) {
    struct quote_line *line = &x->line[i];
    struct quote_portion *portion = arena_zalloc(w->arena, line->item->portions, sizeof *portion);
    if (!portion) return work_memory(w);
    size_t n = 0;
    for (size_t k = 0; k < line->item->portions; k++) {
        int64_t from, to;
        struct str warehouse = world_portion(x, i, k, &from, &to);
        if (from == to) continue;
        struct quote_portion *p = &portion[n++];
        *p = (struct quote_portion){.warehouse_id = warehouse,
                                    .qty = to - from,
                                    .gross = line->unit * (to - from),
                                    .net = share(line->net, line->qty, from, to),
                                    .tax = share(line->tax, line->qty, from, to)};
        p->discount = p->gross - p->net;
    }
    line->portion = portion;
    line->portions = n;
    return divide_rows(w, x, i, portion, n);
}

bool pricing_portions(struct work *w, struct world *x) {
    for (size_t i = 0; i < x->lines; i++)
        if (x->line[i].item->portions && !divide(w, x, i)) return false;
    return true;
}
