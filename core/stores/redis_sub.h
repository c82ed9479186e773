/* Pub/sub: one connection that listens to any number of channels, and after a reconnect listens to all of them again.
 * Redis keeps nothing for a listener that is away, so whoever must not miss a message is told of each gap and looks
 * again at the truth. */
#ifndef KASMA_STORES_REDIS_SUB_H
#define KASMA_STORES_REDIS_SUB_H

#include "stores/redis_conn.h"

struct redis_sub;
struct redis_channel;

typedef void redis_message(void *data, struct str channel, struct str payload);
/* The server has confirmed the channel: what is published from now on arrives. `again`: after the connection was lost,
 * so that messages may have been missed. */
typedef void redis_live(void *data, bool again);

/* Begins to connect. NULL: ERR_MEMORY or ERR_INVALID. */
struct redis_sub *redis_sub_new(const struct redis_url *url, struct error *err);
/* Also ends all its channels. NULL is allowed. */
void redis_sub_free(struct redis_sub *s);

/* Listens to a channel (one SUBSCRIBE on the wire, however many listen to it here); `live` may be NULL, and is not
 * called for a listener that joins others whose channel is live already. Returns at once, also when Redis is away. Tens
 * of thousands of channels are fine. NULL: ERR_MEMORY. */
struct redis_channel *redis_sub_listen(struct redis_sub *s, struct str channel, redis_message *message,
                                       redis_live *live, void *data, struct error *err);
/* Ends one listener; may be called from its own callback. */
void redis_channel_close(struct redis_channel *channel);

/* True when the server has confirmed this channel on the present connection. */
bool redis_channel_live(const struct redis_channel *channel);

#endif
