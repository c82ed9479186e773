/* One table of settings and one reader for all sources. Values are kept as the text that was given and parsed when they are read in, so
 * that a bad one is a line in the list of problems and never a surprise later. */
#include "runtime/config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "runtime/log.h"

#define FILE_MAX ((size_t)256 * 1024)
#define VALUE_MAX 16384

extern char **environ;

struct setting {
    const char *name, *alias; /* alias: the name that the former backend used */
    enum config_type type;
    const char *fallback; /* NULL: unset */
    int64_t min, max;
    bool secret, live;
    const char *help;
};

#define TEXT(n, a, d, h) {n, a, CONFIG_TEXT, d, 0, 0, false, false, h}
#define SECRET(n, h) {n, NULL, CONFIG_TEXT, NULL, 0, 0, true, false, h}
#define INT(n, d, lo, hi, h) {n, NULL, CONFIG_INT, d, lo, hi, false, false, h}
#define BOOL(n, d, h) {n, NULL, CONFIG_BOOL, d, 0, 1, false, false, h}

static const struct setting table[] = {
    TEXT("KASMA_ENV", "NODE_ENV", "development", "development, test or production"),
    TEXT("HOST", NULL, "127.0.0.1", "address to listen on"),
    INT("PORT", "5000", 0, 65535, "port to listen on; 0 takes a free one"),
    INT("WORKERS", "0", 0, 256, "worker processes of `serve`; 0 = one per core"),
    TEXT("BOOT", NULL, "kasma.boot", "Lua module that a worker starts"),
    TEXT("KASMA_LUA_DIR", NULL, NULL, "folder of the Lua files; unset: beside the binary, else the source tree"),
    TEXT("KASMA_RULES_DIR", NULL, NULL, "folder of the rules; unset: beside the binary, else the source tree"),
    TEXT("KASMA_MIGRATIONS_DIR", NULL, NULL, "folder of the migrations; unset: the source tree"),
    TEXT("KASMA_HOME", NULL, NULL, "folder that holds lua, rules and migrations"),
    TEXT("KASMA_EXTRA_LUA_DIR", NULL, NULL, "another folder of Lua files, asked after the first"),
    TEXT("KASMA_QUEUES", NULL, NULL, "queues that `work` serves, with commas; unset: all"),
    {"DATABASE_URL", "POSTGRES_DB_URL", CONFIG_TEXT, NULL, 0, 0, true, false, "PostgreSQL as the server's role"},
    SECRET("DATABASE_OWNER_URL", "PostgreSQL as the owner; migrate only"),
    SECRET("DATABASE_SYSTEM_URL", "PostgreSQL as kasma_system, direct: relay and sweeper"),
    SECRET("DATABASE_READ_URL", "a read replica"),
    INT("DATABASE_POOL", "8", 1, 500, "connections of a worker"),
    INT("DATABASE_QUEUE", "4096", 1, 1000000, "calls that may wait for a connection: 503 beyond"),
    BOOL("DATABASE_PREPARE", "on", "prepared statements; off behind a transaction pooler that does not track them"),
    INT("DATABASE_WAIT_MS", "3000", 10, 60000, "longest wait for a connection"),
    INT("DATABASE_STATEMENT_MS", "15000", 100, 600000, "longest wait for an answer; the connection is dropped beyond"),
    INT("DATABASE_CONNECT_MS", "3000", 100, 60000, "longest time to connect"),
    {"REDIS_URL", "REDIS_STORAGE_URL", CONFIG_TEXT, NULL, 0, 0, true, false, "Redis: sessions, queues, locks, cache"},
    TEXT("REDLOCK_NODES", NULL, NULL, "URLs of the servers of a distributed lock, with commas; unset: REDIS_URL"),
    {"MONGODB_URL", "MONGO_DB_URL", CONFIG_TEXT, NULL, 0, 0, true, false, "MongoDB or a server that speaks its protocol, with the database"},
    INT("MONGO_POOL", "4", 1, 64, "threads that talk to MongoDB"),
    INT("MONGO_QUEUE", "1024", 1, 100000, "calls that may wait for MongoDB: 503 beyond"),
    SECRET("JWT_SECRET", "signs access tokens; at least 32 bytes"),
    TEXT("JWT_EXPIRES_IN", NULL, "15m", "life of an access token"),
    TEXT("REFRESH_EXPIRES_IN", NULL, "7d", "life of a refresh token"),
    SECRET("SERVER_KEY", "seals what must be read again: base64 of 32 bytes, or <version>:<base64> with commas, newest first"),
    SECRET("OTP_PEPPER", "part of the hash of one-time codes"),
    SECRET("GATEWAY_SHARED_SECRET", "X-User-Id is believed with it; unset: never"),
    SECRET("INTERNAL_WEBHOOK_SECRET", "opens the internal routes; two with a comma during a change"),
    SECRET("SOCKET_INTERNAL_API_KEY", "opens the publish route of the realtime hub"),
    SECRET("MESSAGE_ENCRYPTION_KEY", "seals private messages"),
    TEXT("PASSWORD_ARGON2", NULL, "19456,2,1", "memory KiB, passes, lanes of new password hashes"),
    INT("PASSWORD_QUEUE", "64", 1, 10000, "password checks that may wait: 503 beyond"),
    TEXT("TRUSTED_PROXIES", NULL, NULL, "addresses whose X-Forwarded-For is believed, with commas"),
    TEXT("CORS_ORIGINS", NULL, NULL, "origins allowed beside the apps' own, with commas"),
    BOOL("AUTH_REDIS_COMPAT", "off", "also write the session keys of the former backend"),
    BOOL("SWAGGER_ENABLED", "on", "serve the API page and document"),
    TEXT("RATE_LIMITS", NULL, "default", "default, off, or a file"),
    BOOL("RATE_LIMIT_LOOPBACK", "off", "limit loopback peers outside production too"),
    TEXT("BOOTSTRAP_ADMIN_EMAIL", NULL, NULL, "first platform owner, who gets a one-time code"),
    INT("AUDIT_RETENTION_DAYS", "400", 30, 36500, "days the audit trail is kept"),
    TEXT("QUEUE_PREFIX", NULL, "bull", "first part of the queue keys in Redis"),
    INT("BULLMQ_LAYOUT", "5", 5, 6, "queue layout written on pause"),
    INT("WORKER_CONCURRENCY", "8", 1, 1000, "jobs of a queue at once"),
    TEXT("SCHEDULES", NULL, NULL, "own periods of schedules, outside production"),
    TEXT("REDIS_HOST", NULL, NULL, "Redis of the queues, when it is another one"),
    INT("REDIS_PORT", "6379", 1, 65535, "its port"),
    SECRET("REDIS_PASSWORD", "its password"),
    BOOL("REDIS_TLS", "off", "TLS to it"),
    TEXT("MAIL_HOST", NULL, NULL, "SMTP server; unset: .eml files in MAIL_DIR, refused in production"),
    INT("MAIL_PORT", "587", 1, 65535, "its port"),
    BOOL("MAIL_SECURE", "off", "TLS from the first byte"),
    TEXT("MAIL_USER", NULL, NULL, "its user"),
    SECRET("MAIL_PASS", "its password"),
    TEXT("MAIL_FROM_EMAIL", NULL, "no-reply@kasma.invalid", "sender"),
    TEXT("MAIL_FROM_NAME", NULL, "Kasma", "name of the sender"),
    TEXT("MAIL_DIR", NULL, "var/mail", "where mails are written when no SMTP server is set"),
    TEXT("TRANSACTION_SERVICE_URL", NULL, NULL, "remote payment service; unset: built in"),
    TEXT("NOTI_SERVICE_URL", NULL, NULL, "remote notice service; unset: built in"),
    TEXT("SOCKET_SERVICE_URL", NULL, NULL, "remote socket service; unset: built in"),
    TEXT("CLOUDINARY_CLOUD_NAME", NULL, NULL, "media account"),
    SECRET("CLOUDINARY_API_KEY", "media account"),
    SECRET("CLOUDINARY_API_SECRET", "media account"),
    INT("BODY_LIMIT", "1048576", 1024, 1073741824, "bytes of a request body after decoding: 413 beyond"),
    INT("HEADER_LIMIT", "16384", 1024, 61440, "bytes of request line and headers: 431 beyond"),
    INT("URL_LIMIT", "8192", 256, 61440, "bytes of the request target: 414 beyond"),
    INT("MAX_CONNECTIONS", "20000", 1, 1000000, "open connections of a worker: 503 beyond"),
    INT("MAX_IN_FLIGHT", "4096", 1, 1000000, "requests of a worker at work: 503 beyond"),
    INT("MAX_PIPELINED", "32", 1, 1000, "requests of one connection at work"),
    INT("HEADER_TIMEOUT_MS", "10000", 50, 600000, "for a whole head: 408 beyond"),
    INT("BODY_TIMEOUT_MS", "30000", 50, 3600000, "for a body: 408 beyond"),
    INT("KEEPALIVE_TIMEOUT_MS", "65000", 50, 3600000, "idle keep-alive"),
    INT("REQUEST_TIMEOUT_MS", "30000", 50, 3600000, "for a handler: 503 beyond"),
    INT("WRITE_TIMEOUT_MS", "30000", 50, 3600000, "without a byte taken by the client"),
    TEXT("SPOOL_DIR", NULL, "/tmp", "large bodies while they are received"),
    INT("SHUTDOWN_GRACE", "25", 0, 600, "seconds that requests and jobs get to end"),
    INT("DRAIN_WAIT", "0", 0, 60, "seconds between not ready and no longer accepting"),
    {"LOG_LEVEL", NULL, CONFIG_TEXT, "info", 0, 0, false, true, "debug, info, warn or error"},
    TEXT("LOG_ACCESS", NULL, "all", "off, or all: a line a request"),
};
#define COUNT (sizeof table / sizeof *table)

static struct value {
    char *text; /* NULL: the default */
    const char *origin;
} values[COUNT];

static enum config_env env_now;

static const struct setting *find(const char *name, size_t *index) {
    for (size_t i = 0; i < COUNT; i++)
        if (strcmp(table[i].name, name) == 0 || (table[i].alias && strcmp(table[i].alias, name) == 0)) {
            *index = i;
            return &table[i];
        }
    return NULL;
}

static void problem(struct buf *out, const char *fmt, const char *a, const char *b) {
    bool ok = buf_printf(out, fmt, a, b) && buf_byte(out, '\n');
    if (!ok) out->len = 0; /* out of memory: the caller still sees that it failed */
}

static bool parse_bool(const char *text, bool *out) {
    static const char *const yes[] = {"on", "true", "1", "yes"}, *const no[] = {"off", "false", "0", "no"};
    for (size_t i = 0; i < 4; i++) {
        if (str_ieq(str_of(text), str_of(yes[i]))) {
            *out = true;
            return true;
        }
        if (str_ieq(str_of(text), str_of(no[i]))) {
            *out = false;
            return true;
        }
    }
    return false;
}

static bool acceptable(const struct setting *s, const char *text, struct buf *problems) {
    int64_t n;
    bool flag;
    if (s->type == CONFIG_INT && (!str_int64(str_of(text), &n) || n < s->min || n > s->max)) {
        char range[64];
        int len = snprintf(range, sizeof range, "a whole number from %lld to %lld", (long long)s->min, (long long)s->max);
        problem(problems, "%s must be %s", s->name, len > 0 ? range : "a whole number");
        return false;
    }
    if (s->type == CONFIG_BOOL && !parse_bool(text, &flag)) {
        problem(problems, "%s must be on or off%s", s->name, "");
        return false;
    }
    return true;
}

/* Takes a value from a source of lower or higher rank than those before: the first that gave one stays. */
static void take(const char *name, const char *text, const char *origin, struct buf *problems) {
    size_t i;
    const struct setting *s = find(name, &i);
    if (!s || !*text) return;
    if (values[i].text) {
        if (strcmp(values[i].origin, origin) == 0 && strcmp(values[i].text, text) != 0)
            problem(problems, "%s and %s are both set and differ", s->name, s->alias ? s->alias : name);
        return;
    }
    if (!acceptable(s, text, problems)) return;
    values[i].text = strdup(text);
    values[i].origin = origin;
    if (!values[i].text) problem(problems, "out of memory at %s%s", name, "");
}

static char *read_file(const char *path) {
    FILE *f = fopen(path, "re");
    if (!f) return NULL;
    char *text = malloc(FILE_MAX);
    size_t n = text ? fread(text, 1, FILE_MAX - 1, f) : 0;
    bool ok = text && !ferror(f);
    if (fclose(f) != 0) ok = false;
    if (!ok) {
        free(text);
        return NULL;
    }
    text[n] = '\0';
    return text;
}

/* NAME_FILE: the value is the file's text without blanks at its end. */
static void take_file(const char *name, const char *path, const char *origin, struct buf *problems) {
    char *text = read_file(path);
    if (!text) {
        problem(problems, "%s_FILE: cannot read %s", name, path);
        return;
    }
    struct str value = str_trim(str_of(text));
    char *copy = strndup(value.at, value.len);
    if (copy) take(name, copy, origin, problems);
    free(copy);
    free(text);
}

/* One name = value of any source. */
static void assign(char *name, const char *text, const char *origin, struct buf *problems) {
    size_t index, n = strlen(name);
    if (find(name, &index)) {
        take(name, text, origin, problems);
    } else if (n > 5 && strcmp(name + n - 5, "_FILE") == 0) {
        name[n - 5] = '\0';
        bool known = find(name, &index) != NULL;
        if (known) take_file(name, text, origin, problems);
        name[n - 5] = '_';
        if (!known && strncmp(name, "KASMA_", 6) == 0) problem(problems, "%s is not a setting%s", name, "");
    } else if (strncmp(name, "KASMA_", 6) == 0) {
        problem(problems, "%s is not a setting%s", name, "");
    }
}

static void read_environment(struct buf *problems) {
    for (char **e = environ; *e; e++) {
        const char *eq = strchr(*e, '=');
        if (!eq || (size_t)(eq - *e) > 100 || strlen(eq + 1) > VALUE_MAX) continue;
        char name[104];
        memcpy(name, *e, (size_t)(eq - *e));
        name[eq - *e] = '\0';
        assign(name, eq + 1, "environment", problems);
    }
}

/* `NAME=value` or `name = value`, # comments, quotes taken off. An absent file is no problem. */
static void read_lines(const char *path, const char *origin, struct buf *problems) {
    char *text = read_file(path);
    if (!text) return;
    char *next = text;
    while (next && *next) {
        char *line = next, *end = strchr(line, '\n');
        if (end) *end = '\0';
        next = end ? end + 1 : NULL;
        char *eq = strchr(line, '=');
        struct str first = str_trim(str_of(line));
        if (first.len == 0 || *first.at == '#' || !eq) continue;
        struct str name = str_trim(str_n(line, (size_t)(eq - line))), value = str_trim(str_of(eq + 1));
        if (name.len > 7 && str_starts(name, STR("export "))) name = str_trim(str_n(name.at + 7, name.len - 7));
        if (value.len >= 2 && (*value.at == '"' || *value.at == '\'') && value.at[value.len - 1] == *value.at)
            value = str_n(value.at + 1, value.len - 2);
        char *n = strndup(name.at, name.len), *v = strndup(value.at, value.len);
        if (n && v) assign(n, v, origin, problems);
        free(n);
        free(v);
    }
    free(text);
}

/* --name value and --name=value of settings are taken out of argv; other words stay. */
static void read_flags(int *argc, char **argv, struct buf *problems) {
    int kept = 0;
    for (int i = 0; i < *argc; i++) {
        char name[104];
        size_t n = 0, index;
        const char *p = argv[i];
        bool flag = i > 0 && strncmp(p, "--", 2) == 0 && p[2];
        for (p += flag ? 2 : 0; flag && *p && *p != '=' && n + 1 < sizeof name; p++)
            name[n++] = (char)(*p == '-' ? '_' : *p >= 'a' && *p <= 'z' ? *p - 32 : *p);
        name[n] = '\0';
        if (!flag || !find(name, &index)) {
            argv[kept++] = argv[i];
            continue;
        }
        if (*p == '=') {
            take(name, p + 1, "flag", problems);
        } else if (i + 1 < *argc) {
            take(name, argv[++i], "flag", problems);
        } else {
            problem(problems, "%s needs a value%s", argv[i], "");
        }
    }
    argv[kept] = NULL;
    *argc = kept;
}

static void check_whole(struct buf *problems) {
    static const char *const published[] = {"secret", "changeme", "your-secret-key", "super-secret", "supersecret", "kasma", "kasma-secret",
                                            "default-secret", "jwt-secret", "JWT_SECRET", "defaultSecret"};
    const char *env = config_str("KASMA_ENV");
    if (strcmp(env, "production") == 0) {
        env_now = ENV_PRODUCTION;
    } else if (strcmp(env, "test") == 0) {
        env_now = ENV_TEST;
    } else {
        env_now = ENV_DEVELOPMENT;
        if (strcmp(env, "development") != 0) problem(problems, "KASMA_ENV must be development, test or production, not %s%s", env, "");
    }
    for (size_t i = 0; i < COUNT; i++) {
        if (!table[i].secret || !values[i].text) continue;
        for (size_t n = 0; n < sizeof published / sizeof *published; n++)
            if (strcmp(values[i].text, published[n]) == 0) problem(problems, "%s is a published value: make one of your own%s", table[i].name, "");
    }
    const char *jwt = config_str("JWT_SECRET");
    if (jwt && strlen(jwt) < 32) problem(problems, "JWT_SECRET must have at least 32 bytes%s%s", "", "");
    const char *const urls[] = {"DATABASE_URL", "DATABASE_OWNER_URL", "DATABASE_SYSTEM_URL"};
    for (size_t i = 0; i < 3; i++) {
        const char *url = config_str(urls[i]);
        if (url && strncmp(url, "postgres://", 11) != 0 && strncmp(url, "postgresql://", 13) != 0)
            problem(problems, "%s must begin with postgresql://%s", urls[i], "");
    }
    enum log_level level;
    if (!log_level_parse(str_of(config_str("LOG_LEVEL")), &level))
        problem(problems, "LOG_LEVEL must be debug, info, warn or error%s%s", "", "");
    else
        log_set_level(level);
}

bool config_load(int *argc, char **argv, struct buf *problems) {
    struct value before[COUNT];
    memcpy(before, values, sizeof before);
    memset(values, 0, sizeof values);
    read_flags(argc, argv, problems);
    read_environment(problems);
    read_lines(".env", ".env", problems);
    read_lines("/etc/kasma/kasma.conf", "kasma.conf", problems);
    /* Read again: what may not change keeps its value, and pointers handed out before stay good (a few bytes are kept for that). */
    for (size_t i = 0; i < COUNT; i++)
        if (before[i].origin && !table[i].live) {
            free(values[i].text);
            values[i] = before[i];
        }
    check_whole(problems);
    return problems->len == 0;
}

static const char *text_of(size_t i) {
    return values[i].text ? values[i].text : table[i].fallback;
}

static size_t must_find(const char *name, enum config_type type) {
    size_t i;
    const struct setting *s = find(name, &i);
    if (!s || s->type != type) {
        log_line(LOG_ERROR, "no setting %s of this type", name);
        abort();
    }
    return i;
}

const char *config_str(const char *name) {
    return text_of(must_find(name, CONFIG_TEXT));
}

int64_t config_int(const char *name) {
    int64_t n = 0;
    const char *text = text_of(must_find(name, CONFIG_INT));
    return text && str_int64(str_of(text), &n) ? n : 0;
}

bool config_bool(const char *name) {
    bool flag = false;
    const char *text = text_of(must_find(name, CONFIG_BOOL));
    return text && parse_bool(text, &flag) && flag;
}

enum config_env config_env(void) {
    return env_now;
}

bool config_has(const char *name, enum config_type *type) {
    size_t i;
    const struct setting *s = find(name, &i);
    if (s) *type = s->type;
    return s != NULL;
}

bool config_entry(size_t i, struct config_entry *out) {
    if (i >= COUNT) return false;
    const char *text = text_of(i);
    *out = (struct config_entry){.name = table[i].name,
                                 .help = table[i].help,
                                 .origin = values[i].text ? values[i].origin : text ? "default" : "unset",
                                 .shown = !text ? "" : table[i].secret ? "***" : text,
                                 .type = table[i].type,
                                 .secret = table[i].secret,
                                 .live = table[i].live};
    return true;
}
