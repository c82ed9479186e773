/* Stage 6: the shipping charge. Lines, or their portions, are parcelled by warehouse; a method's charge is the sum over
 * the parcels. */
#include "commerce/pricing_work.h"

#include "commerce/place.h"

static bool group_of(struct work *w, struct world *x, struct str warehouse, size_t *cap, struct quote_group **out) {
    for (size_t g = 0; g < x->groups; g++) {
        if (!str_eq(x->group[g].warehouse_id, warehouse)) continue;
        *out = &x->group[g];
        return true;
    }
    struct quote_group *grown = work_grow(w, x->group, x->groups, cap, sizeof *grown);
    if (!grown) return work_memory(w);
    x->group = grown;
    *out = &x->group[x->groups++];
    **out = (struct quote_group){.warehouse_id = warehouse};
    return true;
}

/* Parcels by warehouse id ascending, so that nothing depends on the order of the lines. *physical: whether anything
 * ships at all. */
static bool parcels(struct work *w, struct world *x, bool *physical) {
    size_t cap = 0;
    x->group = NULL;
    x->groups = 0;
    *physical = false;
    world_lay(x);
    for (size_t i = 0; i < x->lines; i++) {
        const struct quote_line *line = &x->line[i];
        *physical = *physical || line->item->requires_shipping;
        for (size_t k = 0; k < world_portions(x, i); k++) {
            int64_t from, to;
            struct str warehouse = world_portion(x, i, k, &from, &to);
            struct quote_group *group = NULL;
            if (from == to) continue;
            if (!group_of(w, x, warehouse, &cap, &group)) return false;
            group->merchandise += world_there(x, i, warehouse, line->net);
            if (!line->item->requires_shipping) continue;
            group->ships = true;
            group->weight_g += line->item->weight_g * (to - from);
            group->volume_cm3 += line->item->volume_cm3 * (to - from);
        }
    }
    for (size_t i = 1; i < x->groups; i++) {
        struct quote_group moved = x->group[i];
        size_t k = i;
        for (; k > 0 && text_order(moved.warehouse_id, x->group[k - 1].warehouse_id) < 0; k--)
            x->group[k] = x->group[k - 1];
        x->group[k] = moved;
    }
    return true;
}

/* A method that takes every parcel. */
struct candidate {
    struct shipping_offer offer; /* for all parcels together; its price restated */
    int64_t *charge;             /* of each parcel, before a restatement */
    size_t place;                /* among the offers of rules */
    bool hidden;                 /* rules do not offer it for one of the parcels */
};

/* The charge of each parcel by this method into charge[]; *fits false when it does not take one of them. */
static bool method_charges(struct work *w, const struct world *x, const struct shipping_method *m, int64_t *charge,
                           bool *fits) {
    *fits = !m->inactive;
    int64_t free_over = 0;
    if (m->free_over >= 0 && !work_convert(w, m->free_over, m->currency, &free_over)) return false;
    bool is_free = m->free_over >= 0 && world_net(x) >= free_over;
    for (size_t g = 0; *fits && g < x->groups; g++) {
        charge[g] = 0;
        if (!x->group[g].ships) continue;
        int64_t grams = shipping_billable(m, x->group[g].weight_g, x->group[g].volume_cm3);
        *fits = shipping_takes(m, grams);
        if (!*fits || is_free) continue;
        if (!shipping_price(m, grams, &charge[g])) return work_range(w);
        if (!work_convert(w, charge[g], m->currency, &charge[g])) return false;
    }
    return true;
}

/* What this buyer pays for each parcel, and for all. */
static bool restate(struct work *w, const struct world *x, struct candidate *c) {
    const struct class_rates *class = pricing_class(w, pricing_shipping_class(w));
    if (!class) return false;
    c->offer.price = 0;
    for (size_t g = 0; g < x->groups; g++) {
        if (!ratio_apply(c->charge[g], class->restate, ROUND_HALF_UP, &c->charge[g])) return work_range(w);
        if (!minor_add(c->offer.price, c->charge[g], &c->offer.price)) return work_range(w);
    }
    return true;
}

static bool cheaper(const struct shipping_offer *a, const struct shipping_offer *b) {
    if (a->price != b->price) return a->price < b->price;
    int64_t days_a = a->days < 0 ? INT64_MAX : a->days, days_b = b->days < 0 ? INT64_MAX : b->days;
    if (days_a != days_b) return days_a < days_b;
    return text_order(a->method->id, b->method->id) < 0;
}

static void sort_offers(struct shipping_offer *offer, size_t n) {
    for (size_t i = 1; i < n; i++) {
        struct shipping_offer moved = offer[i];
        size_t k = i;
        for (; k > 0 && cheaper(&moved, &offer[k - 1]); k--) offer[k] = offer[k - 1];
        offer[k] = moved;
    }
}

/* The methods that go to the zone and take the parcels. `only`: no other than the one asked for. */
static bool gather(struct work *w, const struct world *x, const struct shipping_zone *zone, bool only,
                   struct candidate *list, size_t *n) {
    const struct pricing_shipping *s = &w->in->shipping;
    *n = 0;
    for (size_t i = 0; i < s->methods; i++) {
        const struct shipping_method *m = &s->method[i];
        if (only && !str_eq(s->method_id, m->id)) continue;
        if (s->has_place && s->zones && !(zone && str_eq(zone->id, m->zone_id))) continue;
        int64_t *charge = arena_zalloc(w->arena, x->groups ? x->groups : 1, sizeof *charge);
        bool fits;
        if (!charge) return work_memory(w);
        if (!method_charges(w, x, m, charge, &fits)) return false;
        if (!fits) continue;
        list[(*n)++] = (struct candidate){.offer = {.method = m, .name = m->name, .days = m->days}, .charge = charge};
    }
    return true;
}

/* Lets rules change what is offered for each parcel; a method is offered when it is for all of them. Its name, its days
 * and its place are those of the first parcel. */
static bool ask_rules(struct work *w, struct world *x, struct candidate *list, size_t n) {
    bool first = true;
    struct shipping_offer *offer = arena_zalloc(w->arena, n ? n : 1, sizeof *offer);
    if (!offer) return work_memory(w);
    for (size_t g = 0; n && g < x->groups; g++) {
        if (!x->group[g].ships) continue;
        size_t shown = 0;
        for (size_t i = 0; i < n; i++) {
            if (list[i].hidden) continue;
            offer[shown] = list[i].offer;
            offer[shown++].price = list[i].charge[g];
        }
        sort_offers(offer, shown);
        const struct shipping_offer *left = offer;
        if (!pricing_ask_rates(w, x, g, &left, &shown)) return false;
        for (size_t i = 0; i < n; i++) {
            size_t at = 0;
            while (at < shown && left[at].method != list[i].offer.method) at++;
            if (at == shown) {
                list[i].hidden = true;
                continue;
            }
            list[i].charge[g] = left[at].price;
            if (!first) continue;
            list[i].offer = left[at];
            list[i].place = at;
        }
        first = false;
    }
    return true;
}

/* What the shopper may choose from. */
static bool list_offers(struct work *w, struct world *x, const struct candidate *list, size_t n, bool by_rules) {
    struct shipping_offer *offer = arena_zalloc(w->arena, n ? n : 1, sizeof *offer);
    if (!offer) return work_memory(w);
    x->shipping.offer = offer;
    for (size_t place = 0; by_rules && place < n; place++)
        for (size_t i = 0; i < n; i++)
            if (!list[i].hidden && list[i].place == place) offer[x->shipping.offers++] = list[i].offer;
    for (size_t i = 0; !by_rules && i < n; i++) offer[x->shipping.offers++] = list[i].offer;
    if (!by_rules) sort_offers(offer, n);
    return true;
}

/* The method asked for, or the one that matches and costs least; NULL: none of them. */
static bool choose(struct work *w, struct world *x, const struct shipping_zone *zone, const struct candidate **chosen) {
    const struct pricing_shipping *s = &w->in->shipping;
    bool by_rules = w->in->hooks.shipping_rates, asked = s->method_id.len > 0;
    struct candidate *list = arena_zalloc(w->arena, s->methods ? s->methods : 1, sizeof *list);
    size_t n;
    *chosen = NULL;
    if (!list) return work_memory(w);
    if (!gather(w, x, zone, asked && !by_rules && !s->list, list, &n) || (by_rules && !ask_rules(w, x, list, n)))
        return false;
    for (size_t i = 0; i < n; i++) {
        if (!restate(w, x, &list[i])) return false;
        if (list[i].hidden || (asked && !str_eq(s->method_id, list[i].offer.method->id))) continue;
        if (!*chosen || cheaper(&list[i].offer, &(*chosen)->offer)) *chosen = &list[i];
    }
    if (!list_offers(w, x, list, n, by_rules)) return false;
    if (by_rules && n && x->shipping.offers == 0) {
        /* Nothing to choose from is no shipping for nothing. */
        x->shipping.known = false;
        x->shipping.reason = "nothing_offered";
    }
    return true;
}

bool pricing_shipping_charge(struct work *w, struct world *x) {
    const struct pricing_shipping *s = &w->in->shipping;
    bool physical, ok = true;
    x->shipping = (struct quote_shipping){.known = s->has_place || s->method_id.len > 0};
    if (!parcels(w, x, &physical)) return false;
    if (!physical || !x->shipping.known) return true;
    /* An address without a country counts as the tenant's country, without a region. */
    struct shipping_place home = {.country = w->in->tax.home_country};
    const struct shipping_place *place = s->place.country.len ? &s->place : &home;
    const struct shipping_zone *zone = NULL;
    if (s->has_place) zone = shipping_match(w->arena, s->zone, s->zones, place, &ok);
    if (!ok) return work_memory(w);
    const struct candidate *chosen;
    if (!choose(w, x, zone, &chosen)) return false;
    if (!chosen) {
        if (s->method_id.len && !x->shipping.reason) x->shipping.reason = "method_not_available";
        return true;
    }
    x->shipping.method = chosen->offer.method;
    x->shipping.name = chosen->offer.name;
    for (size_t g = 0; g < x->groups; g++) x->group[g].charge = chosen->charge[g];
    x->shipping.charge = x->shipping.net = chosen->offer.price;
    return world_note(w, x, 6, chosen->offer.method->id, 0, 0, chosen->offer.price, "applied");
}

bool pricing_shipping_groups(struct work *w, struct world *x) {
    if (x->groups == 0) return true;
    int64_t *weight = arena_zalloc(w->arena, x->groups, sizeof *weight);
    int64_t *share = arena_zalloc(w->arena, x->groups, sizeof *share);
    if (!weight || !share) return work_memory(w);
    for (size_t g = 0; g < x->groups; g++) {
        x->group[g].merchandise = 0;
        weight[g] = x->group[g].charge;
    }
    for (size_t i = 0; i < x->lines; i++)
        for (size_t g = 0; g < x->groups; g++)
            x->group[g].merchandise += world_there(x, i, x->group[g].warehouse_id, x->line[i].net);
    if (!money_alloc(w->arena, x->shipping.net, weight, NULL, x->groups, share)) return work_memory(w);
    for (size_t g = 0; g < x->groups; g++) x->group[g].net = share[g];
    return true;
}
