#include "stores/pg_resolve.h"

#include <arpa/inet.h>
#include <libpq-fe.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "runtime/loop.h"

#define NAME_MAX_LEN 256
#define ADDRESSES_MAX 8 /* libpq tries them one after another, within the time for connecting */

struct pg_resolve {
    uv_getaddrinfo_t request;
    pg_resolved *resolved; /* NULL: nobody waits any more */
    void *data;
    char host[NAME_MAX_LEN];
};

static bool is_address(const char *host) {
    struct in_addr v4;
    return inet_pton(AF_INET, host, &v4) == 1 || strchr(host, ':') != NULL;
}

bool pg_resolve_needed(const char *url, char *host, size_t size) {
    PQconninfoOption *options = PQconninfoParse(url, NULL);
    if (!options) return false; /* libpq says what is wrong with it */
    const char *name = NULL;
    bool addressed = getenv("PGHOSTADDR") != NULL;
    for (const PQconninfoOption *o = options; o->keyword; o++) {
        if (!o->val || !*o->val) continue;
        if (strcmp(o->keyword, "host") == 0) name = o->val;
        if (strcmp(o->keyword, "hostaddr") == 0) addressed = true;
    }
    bool needed = name && !addressed && *name != '/' && *name != '@' && !strchr(name, ',') && !is_address(name);
    if (needed) {
        int n = snprintf(host, size, "%s", name);
        needed = n > 0 && (size_t)n < size;
    }
    PQconninfoFree(options);
    return needed;
}

/* Appends ",text" (without the comma to an empty list). */
static bool append(char *list, size_t size, const char *text) {
    size_t have = strlen(list);
    int n = snprintf(list + have, size - have, "%s%s", have ? "," : "", text);
    bool fits = n > 0 && (size_t)n < size - have;
    if (!fits) list[have] = '\0';
    return fits;
}

static void on_addresses(uv_getaddrinfo_t *request, int status, struct addrinfo *found) {
    struct pg_resolve *r = (struct pg_resolve *)request;
    char hosts[ADDRESSES_MAX * NAME_MAX_LEN] = "", addresses[ADDRESSES_MAX * INET6_ADDRSTRLEN] = "";
    unsigned count = 0;
    for (const struct addrinfo *a = status == 0 ? found : NULL; a && count < ADDRESSES_MAX; a = a->ai_next) {
        char text[NI_MAXHOST]; /* with the zone of a link-local address, which inet_ntop does not tell */
        if (getnameinfo(a->ai_addr, a->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST) != 0) continue;
        if (append(addresses, sizeof addresses, text) && append(hosts, sizeof hosts, r->host)) count++;
    }
    uv_freeaddrinfo(found);
    char why[NAME_MAX_LEN + 128];
    int n = snprintf(why, sizeof why, "could not translate host name \"%s\" to address: %s", r->host,
                     uv_strerror(status ? status : UV_EAI_NONAME));
    if (n < 0) why[0] = '\0';
    if (r->resolved && count)
        r->resolved(r->data, hosts, addresses, NULL);
    else if (r->resolved)
        r->resolved(r->data, NULL, NULL, why);
    free(r);
}

struct pg_resolve *pg_resolve_start(const char *host, pg_resolved *resolved, void *data) {
    struct pg_resolve *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->resolved = resolved;
    r->data = data;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_protocol = IPPROTO_TCP};
    int n = snprintf(r->host, sizeof r->host, "%s", host);
    if (n > 0 && (size_t)n < sizeof r->host &&
        uv_getaddrinfo(loop_get(), &r->request, on_addresses, r->host, NULL, &hints) == 0)
        return r;
    free(r);
    return NULL;
}

void pg_resolve_cancel(struct pg_resolve *r) {
    r->resolved = NULL;
    int asked = uv_cancel((uv_req_t *)&r->request);
    (void)asked; /* one that is being looked up goes on; its answer is dropped */
}
