/* core.html: html.sanitize(text) -> text | nil, err; html.excerpt(text, max_characters) -> text | nil, err. */
#include <lauxlib.h>

#include "content/html.h"
#include "script/bind.h"
#include "script/guard.h"
#include "script/task.h"

static int give(lua_State *L, bool ok, struct buf *out, const struct error *err) {
    if (ok) {
        guard_push_buf(L, out);
        return 1;
    }
    buf_free(out);
    return task_fail(L, err);
}

static int l_sanitize(lua_State *L) {
    struct str html;
    html.at = luaL_checklstring(L, 1, &html.len);
    struct buf out = {0};
    struct error err;
    bool ok = html_sanitize(html, &out, &err);
    return give(L, ok, &out, &err);
}

static int l_excerpt(lua_State *L) {
    struct str html;
    html.at = luaL_checklstring(L, 1, &html.len);
    lua_Integer max = luaL_checkinteger(L, 2);
    luaL_argcheck(L, max >= 0 && max <= 100000, 2, "must be 0 to 100000 characters");
    struct buf out = {0};
    struct error err;
    bool ok = html_text(html, (size_t)max, &out, &err);
    return give(L, ok, &out, &err);
}

int luaopen_core_html(lua_State *L) {
    static const luaL_Reg functions[] = {{"sanitize", l_sanitize}, {"excerpt", l_excerpt}, {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    return 1;
}
