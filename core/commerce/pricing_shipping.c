/* Stage 6: the shipping charge. Lines are parcelled by warehouse; a method's charge is the sum over the parcels. */
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
    for (size_t i = 0; i < x->lines; i++) {
        const struct quote_line *line = &x->line[i];
        struct quote_group *group = NULL;
        if (!group_of(w, x, line->item->warehouse_id, &cap, &group)) return false;
        group->merchandise += line->net;
        if (!line->item->requires_shipping) continue;
        *physical = true;
        group->weight_g += line->item->weight_g * line->qty;
        group->volume_cm3 += line->item->volume_cm3 * line->qty;
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

static bool group_ships(const struct world *x, const struct quote_group *group) {
    for (size_t i = 0; i < x->lines; i++)
        if (x->line[i].item->requires_shipping && str_eq(x->line[i].item->warehouse_id, group->warehouse_id))
            return true;
    return false;
}

/* The charge of each parcel by this method into charge[]; *fits false when it does not take one of them. */
static bool method_charges(struct work *w, const struct world *x, const struct shipping_method *m, int64_t *charge,
                           int64_t *total, bool *fits) {
    *fits = !m->inactive;
    *total = 0;
    const struct class_rates *class = pricing_class(w, pricing_shipping_class(w));
    if (!class) return false;
    int64_t free_over = 0;
    if (m->free_over >= 0 && !work_convert(w, m->free_over, m->currency, &free_over)) return false;
    bool is_free = m->free_over >= 0 && world_net(x) >= free_over;
    for (size_t g = 0; *fits && g < x->groups; g++) {
        charge[g] = 0;
        if (!group_ships(x, &x->group[g])) continue;
        int64_t grams = shipping_billable(m, x->group[g].weight_g, x->group[g].volume_cm3);
        *fits = shipping_takes(m, grams);
        if (!*fits || is_free) continue;
        if (!shipping_price(m, grams, &charge[g])) return work_range(w);
        if (!work_convert(w, charge[g], m->currency, &charge[g])) return false;
        if (!ratio_apply(charge[g], class->restate, ROUND_HALF_UP, &charge[g])) return work_range(w);
        if (!minor_add(*total, charge[g], total)) return work_range(w);
    }
    return true;
}

static bool cheaper(const struct shipping_method *a, int64_t cost_a, const struct shipping_method *b, int64_t cost_b) {
    if (cost_a != cost_b) return cost_a < cost_b;
    int64_t days_a = a->days < 0 ? INT64_MAX : a->days, days_b = b->days < 0 ? INT64_MAX : b->days;
    if (days_a != days_b) return days_a < days_b;
    return text_order(a->id, b->id) < 0;
}

struct choice {
    const struct shipping_method *method;
    int64_t total, *charge;
};

/* The method asked for, or the one that matches and costs least. */
static bool choose(struct work *w, const struct world *x, const struct shipping_zone *zone, struct choice *out) {
    const struct pricing_shipping *s = &w->in->shipping;
    *out = (struct choice){0};
    for (size_t i = 0; i < s->methods; i++) {
        const struct shipping_method *m = &s->method[i];
        if (s->method_id.len && !str_eq(s->method_id, m->id)) continue;
        if (s->has_place && s->zones && !(zone && str_eq(zone->id, m->zone_id))) continue;
        int64_t *charge = arena_zalloc(w->arena, x->groups ? x->groups : 1, sizeof *charge), total;
        bool fits;
        if (!charge) return work_memory(w);
        if (!method_charges(w, x, m, charge, &total, &fits)) return false;
        if (!fits) continue;
        if (!out->method || cheaper(m, total, out->method, out->total))
            *out = (struct choice){.method = m, .total = total, .charge = charge};
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
    struct choice chosen;
    if (!choose(w, x, zone, &chosen)) return false;
    x->shipping.method = chosen.method;
    if (!chosen.method) {
        if (s->method_id.len) x->shipping.reason = "method_not_available";
        return true;
    }
    for (size_t g = 0; g < x->groups; g++) x->group[g].charge = chosen.charge[g];
    x->shipping.charge = x->shipping.net = chosen.total;
    return world_note(w, x, 6, chosen.method->id, 0, 0, chosen.total, "applied");
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
            if (str_eq(x->group[g].warehouse_id, x->line[i].item->warehouse_id))
                x->group[g].merchandise += x->line[i].net;
    if (!money_alloc(w->arena, x->shipping.net, weight, NULL, x->groups, share)) return work_memory(w);
    for (size_t g = 0; g < x->groups; g++) x->group[g].net = share[g];
    return true;
}
