/* Shipping: which zone an address lies in, and what a method costs for a parcel. */
#ifndef KASMA_COMMERCE_SHIPPING_H
#define KASMA_COMMERCE_SHIPPING_H

#include "commerce/money.h"

struct str_list {
    const struct str *at;
    size_t n;
};

/* An empty string is "not known". */
struct shipping_place {
    struct str country, province, region, city, zip;
};

/* A zone with no list at all is the rest of the world. Countries must hold the address's; of the finer lists one must,
 * when there is any. `regions` holds states, cities and postcodes mixed. */
struct shipping_zone {
    struct str id;
    struct str_list countries, provinces, regions, zips;
    int64_t priority;
    bool inactive;
};

struct shipping_band {
    int64_t from_g, to_g; /* half open; to_g 0 = no end */
    int64_t price;
};

struct shipping_method {
    struct str id, name, zone_id, currency; /* empty currency: that of the cart */
    int64_t base, per_kg;                   /* minor units */
    int64_t step_g;                         /* charge by started steps; 0 = linear */
    int64_t divisor;                        /* cm3 per kg of volumetric weight; 0 = 5000 */
    int64_t min_g, max_g;                   /* 0 = none */
    int64_t free_over;                      /* merchandise net from which it is free; -1 = never */
    int64_t days;                           /* -1 = not known */
    const struct shipping_band *band;
    size_t bands;
    bool inactive;
};

/* The zone of an address: zip before province or city, before region, before country, before the rest of the world;
 * then the higher priority, then the smaller id. NULL when none matches. *ok false: out of memory. */
const struct shipping_zone *shipping_match(struct arena *a, const struct shipping_zone *zones, size_t n,
                                           const struct shipping_place *place, bool *ok);
/* Grams to bill: the larger of the actual and the volumetric weight. */
int64_t shipping_billable(const struct shipping_method *m, int64_t grams, int64_t volume_cm3);
/* Whether the method takes a parcel of that billable weight. */
bool shipping_takes(const struct shipping_method *m, int64_t grams);
/* Minor units of the method's currency for that billable weight: the band that fits, else base + perKg, half up.
 * False when the amount leaves the range. */
bool shipping_price(const struct shipping_method *m, int64_t grams, int64_t *out);

#endif
