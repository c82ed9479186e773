/* uuid v7 (RFC 9562): 48 bits of clock_now, then a counter that keeps ids of one process in order, then randomness. */
#ifndef KASMA_RUNTIME_UUID_H
#define KASMA_RUNTIME_UUID_H

#include "runtime/str.h"

/* 36 characters, lower case, and NUL. */
void uuid_v7(char out[37]);
void uuid_v4(char out[37]);
/* Exactly 36 characters, hex and dashes in place, either case. */
bool uuid_valid(struct str s);

#endif
