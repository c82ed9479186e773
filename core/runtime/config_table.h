/* The table of settings, for config.c alone: config.h is the public face. */
#ifndef KASMA_RUNTIME_CONFIG_TABLE_H
#define KASMA_RUNTIME_CONFIG_TABLE_H

#include "runtime/config.h"

struct setting {
    const char *name;
    const char *alias;    /* a second name of the same thing, the one of the former backend; NULL: none */
    const char *fallback; /* NULL: unset */
    int64_t min, max;     /* CONFIG_INT */
    /* CONFIG_TEXT: NULL takes anything; otherwise what is wrong with the text ("must be ..."), or NULL. */
    const char *(*check)(const char *text);
    const char *help;
    enum config_type type;
    bool secret, live, needed; /* needed: a server of the product does not start without it */
};

extern const struct setting config_table[];
extern const size_t config_table_count;

/* on/off, true/false, yes/no, 1/0 in either case. */
bool config_parse_bool(const char *text, bool *out);
/* A secret that stands in public texts, or a placeholder that somebody forgot to replace. */
bool config_is_published(const char *secret);

#endif
