/* Addresses and networks: who a peer is, and whether it is one of ours. IPv4 and IPv6 in one form. */
#ifndef KASMA_RUNTIME_NETWORK_H
#define KASMA_RUNTIME_NETWORK_H

#include "runtime/error.h"
#include "runtime/str.h"

/* An address as 16 bytes; IPv4 as ::ffff:a.b.c.d, so that both writings of one machine are equal. */
struct address {
    uint8_t at[16];
};

enum { ADDRESS_TEXT_MAX = 46, NETWORKS_MAX = 64 };

struct networks {
    struct {
        struct address base;
        uint8_t bits; /* of the 128 that count */
    } list[NETWORKS_MAX];
    size_t count;
};

/* Reads an address as peers and proxies write it: bare, with a port (`1.2.3.4:80`), in brackets (`[::1]:80`), with a
 * zone, which is dropped. False: it is none. */
bool address_parse(struct str text, struct address *out);
/* Writes the shortest usual form, IPv4 with dots. Answers its length without the NUL. */
size_t address_format(const struct address *a, char out[ADDRESS_TEXT_MAX]);

/* Reads addresses and networks (`10.0.0.0/8, ::1`) with commas or blanks between. False: err names what is none, or
 * there are more than NETWORKS_MAX. */
bool networks_parse(struct str text, struct networks *out, struct error *err);
bool networks_have(const struct networks *n, const struct address *a);

#endif
