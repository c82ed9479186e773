#include "script/server_settings.h"

#include "runtime/config.h"
#include "runtime/network.h"

void server_settings_load(struct server_settings *s) {
    server_settings_default(s);
    s->body_limit = (size_t)config_int("BODY_LIMIT");
    s->header_limit = (size_t)config_int("HEADER_LIMIT");
    s->url_limit = (size_t)config_int("URL_LIMIT");
    s->max_connections = (size_t)config_int("MAX_CONNECTIONS");
    s->max_in_flight = (size_t)config_int("MAX_IN_FLIGHT");
    s->max_pipelined = (unsigned)config_int("MAX_PIPELINED");
    s->header_ms = (uint64_t)config_int("HEADER_TIMEOUT_MS");
    s->body_ms = (uint64_t)config_int("BODY_TIMEOUT_MS");
    s->idle_ms = (uint64_t)config_int("KEEPALIVE_TIMEOUT_MS");
    s->request_ms = (uint64_t)config_int("REQUEST_TIMEOUT_MS");
    s->write_ms = (uint64_t)config_int("WRITE_TIMEOUT_MS");
    s->spool_dir = config_str("SPOOL_DIR");
    /* What is no network was refused with the configuration. */
    static struct networks proxies;
    const char *trusted = config_str("TRUSTED_PROXIES");
    s->proxies = networks_parse(str_of(trusted), &proxies, NULL) ? &proxies : NULL;
    s->hsts = config_env() == ENV_PRODUCTION;
    const char *access = config_str("LOG_ACCESS");
    struct str word = str_of(access);
    s->access_log = word.len > 0 && !str_eq(word, STR("off"));
    s->access_sample = str_eq(word, STR("errors")) ? 0 : str_eq(word, STR("sample")) ? 100 : 1;
}
