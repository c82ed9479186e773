/* kasma_redis_seconds{cmd} and kasma_store_up{store}: shared by all Redis connections of the process. */
#ifndef KASMA_STORES_REDIS_METRIC_H
#define KASMA_STORES_REDIS_METRIC_H

#include "runtime/str.h"

/* The series of a command's name, in either case. Names are the program's own, and at most 64 get a series; later ones
 * share "other". */
uint32_t redis_metric_slot(struct str command);
void redis_metric_observe(uint32_t slot, uint64_t us);
void redis_metric_up(bool up);

#endif
