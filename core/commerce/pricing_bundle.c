/* Stage 2: bundles. Lines that carry a bundle key were added as a unit and get the bundle's price together; bundles
 * that apply by themselves are then found in what is left, largest saving first, and split lines where they must. */
#include "commerce/pricing_work.h"

#include "commerce/place.h"

static const struct pricing_bundle *bundle_find(const struct work *w, struct str id) {
    for (size_t i = 0; i < w->in->bundles; i++)
        if (str_eq(w->in->bundle[i].id, id)) return &w->in->bundle[i];
    return NULL;
}

static const char *bundle_refusal(const struct work *w, const struct pricing_bundle *bundle) {
    if (!bundle || bundle->inactive || !window_open(bundle->starts_ms, bundle->ends_ms, w->in->now_ms))
        return "bundle_inactive";
    if (bundle->pricing == BUNDLE_FIXED && !amount_fits(w, bundle->price, bundle->currency)) return "currency_mismatch";
    return NULL;
}

static bool item_fits(const struct bundle_item *item, const struct quote_line *line) {
    return str_eq(item->product_id, line->item->product_id) &&
           (item->variant_id.len == 0 || str_eq(item->variant_id, line->item->variant_id));
}

/* What `count` instances save on components worth `gross` (`listed` before a restatement, by whose ratio a fixed price
 * moves); never negative. */
static bool bundle_saving(struct work *w, const struct pricing_bundle *bundle, int64_t count, int64_t gross,
                          int64_t listed, int64_t *out) {
    *out = 0;
    if (bundle->pricing == BUNDLE_PERCENT_OFF) {
        *out = money_pct(gross, bundle->percent_off_bps);
        return true;
    }
    /* Dearer than its parts is no surcharge. */
    if ((i128)bundle->price * count >= listed) return true;
    int64_t price = bundle->price * count;
    if (listed != gross && listed > 0 && !mul_div_round(price, gross, listed, ROUND_HALF_UP, &price))
        return work_range(w);
    if (price < gross) *out = gross - price;
    return true;
}

/* Takes the saving off the marked lines of a bundle. */
static bool bundle_book(struct work *w, struct world *x, const struct pricing_bundle *bundle, const bool *member,
                        int64_t count) {
    int64_t *weight = arena_zalloc(w->arena, x->lines, sizeof *weight);
    int64_t *share = arena_zalloc(w->arena, x->lines, sizeof *share);
    uint32_t *rank = arena_zalloc(w->arena, x->lines, sizeof *rank);
    if (!weight || !share || !rank) return work_memory(w);
    int64_t gross = 0, listed = 0, saving, before = world_net(x);
    for (size_t i = 0; i < x->lines; i++) {
        rank[i] = x->line[i].rank;
        if (!member[i]) continue;
        x->line[i].in_bundle = true;
        weight[i] = x->line[i].gross;
        gross += x->line[i].gross;
        listed += x->line[i].listed_unit * x->line[i].qty;
    }
    if (!bundle_saving(w, bundle, count, gross, listed, &saving)) return false;
    if (saving == 0) return world_note(w, x, 2, bundle->id, 0, before, before, "no_saving");
    if (!money_alloc(w->arena, saving, weight, rank, x->lines, share)) return work_memory(w);
    struct quote_source source = {.kind = SOURCE_BUNDLE, .level = LEVEL_LINE, .id = bundle->id, .label = bundle->name};
    for (size_t i = 0; i < x->lines; i++) {
        if (share[i] == 0) continue;
        if (!world_reduce(w, x, &source, (int64_t)i, share[i])) return false;
        x->line[i].reduced = true;
    }
    return world_note(w, x, 2, bundle->id, 0, before, before - saving, "applied");
}

/* How many whole instances the member lines are; 0 when they are not exactly that. */
static int64_t instances(const struct world *x, const struct pricing_bundle *bundle, const bool *member) {
    int64_t count = 0, used = 0, all = 0;
    for (size_t i = 0; i < x->lines; i++)
        if (member[i]) all += x->line[i].qty;
    for (size_t k = 0; k < bundle->items; k++) {
        int64_t qty = 0;
        for (size_t i = 0; i < x->lines; i++)
            if (member[i] && item_fits(&bundle->item[k], &x->line[i])) qty += x->line[i].qty;
        if (qty == 0 || qty % bundle->item[k].qty) return 0;
        if (count && qty / bundle->item[k].qty != count) return 0;
        count = qty / bundle->item[k].qty;
        used += qty;
    }
    return used == all ? count : 0;
}

/* The rule that gave a bundle its price. */
static bool note_rule(struct work *w, struct world *x, const struct bundle_answer *answer, int64_t before) {
    int64_t after = world_net(x);
    if (answer->rule_id.len == 0) return true;
    return world_note(w, x, 2, answer->rule_id, answer->version, before, after,
                      after < before ? "applied" : "no_saving");
}

static bool keyed_bundle(struct work *w, struct world *x, size_t first, bool *done) {
    bool *member = arena_zalloc(w->arena, x->lines, sizeof *member);
    if (!member) return work_memory(w);
    struct str key = x->line[first].bundle_key, id = x->line[first].bundle_id;
    for (size_t i = first; i < x->lines; i++) {
        if (!str_eq(x->line[i].bundle_key, key) || !str_eq(x->line[i].bundle_id, id)) continue;
        member[i] = done[i] = true;
    }
    const struct pricing_bundle *bundle = bundle_find(w, id);
    const char *refusal = bundle_refusal(w, bundle);
    int64_t count = refusal ? 0 : instances(x, bundle, member), net = world_net(x);
    if (!refusal && count == 0) refusal = "bundle_incomplete";
    if (refusal) return world_note(w, x, 2, id, 0, net, net, refusal);
    struct bundle_answer answer;
    bundle = pricing_ask_bundle(w, x, bundle, member, count, &answer);
    return bundle && bundle_book(w, x, bundle, member, count) && note_rule(w, x, &answer, net);
}

/* A bundle that applies by itself, while it is being looked for. */
struct finder {
    const struct pricing_bundle *bundle;
    struct bundle_answer answer;
    int64_t *take;  /* per line: units of one instance taken now */
    int64_t *units; /* per line: units of all instances found */
    int64_t count, saving;
    bool possible;
};

/* One instance from the units left, lines in the order of their keys. */
static bool finder_pick(struct work *w, const struct world *x, struct finder *f, const int64_t *left,
                        const size_t *by_rank) {
    f->possible = f->bundle->max_per_order == 0 || f->count < f->bundle->max_per_order;
    int64_t gross = 0, listed = 0;
    for (size_t i = 0; i < x->lines; i++) f->take[i] = 0;
    for (size_t k = 0; f->possible && k < f->bundle->items; k++) {
        int64_t need = f->bundle->item[k].qty;
        for (size_t r = 0; need && r < x->lines; r++) {
            size_t i = by_rank[r];
            if (!item_fits(&f->bundle->item[k], &x->line[i])) continue;
            int64_t some = left[i] - f->take[i] < need ? left[i] - f->take[i] : need;
            f->take[i] += some;
            need -= some;
            gross += some * x->line[i].unit;
            listed += some * x->line[i].listed_unit;
        }
        f->possible = need == 0;
    }
    f->saving = 0;
    return !f->possible || bundle_saving(w, f->bundle, 1, gross, listed, &f->saving);
}

/* How often the instance can be taken before any finder would pick otherwise. */
static int64_t finder_repeats(const struct world *x, const struct finder *f, const struct finder *all, size_t n,
                              const int64_t *left) {
    int64_t most = f->bundle->max_per_order ? f->bundle->max_per_order - f->count : INT64_MAX;
    for (size_t i = 0; i < x->lines; i++) {
        if (f->take[i] == 0) continue;
        if (left[i] / f->take[i] < most) most = left[i] / f->take[i];
        for (size_t k = 0; k < n; k++) {
            if (!all[k].possible || all[k].take[i] == 0) continue;
            int64_t same = (left[i] - all[k].take[i]) / f->take[i] + 1;
            if (same < most) most = same;
        }
    }
    return most;
}

static bool finder_beats(const struct finder *a, const struct finder *b) {
    if (a->saving != b->saving) return a->saving > b->saving;
    return text_order(a->bundle->id, b->bundle->id) < 0;
}

/* Greedy search: the largest saving of one instance first, then the smaller id. */
static bool find_all(struct work *w, const struct world *x, struct finder *finder, size_t n, int64_t *left,
                     const size_t *by_rank) {
    for (;;) {
        struct finder *best = NULL;
        for (size_t k = 0; k < n; k++) {
            if (!finder_pick(w, x, &finder[k], left, by_rank)) return false;
            if (!finder[k].possible || finder[k].saving <= 0) continue;
            if (!best || finder_beats(&finder[k], best)) best = &finder[k];
        }
        if (!best) return true;
        int64_t repeats = finder_repeats(x, best, finder, n, left);
        for (size_t i = 0; i < x->lines; i++) {
            best->units[i] += best->take[i] * repeats;
            left[i] -= best->take[i] * repeats;
        }
        best->count += repeats;
    }
}

static void line_resize(struct quote_line *line, int64_t qty) {
    line->qty = qty;
    line->gross = line->unit * qty;
    line->net = line->gross;
}

/* Lays the parts that bundles took beside what is left of each line, in the order of the input. */
static bool split_lines(struct work *w, struct world *x, const struct finder *finder, size_t n, const int64_t *left) {
    size_t total = x->lines, at = 0;
    for (size_t k = 0; k < n; k++)
        for (size_t i = 0; i < x->lines; i++) total += finder[k].units[i] > 0;
    struct quote_line *line = arena_zalloc(w->arena, total, sizeof *line);
    if (!line) return work_memory(w);
    for (size_t i = 0; i < x->lines; i++) {
        size_t rest = at;
        if (left[i] > 0 || x->line[i].in_bundle) {
            line[at] = x->line[i];
            if (!x->line[i].in_bundle) line_resize(&line[at], left[i]);
            at++;
        }
        for (size_t k = 0; k < n; k++) {
            if (finder[k].units[i] == 0) continue;
            struct str bundle = finder[k].bundle->id;
            const char *key = arena_printf(w->arena, "%.*s~%.*s", STR_FMT(x->line[i].id), STR_FMT(bundle));
            if (!key) return work_memory(w);
            line[at] = x->line[i];
            /* A line that one bundle takes whole keeps its id. */
            if (at > rest || finder[k].units[i] < x->line[i].qty) line[at].id = str_of(key);
            line[at].bundle_id = bundle;
            line[at].bundle_key = str_n(key + x->line[i].id.len, bundle.len + 1);
            line_resize(&line[at], finder[k].units[i]);
            at++;
        }
    }
    for (size_t r = 0; r < x->rows; r++) {
        /* Rows of keyed bundles name lines by place: those lines were kept, only moved. */
        for (size_t i = 0; i < at; i++)
            if (str_eq(line[i].id, x->line[x->row[r].line].id) && line[i].in_bundle) {
                x->row[r].line = (int64_t)i;
                break;
            }
    }
    x->line = line;
    x->lines = at;
    return world_rank(w, x);
}

static bool auto_bundles(struct work *w, struct world *x) {
    struct finder *finder = arena_zalloc(w->arena, w->in->bundles, sizeof *finder);
    int64_t *left = arena_zalloc(w->arena, x->lines, sizeof *left);
    size_t *by_rank = arena_zalloc(w->arena, x->lines, sizeof *by_rank);
    if (!finder || !left || !by_rank) return work_memory(w);
    size_t n = 0;
    for (size_t b = 0; b < w->in->bundles; b++) {
        const struct pricing_bundle *bundle = &w->in->bundle[b];
        if (!bundle->auto_apply || bundle->items == 0 || bundle_refusal(w, bundle)) continue;
        struct bundle_answer answer;
        bundle = pricing_ask_bundle(w, x, bundle, NULL, 1, &answer);
        if (!bundle) return false;
        finder[n] = (struct finder){.bundle = bundle,
                                    .answer = answer,
                                    .take = arena_zalloc(w->arena, x->lines, sizeof(int64_t)),
                                    .units = arena_zalloc(w->arena, x->lines, sizeof(int64_t))};
        if (!finder[n].take || !finder[n].units) return work_memory(w);
        n++;
    }
    if (n == 0) return true;
    for (size_t i = 0; i < x->lines; i++) {
        left[i] = x->line[i].in_bundle ? 0 : x->line[i].qty;
        by_rank[x->line[i].rank] = i;
    }
    if (!find_all(w, x, finder, n, left, by_rank) || !split_lines(w, x, finder, n, left)) return false;
    for (size_t k = 0; k < n; k++) {
        if (finder[k].count == 0) continue;
        bool *member = arena_zalloc(w->arena, x->lines, sizeof *member);
        if (!member) return work_memory(w);
        for (size_t i = 0; i < x->lines; i++)
            member[i] = x->line[i].bundle_key.len && x->line[i].bundle_key.at[0] == '~' &&
                        str_eq(x->line[i].bundle_id, finder[k].bundle->id);
        int64_t before = world_net(x);
        if (!bundle_book(w, x, finder[k].bundle, member, finder[k].count) ||
            !note_rule(w, x, &finder[k].answer, before))
            return false;
    }
    return true;
}

bool pricing_bundles(struct work *w, struct world *x) {
    if (x->lines == 0) return true;
    bool *done = arena_zalloc(w->arena, x->lines, sizeof *done);
    if (!done) return work_memory(w);
    for (size_t i = 0; i < x->lines; i++)
        if (x->line[i].bundle_key.len && !done[i] && !keyed_bundle(w, x, i, done)) return false;
    return auto_bundles(w, x);
}
