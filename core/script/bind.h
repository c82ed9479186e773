/* The openers of all core.* Lua modules; each is written in bind_<name>.c and listed in bind.c. */
#ifndef KASMA_SCRIPT_BIND_H
#define KASMA_SCRIPT_BIND_H

#include <lua.h>

int luaopen_core_config(lua_State *L);
int luaopen_core_crypto(lua_State *L);
int luaopen_core_html(lua_State *L);
int luaopen_core_http_client(lua_State *L);
int luaopen_core_json(lua_State *L);
int luaopen_core_jwt(lua_State *L);
int luaopen_core_signature(lua_State *L);
int luaopen_core_log(lua_State *L);
int luaopen_core_metrics(lua_State *L);
int luaopen_core_money(lua_State *L);
int luaopen_core_mongo(lua_State *L);
int luaopen_core_pg(lua_State *L);
int luaopen_core_pricing(lua_State *L);
int luaopen_core_push(lua_State *L);
int luaopen_core_redis(lua_State *L);
int luaopen_core_redlock(lua_State *L);
int luaopen_core_rules(lua_State *L);
int luaopen_core_sched(lua_State *L);
int luaopen_core_server(lua_State *L);
int luaopen_core_smtp(lua_State *L);
int luaopen_core_time(lua_State *L);
int luaopen_core_uuid(lua_State *L);

#endif
