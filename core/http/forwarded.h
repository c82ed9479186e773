/* Who a request comes from when proxies stand between. X-Forwarded-For is a list to which each proxy appends whom it
 * saw; what a client wrote into it comes first. So it is read from its end: the first address that is no proxy of ours
 * is the client, and a peer that is no proxy of ours is the client itself, whatever it says. */
#ifndef KASMA_HTTP_FORWARDED_H
#define KASMA_HTTP_FORWARDED_H

#include "runtime/network.h"

/* `lines` are the header's lines in their order, one list. Writes the client's address to `out` and answers its length;
 * 0: the peer itself (whose text may be no address: a unix socket). What is no address ends the search: the last one
 * that was is the answer. */
size_t forwarded_client(const struct networks *proxies, struct str peer, const struct str *lines, size_t count,
                        char out[ADDRESS_TEXT_MAX]);

#endif
