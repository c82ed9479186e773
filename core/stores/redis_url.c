#include "stores/redis_url.h"

#include <stdlib.h>

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* Copies `s`, percent-decoded, and NUL. False when it does not fit, is badly encoded or would hold a NUL. */
static bool decode(struct str s, char *out, size_t cap) {
    size_t n = 0;
    for (size_t i = 0; i < s.len; i++) {
        char c = s.at[i];
        if (c == '%') {
            if (i + 2 >= s.len) return false;
            int high = hex_digit(s.at[i + 1]), low = hex_digit(s.at[i + 2]);
            if (high < 0 || low < 0) return false;
            c = (char)(high * 16 + low);
            i += 2;
        }
        if (!c || n + 1 >= cap) return false;
        out[n++] = c;
    }
    out[n] = 0;
    return true;
}

static bool bounded_int(struct str s, int64_t least, int64_t most, int64_t *out) {
    return str_int64(s, out) && *out >= least && *out <= most;
}

/* Splits at the first (or last) `c`: `before` gets what is in front of it and `s` what follows. False when it has none.
 */
static bool split(struct str *s, char c, bool last, struct str *before) {
    const char *at = s->len ? (last ? memrchr(s->at, c, s->len) : memchr(s->at, c, s->len)) : NULL;
    if (!at) return false;
    *before = str_n(s->at, (size_t)(at - s->at));
    *s = str_n(at + 1, s->len - before->len - 1);
    return true;
}

static bool parse_unix(struct str rest, struct redis_url *out, struct error *err) {
    struct str path, query = rest;
    int64_t db = 0;
    if (split(&query, '?', false, &path)) {
        if (!str_starts(query, STR("db=")) || !bounded_int(str_n(query.at + 3, query.len - 3), 0, 9999, &db))
            return error_set(err, ERR_INVALID, "Redis URL: after the socket's path only ?db=<number> may follow");
    } else {
        path = rest;
    }
    if (path.len == 0 || path.at[0] != '/' || !decode(path, out->path, sizeof out->path))
        return error_set(err, ERR_INVALID, "Redis URL: the socket's path is missing, relative or too long");
    out->db = (int)db;
    return true;
}

bool redis_url_parse(struct str text, struct redis_url *out, struct error *err) {
    *out = (struct redis_url){.port = "6379"};
    struct str rest = str_trim(text), before;
    if (str_starts(rest, STR("unix://"))) return parse_unix(str_n(rest.at + 7, rest.len - 7), out, err);
    if (str_starts(rest, STR("rediss://")))
        return error_set(err, ERR_INVALID,
                         "Redis URL: TLS (rediss://) is not supported; use a private network or a tunnel");
    if (!str_starts(rest, STR("redis://")))
        return error_set(err, ERR_INVALID, "Redis URL: must begin with redis:// or unix://");
    rest = str_n(rest.at + 8, rest.len - 8);

    if (split(&rest, '@', true, &before)) {
        struct str user, password = before;
        if (!split(&password, ':', false, &user)) {
            user = before;
            password = STR("");
        }
        if (!decode(user, out->user, sizeof out->user) || !decode(password, out->password, sizeof out->password))
            return error_set(err, ERR_INVALID, "Redis URL: user or password is too long or badly percent-encoded");
        if (out->user[0] && !out->password[0])
            return error_set(err, ERR_INVALID, "Redis URL: a user without a password (write redis://:password@host)");
    }
    struct str authority, db_text = rest;
    int64_t db = 0;
    if (split(&db_text, '/', false, &authority)) {
        if (db_text.len && !bounded_int(db_text, 0, 9999, &db))
            return error_set(err, ERR_INVALID, "Redis URL: the database must be a number");
    } else {
        authority = rest;
    }
    out->db = (int)db;

    struct str host = authority, port = STR("");
    if (host.len && host.at[0] == '[') {
        const char *end = memchr(host.at, ']', host.len);
        if (!end) return error_set(err, ERR_INVALID, "Redis URL: the address lacks its ]");
        size_t inside = (size_t)(end - host.at) - 1;
        struct str after = str_n(end + 1, host.len - inside - 2);
        if (after.len && after.at[0] != ':') return error_set(err, ERR_INVALID, "Redis URL: bad text after ]");
        if (after.len) port = str_n(after.at + 1, after.len - 1);
        host = str_n(host.at + 1, inside);
    } else {
        struct str name, tail = host;
        if (split(&tail, ':', false, &name)) {
            host = name;
            port = tail;
        }
    }
    int64_t number = 0;
    if (port.len && (!bounded_int(port, 1, 65535, &number) || port.len >= sizeof out->port))
        return error_set(err, ERR_INVALID, "Redis URL: the port must be a number from 1 to 65535");
    if (port.len) {
        memcpy(out->port, port.at, port.len);
        out->port[port.len] = 0;
    }
    if (!decode(host.len ? host : STR("127.0.0.1"), out->host, sizeof out->host))
        return error_set(err, ERR_INVALID, "Redis URL: the host name is too long");
    return true;
}
