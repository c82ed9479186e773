#include "commerce/shipping.h"

#include "commerce/place.h"

#define DIVISOR_DEFAULT 5000

enum zone_level { LEVEL_NONE = -1, LEVEL_WORLD, LEVEL_COUNTRY, LEVEL_REGION, LEVEL_CITY, LEVEL_ZIP };

static bool list_has(struct arena *a, struct str_list list, struct str folded, bool *ok) {
    for (size_t i = 0; folded.len && i < list.n; i++) {
        struct str entry = place_fold(a, list.at[i]);
        if (!entry.at) {
            *ok = false;
            return false;
        }
        if (str_eq(entry, folded)) return true;
    }
    return false;
}

static bool list_covers(struct str_list list, struct str zip) {
    for (size_t i = 0; i < list.n; i++) {
        size_t prefix;
        if (place_zip(str_trim(list.at[i]), zip, &prefix) > ZIP_ANY) return true;
    }
    return false;
}

static bool has_country(struct str_list list, struct str country) {
    for (size_t i = 0; i < list.n; i++)
        if (country.len && str_ieq(str_trim(list.at[i]), country)) return true;
    return false;
}

static enum zone_level zone_level(struct arena *a, const struct shipping_zone *zone, const struct shipping_place *place,
                                  bool *ok) {
    if (zone->inactive) return LEVEL_NONE;
    if (zone->countries.n && !has_country(zone->countries, place->country)) return LEVEL_NONE;
    if (zone->zips.n == 0 && zone->provinces.n == 0 && zone->regions.n == 0)
        return zone->countries.n ? LEVEL_COUNTRY : LEVEL_WORLD;
    if (list_covers(zone->zips, place->zip) || list_covers(zone->regions, place->zip)) return LEVEL_ZIP;
    if (list_has(a, zone->provinces, place->province, ok) || list_has(a, zone->provinces, place->city, ok) ||
        list_has(a, zone->provinces, place->region, ok) || list_has(a, zone->regions, place->city, ok) ||
        list_has(a, zone->regions, place->province, ok))
        return LEVEL_CITY;
    if (list_has(a, zone->regions, place->region, ok)) return LEVEL_REGION;
    return LEVEL_NONE;
}

const struct shipping_zone *shipping_match(struct arena *a, const struct shipping_zone *zones, size_t n,
                                           const struct shipping_place *place, bool *ok) {
    struct shipping_place folded = {.country = str_trim(place->country),
                                    .province = place_fold(a, place->province),
                                    .region = place_fold(a, place->region),
                                    .city = place_fold(a, place->city),
                                    .zip = str_trim(place->zip)};
    *ok = folded.province.at && folded.region.at && folded.city.at;
    const struct shipping_zone *best = NULL;
    enum zone_level best_level = LEVEL_NONE;
    for (size_t i = 0; *ok && i < n; i++) {
        enum zone_level level = zone_level(a, &zones[i], &folded, ok);
        if (level == LEVEL_NONE) continue;
        bool wins = !best || level > best_level;
        if (!wins && level == best_level) {
            wins = zones[i].priority > best->priority ||
                   (zones[i].priority == best->priority && text_order(zones[i].id, best->id) < 0);
        }
        if (!wins) continue;
        best = &zones[i];
        best_level = level;
    }
    return *ok ? best : NULL;
}

int64_t shipping_billable(const struct shipping_method *m, int64_t grams, int64_t volume_cm3) {
    int64_t volumetric = 0;
    if (!mul_div_round(volume_cm3, 1000, m->divisor > 0 ? m->divisor : DIVISOR_DEFAULT, ROUND_HALF_UP, &volumetric))
        return grams;
    return volumetric > grams ? volumetric : grams;
}

bool shipping_takes(const struct shipping_method *m, int64_t grams) {
    return !m->inactive && (m->min_g == 0 || grams >= m->min_g) && (m->max_g == 0 || grams <= m->max_g);
}

bool shipping_price(const struct shipping_method *m, int64_t grams, int64_t *out) {
    for (size_t i = 0; i < m->bands; i++) {
        if (grams < m->band[i].from_g || (m->band[i].to_g && grams >= m->band[i].to_g)) continue;
        *out = m->band[i].price;
        return true;
    }
    if (m->step_g > 0) grams = (grams + m->step_g - 1) / m->step_g * m->step_g;
    int64_t by_weight;
    return mul_div_round(m->per_kg, grams, 1000, ROUND_HALF_UP, &by_weight) && minor_add(m->base, by_weight, out);
}
