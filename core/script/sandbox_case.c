/* text.lower, upper and fold of rule code: Unicode, by utf8proc. Bytes that are no UTF-8 stay as they are. */
#include <utf8proc.h>

#include "script/sandbox_internal.h"

/* One for all: nothing here calls back into Lua while it uses it. A character may grow, by folding to three at most. */
static char out[SANDBOX_TEXT_MAX];

/* Letters that are no letter with an accent, and still are written without it where accents cannot be typed. */
static const char *plain_letter(utf8proc_int32_t c) {
    switch (c) {
    case 0x111: /* d with stroke */
    case 0xF0:  /* eth */
        return "d";
    case 0xF8:
        return "o";
    case 0x142:
        return "l";
    case 0x127:
        return "h";
    case 0x131:
        return "i";
    case 0xE6:
        return "ae";
    case 0x153:
        return "oe";
    case 0xFE:
        return "th";
    default:
        return NULL;
    }
}

static bool put(lua_State *L, size_t *len, const char *bytes, size_t n) {
    if (n > sizeof out - *len) return luaL_error(L, "the result is longer than 64 KiB");
    memcpy(out + *len, bytes, n);
    *len += n;
    return true;
}

static void put_code(lua_State *L, size_t *len, utf8proc_int32_t c) {
    utf8proc_uint8_t bytes[4];
    utf8proc_ssize_t n = utf8proc_encode_char(c, bytes);
    if (n > 0) put(L, len, (const char *)bytes, (size_t)n);
}

static void put_folded(lua_State *L, size_t *len, utf8proc_int32_t c) {
    utf8proc_int32_t parts[16];
    int last = 0;
    const utf8proc_option_t how = UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT | UTF8PROC_STRIPMARK | UTF8PROC_CASEFOLD;
    utf8proc_ssize_t n = utf8proc_decompose_char(c, parts, 16, how, &last);
    for (utf8proc_ssize_t i = 0; i < n && i < 16; i++) {
        const char *letters = plain_letter(parts[i]);
        if (letters) {
            put(L, len, letters, strlen(letters));
        } else {
            put_code(L, len, parts[i]);
        }
    }
}

enum how { LOWER, UPPER, FOLD };

#define PIECE ((size_t)4096) /* bytes between two looks at the clock: a text of 64 KiB takes a millisecond */
#define COST ((size_t)8)     /* bytes for the price of an instruction */

static int changed(lua_State *L, enum how how) {
    size_t n, len = 0;
    const char *s = luaL_checklstring(L, 1, &n);
    luaL_argcheck(L, n <= SANDBOX_TEXT_MAX, 1, "longer than 64 KiB");
    sandbox_charge(L, n % PIECE / COST);
    for (size_t i = 0, paid = n % PIECE; i < n;) {
        utf8proc_int32_t c;
        if (i >= paid) {
            sandbox_charge(L, PIECE / COST);
            paid += PIECE;
        }
        utf8proc_ssize_t took = utf8proc_iterate((const utf8proc_uint8_t *)s + i, (utf8proc_ssize_t)(n - i), &c);
        if (took <= 0) {
            put(L, &len, s + i, 1);
            i++;
            continue;
        }
        i += (size_t)took;
        if (how == FOLD) {
            put_folded(L, &len, c);
        } else {
            put_code(L, &len, how == LOWER ? utf8proc_tolower(c) : utf8proc_toupper(c));
        }
    }
    lua_pushlstring(L, out, len);
    return 1;
}

static int l_lower(lua_State *L) {
    return changed(L, LOWER);
}

static int l_upper(lua_State *L) {
    return changed(L, UPPER);
}

/* fold(text): for comparing what people type: accents off, lower case */
static int l_fold(lua_State *L) {
    return changed(L, FOLD);
}

void sandbox_open_case(lua_State *L) {
    static const luaL_Reg functions[] = {{"lower", l_lower}, {"upper", l_upper}, {"fold", l_fold}, {NULL, NULL}};
    luaL_setfuncs(L, functions, 0);
}
