/* Stage 3, and the shipping promotions of stage 6: who wins.
 *
 * A class runs in three steps on the nets at its start: one of each exclusion group stays; those that do not stack
 * contest (line by line in the line class, as one in the others); those that stack then follow one after another, on
 * the reduced nets. So by default one line promotion per line, one order promotion and one shipping promotion combine.
 * The rules about ties make the outcome independent of the order in which lines and promotions came. */
#include "commerce/pricing_candidate.h"

#include <stdlib.h>

#include "commerce/place.h"

struct race {
    struct work *w;
    struct world *x;
    enum price_level level;
    struct candidate *c;
    size_t n;
    bool over; /* a stopAfter promotion ended an order or shipping class */
};

static int64_t race_net(const struct race *r) {
    return r->level == LEVEL_SHIPPING ? r->x->shipping.net : world_net(r->x);
}

static int tie_order(const struct candidate *a, const struct candidate *b) {
    if (a->priority != b->priority) return a->priority > b->priority ? -1 : 1;
    int order = text_order(a->source.id, b->source.id);
    if (order) return order;
    return a->number < b->number ? -1 : a->number > b->number;
}

/* The order in which promotions are walked: priority, in best mode then the saving at class start, then id. */
static int walk_order(const struct race *r, const struct candidate *a, const struct candidate *b) {
    if (!r->w->in->priority_mode && a->priority == b->priority && a->ranking != b->ranking)
        return a->ranking > b->ranking ? -1 : 1;
    return tie_order(a, b);
}

/* Whether `a` wins a contest against `b`, given what each saves in it. */
static bool wins(const struct race *r, const struct candidate *a, int64_t saves_a, const struct candidate *b,
                 int64_t saves_b) {
    if (r->w->in->priority_mode) return walk_order(r, a, b) < 0;
    if (saves_a != saves_b) return saves_a > saves_b;
    return tie_order(a, b) < 0;
}

static bool group_shut(const struct race *r, struct str group) {
    for (size_t i = 0; group.len && i < r->x->shuts; i++)
        if (str_eq(r->x->shut[i], group)) return true;
    return false;
}

static bool shut_group(struct race *r, struct str group) {
    if (group.len == 0 || group_shut(r, group)) return true;
    struct str *grown = work_grow(r->w, r->x->shut, r->x->shuts, &r->x->shuts_cap, sizeof *grown);
    if (!grown) return work_memory(r->w);
    r->x->shut = grown;
    r->x->shut[r->x->shuts++] = group;
    return true;
}

/* Leaves at most one of each exclusion group in the race. */
static void settle_groups(struct race *r) {
    for (size_t i = 0; i < r->n; i++) {
        struct candidate *best = &r->c[i];
        if (best->out || best->group.len == 0) continue;
        if (group_shut(r, best->group)) {
            best->out = "exclusion_group";
            continue;
        }
        for (size_t k = 0; k < r->n; k++) {
            struct candidate *rival = &r->c[k];
            if (rival == best || rival->out || !str_eq(rival->group, best->group) || rival->ranking == 0) continue;
            if (best->ranking == 0 || wins(r, rival, rival->ranking, best, best->ranking)) {
                best->out = "exclusion_group";
                break;
            }
        }
    }
}

static bool book(struct race *r, struct candidate *c) {
    int64_t before = race_net(r);
    if (r->level == LEVEL_SHIPPING) {
        if (!world_reduce(r->w, r->x, &c->source, -1, c->total)) return false;
    } else {
        for (size_t i = 0; i < r->x->lines; i++) {
            if (c->saving[i] == 0) continue;
            c->source.units = r->level == LEVEL_LINE ? c->units[i] : 0;
            if (!world_reduce(r->w, r->x, &c->source, (int64_t)i, c->saving[i])) return false;
            r->x->line[i].reduced = true;
            if (c->stop_after && r->level == LEVEL_LINE) r->x->stopped[i] = true;
        }
    }
    c->applied = true;
    if (c->stop_after && r->level != LEVEL_LINE) r->over = true;
    return shut_group(r, c->group) && world_note(r->w, r->x, r->level == LEVEL_SHIPPING ? 6 : 3, c->source.id,
                                                 c->source.version, before, race_net(r), "applied");
}

static bool contests(const struct candidate *c) {
    return !c->out && !c->stackable;
}

/* Each line goes to one promotion; each winner is booked on its lines, its cap spread anew over them. */
static bool contest_lines(struct race *r) {
    struct world *x = r->x;
    size_t *winner = arena_zalloc(r->w->arena, x->lines ? x->lines : 1, sizeof *winner);
    bool *won = arena_zalloc(r->w->arena, x->lines ? x->lines : 1, sizeof *won);
    if (!winner || !won) return work_memory(r->w);
    for (size_t i = 0; i < x->lines; i++) {
        winner[i] = r->n;
        for (size_t k = 0; k < r->n; k++) {
            if (!contests(&r->c[k]) || r->c[k].saving[i] == 0) continue;
            const struct candidate *best = winner[i] < r->n ? &r->c[winner[i]] : NULL;
            if (!best || wins(r, &r->c[k], r->c[k].saving[i], best, best->saving[i])) winner[i] = k;
        }
    }
    for (size_t k = 0; k < r->n; k++) {
        if (!contests(&r->c[k])) continue;
        bool any = false;
        for (size_t i = 0; i < x->lines; i++) {
            won[i] = winner[i] == k;
            any = any || won[i];
        }
        if (!any) {
            r->c[k].out = r->c[k].ranking ? "beaten" : "no_saving";
            continue;
        }
        candidate_refresh(x, &r->c[k]);
        if (!candidate_cap(r->w, x, &r->c[k], won)) return false;
        if (r->c[k].total == 0) {
            r->c[k].out = "budget_exhausted";
        } else if (!book(r, &r->c[k])) {
            return false;
        }
    }
    return true;
}

static bool contest_whole(struct race *r) {
    struct candidate *best = NULL;
    for (size_t k = 0; k < r->n; k++) {
        if (!contests(&r->c[k]) || r->c[k].total == 0) continue;
        if (!best || wins(r, &r->c[k], r->c[k].total, best, best->total)) best = &r->c[k];
    }
    for (size_t k = 0; k < r->n; k++)
        if (contests(&r->c[k]) && &r->c[k] != best) r->c[k].out = r->c[k].total ? "beaten" : "no_saving";
    return !best || book(r, best);
}

static int walk_compare(const void *left, const void *right, void *race) {
    return walk_order(race, *(const struct candidate *const *)left, *(const struct candidate *const *)right);
}

/* Those that stack, one after another. */
static bool walk(struct race *r) {
    struct candidate **order = arena_zalloc(r->w->arena, r->n ? r->n : 1, sizeof(struct candidate *));
    if (!order) return work_memory(r->w);
    size_t count = 0;
    for (size_t k = 0; k < r->n; k++)
        if (!r->c[k].out && r->c[k].stackable) order[count++] = &r->c[k];
    if (count > 1) qsort_r(order, count, sizeof(struct candidate *), walk_compare, r);
    for (size_t k = 0; k < count; k++) {
        struct candidate *c = order[k];
        c->out = r->over ? "stopped" : candidate_threshold(r->x, c);
        if (c->out) continue;
        candidate_refresh(r->x, c);
        if (!candidate_compute(r->w, r->x, c)) return false;
        if (c->total == 0) {
            c->out = "no_saving";
        } else if (!book(r, c)) {
            return false;
        }
    }
    return true;
}

bool pricing_promotions(struct work *w, struct world *x, enum price_level level) {
    struct race r = {.w = w, .x = x, .level = level};
    if (!candidates_gather(w, x, level, &r.c, &r.n)) return false;
    for (size_t i = 0; i < x->lines; i++) x->stopped[i] = false;
    for (size_t k = 0; k < r.n; k++) {
        if (!r.c[k].out) r.c[k].out = candidate_threshold(x, &r.c[k]);
        if (r.c[k].out) continue;
        if (!candidate_compute(w, x, &r.c[k])) return false;
        r.c[k].ranking = r.c[k].total;
    }
    settle_groups(&r);
    if (!(level == LEVEL_LINE ? contest_lines(&r) : contest_whole(&r)) || !walk(&r)) return false;
    int64_t net = race_net(&r);
    for (size_t k = 0; k < r.n; k++) {
        const struct candidate *c = &r.c[k];
        if (c->applied) continue;
        if (!world_note(w, x, level == LEVEL_SHIPPING ? 6 : 3, c->source.id, c->source.version, net, net,
                        c->out ? c->out : "no_saving"))
            return false;
    }
    return true;
}
