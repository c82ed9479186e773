/* Settings of the process: flag > environment > .env > /etc/kasma/kasma.conf > default. `NAME_FILE` reads a value from
 * a file. The table in config_table.c is the only list of names: type, default, range, form, secrecy, help. */
#ifndef KASMA_RUNTIME_CONFIG_H
#define KASMA_RUNTIME_CONFIG_H

#include "runtime/buf.h"
#include "runtime/error.h"

enum config_env { ENV_DEVELOPMENT, ENV_TEST, ENV_PRODUCTION };
enum config_type { CONFIG_TEXT, CONFIG_INT, CONFIG_BOOL };

/* Reads all sources; may be called again (HUP) and then replaces what may change in a running process. Flags are
 * `--name value` or `--name=value` (lower case, dashes; a yes-or-no flag may stand alone); `*argc` and `argv` are left
 * with the words that are no flags of ours, argv[0] always stays. The flags of the first call hold for later ones.
 * False: `problems` holds one line for each problem (unknown names, bad values, published secrets, one setting given
 * twice with two values), all of them; a second call then leaves everything as it was. */
bool config_load(int *argc, char **argv, struct buf *problems);
/* What a server cannot do without. False: `problems` holds a line for each setting that is missing. A boot module other
 * than the product's own needs what it asks for itself, so that nothing is missing then. */
bool config_complete(struct buf *problems);

/* Text value, or NULL when unset; stays good for the life of the process. A name that the table lacks, or has with
 * another type, is a fault of ours and aborts: the first test run finds it. */
const char *config_str(const char *name);
int64_t config_int(const char *name);
bool config_bool(const char *name);
enum config_env config_env(void);

/* The table, for listings: `index` from 0 until false. `origin` says where the value came from ("flag", "environment",
 * a file's name, "default", "unset"); secrets are masked in `shown`, which is "" when unset. */
struct config_entry {
    const char *name, *help, *origin, *shown;
    enum config_type type;
    bool secret, live; /* live: HUP changes it */
};
bool config_entry(size_t index, struct config_entry *out);
/* Whether the table has the name. */
bool config_has(const char *name, enum config_type *type);

#endif
