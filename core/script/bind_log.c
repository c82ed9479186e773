/* core.log: debug, info, warn, error(message [, fields]); level([word]) reads or sets the least level. Fields become
 * members of the line; what is secret the caller leaves out. A field that cannot be JSON costs the fields, never the
 * line. */
#include <lauxlib.h>

#include "runtime/buf.h"
#include "runtime/log.h"
#include "script/bind.h"
#include "script/json.h"

/* Kept between calls, so that a Lua error while encoding loses nothing. */
static struct buf fields;
#define KEEP ((size_t)64 * 1024)

/* The part of the program whose code logs: the module, or the file of the framework. The view lives as long as that
 * code does. */
static struct str part_of_caller(lua_State *L) {
    for (int up = 1; up <= 2; up++) {
        lua_Debug ar;
        if (!lua_getstack(L, up, &ar) || !lua_getinfo(L, "S", &ar)) break;
        static const char tail[] = "kasma/log.lua", folder[] = "/modules/";
        size_t n = strlen(ar.source);
        if (n >= sizeof tail - 1 && strcmp(ar.source + n - (sizeof tail - 1), tail) == 0) continue;
        const char *module = strstr(ar.source, folder);
        if (module) return str_n(module + sizeof folder - 1, strcspn(module + sizeof folder - 1, "/"));
        const char *name = strrchr(ar.source, '/');
        if (!name) break;
        struct str part = str_n(name + 1, strcspn(name + 1, "."));
        for (size_t i = 0; i < part.len; i++)
            if (!((part.at[i] | 0x20) >= 'a' && (part.at[i] | 0x20) <= 'z') && part.at[i] != '_' &&
                !(part.at[i] >= '0' && part.at[i] <= '9'))
                return STR("lua"); /* it stands in the line as it is */
        return part;
    }
    return STR("lua");
}

static int put(lua_State *L, enum log_level level) {
    struct str message;
    message.at = luaL_checklstring(L, 1, &message.len);
    if (!log_wanted(level)) return 0;
    struct str part = part_of_caller(L);
    if (!log_wanted_of(part, level)) return 0;
    struct str inside = {.at = "", .len = 0};
    if (lua_istable(L, 2)) {
        struct error err = {0};
        buf_clear(&fields);
        if (!json_encode(L, 2, &fields, &err)) {
            buf_clear(&fields);
            if (buf_add(&fields, STR("{\"fields\":")) && buf_json_string(&fields, str_of(err.message)) &&
                buf_byte(&fields, '}'))
                inside = str_n(fields.data + 1, fields.len - 2);
        } else if (fields.data[0] == '{') {
            inside = str_n(fields.data + 1, fields.len - 2);
        }
    }
    log_event_of(part, level, message, inside);
    if (fields.cap > KEEP) buf_free(&fields);
    return 0;
}

static int l_debug(lua_State *L) {
    return put(L, LOG_DEBUG);
}

static int l_info(lua_State *L) {
    return put(L, LOG_INFO);
}

static int l_warn(lua_State *L) {
    return put(L, LOG_WARN);
}

static int l_error(lua_State *L) {
    return put(L, LOG_ERROR);
}

static int l_level(lua_State *L) {
    static const char *const words[] = {"debug", "info", "warn", "error"};
    if (!lua_isnoneornil(L, 1)) {
        struct str word;
        enum log_level level;
        word.at = luaL_checklstring(L, 1, &word.len);
        luaL_argcheck(L, log_level_parse(word, &level), 1, "debug, info, warn or error is expected");
        log_set_level(level);
    }
    lua_pushstring(L, words[log_get_level()]);
    return 1;
}

int luaopen_core_log(lua_State *L) {
    static const luaL_Reg functions[] = {{"debug", l_debug}, {"info", l_info},   {"warn", l_warn},
                                         {"error", l_error}, {"level", l_level}, {NULL, NULL}};
    lua_newtable(L);
    luaL_setfuncs(L, functions, 0);
    return 1;
}
