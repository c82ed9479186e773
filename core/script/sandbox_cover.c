/* Which lines of a rule have run: the checker tries a rule with samples and tests and says which lines none of them
 * reached. One rule at a time, in whichever sandbox it runs; nobody else pays for it. */
#include "script/sandbox_internal.h"

#define LINES 65536 /* a source has no more bytes than that */

static char covered_chunk[128];
static unsigned char covered[LINES / 8];

void sandbox_cover(const char *chunk) {
    size_t n = chunk ? strlen(chunk) : 0;
    if (n >= sizeof covered_chunk) n = 0; /* no chunk has such a name */
    if (n) memset(covered, 0, sizeof covered);
    if (n) memcpy(covered_chunk, chunk, n);
    covered_chunk[n] = '\0';
}

bool sandbox_is_covering(void) {
    return *covered_chunk != '\0';
}

void sandbox_cover_line(lua_State *L, lua_Debug *ar) {
    if (!lua_getinfo(L, "Sl", ar) || ar->currentline < 0 || ar->currentline >= LINES) return;
    if (*ar->source != '=' || strcmp(ar->source + 1, covered_chunk) != 0) return;
    covered[ar->currentline / 8] |= (unsigned char)(1u << ar->currentline % 8);
}

bool sandbox_covered(int line) {
    return line > 0 && line < LINES && (covered[line / 8] >> line % 8 & 1);
}
