/* Says 503 on the sockets of a worker that cannot be started, so that its share of the clients is told and comes again
 * elsewhere, where it would wait in an accept queue that nobody empties. For the supervisor: no loop, no memory. */
#ifndef KASMA_RUNTIME_TURN_AWAY_H
#define KASMA_RUNTIME_TURN_AWAY_H

#include <stdbool.h>
#include <stdint.h>

/* Answers what waits on the listening socket; at most a few dozen connections at a time. */
void turn_away(int listening, uint64_t now_us);
/* Closes those that were answered long enough ago for the answer to be read. True: some are left, call again soon. */
bool turn_away_close(uint64_t now_us);

#endif
