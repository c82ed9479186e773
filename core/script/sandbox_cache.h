/* What rule text compiled to, kept for all sandboxes of the process: a second state that is given the same text needs
 * neither the parser nor, when the text takes from no library, another look at its manifest and config.
 *
 * Bytecode is only ever what this process has compiled from text a moment ago and has kept in its own memory. It is
 * found by the whole text, byte for byte, never by a name or a hash alone, and there is no way to hand any in. */
#ifndef KASMA_SCRIPT_SANDBOX_CACHE_H
#define KASMA_SCRIPT_SANDBOX_CACHE_H

#include <lua.h>

#include "script/sandbox.h"

struct compiled;

/* NULL: the text is not known. Good until the next compiled_keep or compiled_sweep, unless it is held. */
struct compiled *compiled_find(struct str source);
/* Keeps the function on top of L, which was compiled from the text as a chunk of that name and has not been run. NULL:
 * no room or no memory, which costs speed alone. Good as above. */
struct compiled *compiled_keep(lua_State *L, const char *name, struct str source);
void compiled_hold(struct compiled *c);
void compiled_release(struct compiled *c);
/* Pushes the function, under another chunk name. False: no memory, nothing was pushed. */
bool compiled_push(const struct compiled *c, lua_State *L, const char *name);

/* The manifest that a run of the chunk gave, or NULL. Only for texts that take from no library. */
const struct sandbox_manifest *compiled_manifest(const struct compiled *c);
void compiled_set_manifest(struct compiled *c, const struct sandbox_manifest *manifest);
/* What the config was found to mean by the chunk's schema; nothing: not known. As above. */
struct str compiled_config(const struct compiled *c, struct str json);
void compiled_set_config(struct compiled *c, struct str json, struct str checked);

/* Drops what no state holds and nobody has asked for since that time. */
void compiled_sweep(uint64_t since_us);
/* Entries and their bytes, for tests and metrics. */
size_t compiled_count(size_t *bytes);

#endif
