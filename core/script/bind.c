/* The list of all core.* modules. It stands alone, and the linker takes it in only where vm_new is used, so that a test
 * of a few modules does not link them all. */
#include "script/bind.h"

#include "runtime/config.h"
#include "script/vm.h"

/* One a line, so that two people can add one each. */
/* clang-format off */
static const luaL_Reg modules[] = {
    {"core.config", luaopen_core_config},
    {"core.crypto", luaopen_core_crypto},
    {"core.html", luaopen_core_html},
    {"core.http_client", luaopen_core_http_client},
    {"core.json", luaopen_core_json},
    {"core.jwt", luaopen_core_jwt},
    {"core.signature", luaopen_core_signature},
    {"core.log", luaopen_core_log},
    {"core.metrics", luaopen_core_metrics},
    {"core.money", luaopen_core_money},
    {"core.mongo", luaopen_core_mongo},
    {"core.pg", luaopen_core_pg},
    {"core.pricing", luaopen_core_pricing},
    {"core.push", luaopen_core_push},
    {"core.redis", luaopen_core_redis},
    {"core.redlock", luaopen_core_redlock},
    {"core.rules", luaopen_core_rules},
    {"core.sched", luaopen_core_sched},
    {"core.server", luaopen_core_server},
    {"core.smtp", luaopen_core_smtp},
    {"core.time", luaopen_core_time},
    {"core.uuid", luaopen_core_uuid},
    {NULL, NULL},
};
/* clang-format on */

struct vm *vm_new(struct error *err) {
    return vm_new_with(modules, config_str("KASMA_LUA_DIR"), err);
}
