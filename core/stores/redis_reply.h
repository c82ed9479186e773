/* What Redis answered (RESP2), as a tree of plain C values.
 *
 * Parsing is hiredis's reader with our own makers of objects, for two reasons: every reply has a budget (bytes and
 * objects together, so that a wrong key or a hostile peer cannot eat the process), and an array is one block of
 * structs and not one allocation an element. Nesting is bounded by the reader itself (seven levels). */
#ifndef KASMA_STORES_REDIS_REPLY_H
#define KASMA_STORES_REDIS_REPLY_H

#include "runtime/error.h"
#include "runtime/str.h"

enum redis_type { REDIS_NIL = 0, REDIS_INTEGER, REDIS_STRING, REDIS_STATUS, REDIS_ERROR, REDIS_ARRAY };

struct redis_reply {
    enum redis_type type;
    int64_t integer;           /* INTEGER */
    struct str text;           /* STRING, STATUS, ERROR; ends in NUL */
    size_t count;              /* ARRAY */
    struct redis_reply *items; /* ARRAY: `count` of them in one block */
};

/* Frees a reply that was made alone, with all below it. NULL is allowed. */
void redis_reply_free(struct redis_reply *r);
/* The error that an ERROR reply means: code = its first word ("WRONGTYPE"), kind ERR_QUERY; a server that is loading,
 * or has lost its master or its cluster, is ERR_UNAVAILABLE. */
void redis_reply_error(const struct redis_reply *r, struct error *err);

/* A parser of one connection's bytes. */
struct redis_parser;

enum redis_parsed { REDIS_PARSED_REPLY, REDIS_PARSED_MORE, REDIS_PARSED_FAILED };

/* `max_reply`: most bytes one reply may take in memory. NULL when out of memory. */
struct redis_parser *redis_parser_new(size_t max_reply);
void redis_parser_free(struct redis_parser *p);
/* Adds bytes. False when out of memory. */
bool redis_parser_feed(struct redis_parser *p, const char *at, size_t len);
/* Takes the next whole reply, which becomes the caller's. After FAILED (`err` filled: ERR_LIMIT or ERR_INTERNAL) the
 * parser takes nothing more. */
enum redis_parsed redis_parser_next(struct redis_parser *p, struct redis_reply **out, struct error *err);

#endif
