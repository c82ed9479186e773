#include "runtime/config_table.h"

#include <ctype.h>

#include "runtime/log.h"
#include "runtime/network.h"

/* ---- what texts must look like ---- */

static bool begins(const char *text, const char *const *heads) {
    for (; *heads; heads++)
        if (strncmp(text, *heads, strlen(*heads)) == 0) return true;
    return false;
}

static bool one_of(const char *text, const char *const *words) {
    for (; *words; words++)
        if (strcmp(text, *words) == 0) return true;
    return false;
}

static const char *is_postgres(const char *text) {
    static const char *const heads[] = {"postgresql://", "postgres://", NULL};
    return begins(text, heads) ? NULL : "must begin with postgresql://";
}

static const char *is_off(const char *text) {
    bool on = true;
    return config_parse_bool(text, &on) && !on
               ? NULL
               : "must be off: TLS to Redis is not supported, use a private network or a tunnel";
}

static const char *is_redis(const char *text) {
    static const char *const heads[] = {"redis://", "unix://", "redis+unix://", NULL}, *const tls[] = {"rediss://",
                                                                                                       NULL};
    if (begins(text, tls))
        return "must not ask for TLS, which is not supported: use a private network or a tunnel, and redis://";
    return begins(text, heads) ? NULL : "must begin with redis:// or unix://";
}

static const char *is_mongodb(const char *text) {
    static const char *const heads[] = {"mongodb://", "mongodb+srv://", NULL};
    return begins(text, heads) ? NULL : "must begin with mongodb://";
}

static const char *is_http(const char *text) {
    static const char *const heads[] = {"http://", "https://", NULL};
    return begins(text, heads) ? NULL : "must begin with http:// or https://";
}

static const char *is_log_level(const char *text) {
    return log_set_levels(text, false)
               ? NULL
               : "must be debug, info, warn or error, and may go on with parts: info,stores=debug,mail=warn";
}

static const char *is_log_access(const char *text) {
    static const char *const words[] = {"off", "errors", "sample", "all", "on", NULL};
    return one_of(text, words) ? NULL : "must be off, errors, sample or all";
}

static const char *is_environment(const char *text) {
    static const char *const words[] = {"development", "test", "production", NULL};
    return one_of(text, words) ? NULL : "must be development, test or production";
}

static const char *is_starttls(const char *text) {
    static const char *const words[] = {"auto", "required", "try", "off", NULL};
    return one_of(text, words) ? NULL : "must be auto, required, try or off";
}

/* 900, 15m, 7d: digits and one unit. */
static const char *is_duration(const char *text) {
    size_t digits = strspn(text, "0123456789");
    static const char *const units[] = {"", "ms", "s", "m", "h", "d", "w", NULL};
    return digits >= 1 && digits <= 9 && one_of(text + digits, units)
               ? NULL
               : "must be a number with s, m, h, d or w behind it";
}

static const char *is_token_secret(const char *text) {
    return strlen(text) >= 32 ? NULL : "must have at least 32 bytes";
}

static const char *is_internal_secret(const char *text) {
    return strlen(text) >= 16 ? NULL : "must have at least 16 bytes";
}

/* memory KiB, passes, lanes. libsodium makes hashes of one lane. */
static const char *is_argon2(const char *text) {
    static const char *const why = "must be memory,passes,1 with 8 to 4194304 KiB and 1 to 100 passes";
    struct str rest = str_of(text);
    int64_t n[3];
    for (int i = 0; i < 3; i++) {
        size_t len = i < 2 ? strcspn(rest.at, ",") : rest.len;
        if (len > rest.len || !str_int64(str_trim(str_n(rest.at, len)), &n[i])) return why;
        size_t skip = len + (len < rest.len);
        rest = str_n(rest.at + skip, rest.len - skip);
    }
    return n[0] >= 8 && n[0] <= 4194304 && n[1] >= 1 && n[1] <= 100 && n[2] == 1 ? NULL : why;
}

/* base64 of 32 bytes, or <version>:<base64> with commas between. */
static const char *is_server_key(const char *text) {
    static const char *const why =
        "must be base64 of 32 bytes, or <version>:<base64>, newest first, with commas between";
    while (*text) {
        size_t len = strcspn(text, ","), at = strspn(text, "0123456789");
        if (at < len && text[at] == ':')
            at++;
        else
            at = 0;
        size_t body = 0;
        while (at + body < len && (isalnum((unsigned char)text[at + body]) || strchr("+/-_", text[at + body]))) body++;
        size_t padding = len - at - body;
        if (body != 43 || padding > 1 || (padding == 1 && text[len - 1] != '=')) return why;
        text += len + (text[len] == ',');
    }
    return NULL;
}

/* <kid>=<file> with commas between. */
static const char *is_key_list(const char *text) {
    static const char *const why = "must be <kid>=<file> with commas between; a kid is letters, digits, . _ and -";
    while (*text) {
        size_t len = strcspn(text, ","), kid = 0;
        while (kid < len && (isalnum((unsigned char)text[kid]) || strchr("._-", text[kid]))) kid++;
        if (kid == 0 || kid > 64 || kid + 1 >= len || text[kid] != '=') return why;
        text += len + (text[len] == ',');
    }
    return NULL;
}

static const char *is_network_list(const char *text) {
    struct networks list;
    return networks_parse(str_of(text), &list, NULL) ? NULL
                                                     : "must be at most 64 addresses or networks with commas between";
}

/* Whether all parts of a list with commas or blanks between are taken by `one`. */
static bool every_part(const char *text, bool (*one)(const char *part)) {
    char part[512];
    for (text += strspn(text, ", \t"); *text; text += strspn(text, ", \t")) {
        size_t len = strcspn(text, ", \t");
        if (len >= sizeof part) return false;
        memcpy(part, text, len);
        part[len] = '\0';
        if (!one(part)) return false;
        text += len;
    }
    return true;
}

/* Scheme, host and perhaps a port, as browsers send it. */
static bool is_origin(const char *text) {
    const char *host = strncmp(text, "https://", 8) == 0 ? text + 8 : strncmp(text, "http://", 7) == 0 ? text + 7 : "";
    return *host && !strpbrk(host, "/?#*@") && strcspn(host, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == strlen(host);
}

static const char *is_origin_list(const char *text) {
    return every_part(text, is_origin) ? NULL
                                       : "must be origins as browsers send them, https://shop.example, with commas "
                                         "between: small letters, no path, no last slash";
}

static bool is_redis_url(const char *text) {
    return is_redis(text) == NULL;
}

static const char *is_redis_list(const char *text) {
    return every_part(text, is_redis_url) ? NULL : "must be redis:// URLs with commas between";
}

static const char *is_email(const char *text) {
    const char *at = strchr(text, '@');
    return at && at != text && at[1] && !strchr(at + 1, '@') && !strpbrk(text, ", \t") ? NULL
                                                                                       : "must be an e-mail address";
}

/* <name>=<milliseconds> */
static bool is_period(const char *text) {
    size_t name = strcspn(text, "="), digits = text[name] ? strspn(text + name + 1, "0123456789") : 0;
    return name > 0 && digits > 0 && digits <= 9 && !text[name + 1 + digits];
}

static const char *is_period_list(const char *text) {
    return every_part(text, is_period) ? NULL : "must be <name>=<milliseconds> with commas between";
}

static const char *is_queue_prefix(const char *text) {
    return *text && strlen(text) <= 64 && !strpbrk(text, ": \t\n") ? NULL
                                                                   : "must be 1 to 64 bytes without colon or blank";
}

bool config_parse_bool(const char *text, bool *out) {
    static const char *const words[] = {"off", "on", "false", "true", "no", "yes", "0", "1"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (str_ieq(str_of(text), str_of(words[i]))) {
            *out = i % 2 == 1;
            return true;
        }
    return false;
}

bool config_is_published(const char *secret) {
    /* Whole values first, then what only placeholders hold. */
    static const char *const whole[] = {
        "secret",     "password",     "supersecret",     "super-secret",     "secretKey",     "secret-key",
        "jwt-secret", "jwt_secret",   "JWT_SECRET",      "default-secret",   "defaultSecret", "default",
        "kasma",      "kasma-secret", "internal-secret", "internal-api-key", "test",          "admin",
        NULL};
    static const char *const part[] = {"changeme",
                                       "change-me",
                                       "change_me",
                                       "changethis",
                                       "change-this",
                                       "change_this",
                                       "your-secret",
                                       "your_secret",
                                       "yoursecret",
                                       "your-super-secret",
                                       "your-256-bit-secret",
                                       "your_jwt_secret",
                                       "in-production",
                                       "in_production",
                                       "placeholder",
                                       "example-secret",
                                       "replace-me",
                                       "replace_me",
                                       "default-secret",
                                       "default_secret",
                                       "dev-secret",
                                       "dev_secret",
                                       "0123456789abcdef0123456789abcdef",
                                       NULL};
    if (one_of(secret, whole)) return true;
    char lower[128];
    size_t n = strlen(secret);
    if (n >= sizeof lower) n = sizeof lower - 1;
    bool seen[256] = {false};
    size_t kinds = 0;
    for (size_t i = 0; i < n; i++) {
        lower[i] = (char)tolower((unsigned char)secret[i]);
        if (!seen[(unsigned char)secret[i]]) kinds++;
        seen[(unsigned char)secret[i]] = true;
    }
    lower[n] = '\0';
    for (const char *const *p = part; *p; p++)
        if (strstr(lower, *p)) return true;
    /* "aaaaaaaa..." and "abababab..." are no secrets either. */
    return n >= 16 && kinds < 6;
}

/* ---- the table ---- */

/* Of what is not named the compiler makes NULL, 0 and false. */
#define TEXT(n, d, h)                                                                                                  \
    { .name = (n), .fallback = (d), .help = (h), .type = CONFIG_TEXT }
#define CHECKED(n, d, c, h)                                                                                            \
    { .name = (n), .fallback = (d), .check = (c), .help = (h), .type = CONFIG_TEXT }
#define SECRET(n, c, h)                                                                                                \
    { .name = (n), .check = (c), .help = (h), .type = CONFIG_TEXT, .secret = true }
#define NEEDED(n, a, c, h)                                                                                             \
    { .name = (n), .alias = (a), .check = (c), .help = (h), .type = CONFIG_TEXT, .secret = true, .needed = true }
#define INT(n, d, lo, hi, h)                                                                                           \
    { .name = (n), .fallback = (d), .min = (lo), .max = (hi), .help = (h), .type = CONFIG_INT }
#define BOOL(n, d, h)                                                                                                  \
    { .name = (n), .fallback = (d), .help = (h), .type = CONFIG_BOOL }

const struct setting config_table[] = {
    CHECKED("KASMA_ENV", "development", is_environment, "development, test or production; else NODE_ENV"),
    TEXT("NODE_ENV", NULL, "asked when KASMA_ENV is unset; other words than test and production mean development"),
    TEXT("KASMA_CONF", "/etc/kasma/kasma.conf", "the file of settings; only from flag or environment"),
    TEXT("KASMA_DOTENV", ".env", "the file of the working folder; only from flag or environment"),

    TEXT("HOST", "127.0.0.1", "address to listen on"),
    INT("PORT", "5000", 0, 65535, "port to listen on; 0 takes a free one"),
    INT("WORKERS", "0", 0, 256, "worker processes of `serve`; 0 = one for each core"),
    TEXT("BOOT", "kasma.boot", "Lua module that a worker starts"),
    TEXT("WORK_METRICS_HOST", "127.0.0.1", "address of the port below"),
    INT("WORK_METRICS_PORT", "0", 0, 65535,
        "`work` answers /metrics, /healthz and /readyz here; 0 = it does not listen"),
    TEXT("PID_FILE", NULL, "where the pid of a running server is written"),
    INT("SHUTDOWN_GRACE", "25", 0, 600, "seconds that requests and jobs get to end"),
    INT("DRAIN_WAIT", "0", 0, 60, "seconds between not ready and no longer accepting, for balancers"),
    INT("WORKER_STUCK", "60", 0, 3600, "seconds after which a worker whose loop does not turn is killed; 0 = never"),
    INT("LUA_MEMORY_MB", "1024", 64, 1048576,
        "memory of a process's Lua state: a request or job that wants more is ended alone"),
    INT("UPGRADE_TIMEOUT", "60", 1, 600, "seconds that a new binary gets to become ready"),
    {.name = "LOG_LEVEL",
     .fallback = "info",
     .check = is_log_level,
     .help = "debug, info, warn or error; parts may have their own: info,stores=debug,mail=warn",
     .type = CONFIG_TEXT,
     .live = true},
    CHECKED("LOG_ACCESS", "all", is_log_access, "a line for each request: off, errors, sample or all"),

    TEXT("KASMA_HOME", NULL,
         "folder that holds lua, rules, migrations, console; unset: beside the binary, else the source tree"),
    TEXT("KASMA_LUA_DIR", NULL, "folder of the Lua files; unset: that of KASMA_HOME"),
    TEXT("KASMA_RULES_DIR", NULL, "folder of the rules; unset: that of KASMA_HOME"),
    TEXT("KASMA_MIGRATIONS_DIR", NULL, "folder of the migrations; unset: that of KASMA_HOME"),
    TEXT("KASMA_CONSOLE_DIR", NULL, "folder of the web console; unset: that of KASMA_HOME"),
    {.name = "KASMA_EXTRA_LUA_DIR",
     .alias = "KASMA_BENCH_DIR",
     .help = "another folder of Lua files, asked after the first",
     .type = CONFIG_TEXT},
    TEXT("KASMA_DATA_DIR", "var", "folder for what the server writes"),
    TEXT("KASMA_CRASH_AT", NULL, "for tests: the step at which the process ends as by a power cut; not in production"),
    TEXT("KASMA_QUEUES", NULL, "queues that `work` serves, with commas; unset: all"),
    TEXT("KASMA_HANDLERS", NULL, "a Lua file of job handlers that `work` runs instead of the product's own"),
    INT("KASMA_LOCK_MS", "30000", 100, 86400000, "how long a job is held by a worker that is not heard of"),
    INT("KASMA_STALLED_MS", "30000", 50, 86400000, "how often jobs of dead workers are looked for"),
    TEXT("KASMA_URL", NULL, "server that `kasma rules` and `kasma webhooks listen` talk to"),
    TEXT("KASMA_TENANT", NULL, "tenant of the rule commands"),
    SECRET("KASMA_KEY", NULL, "secret key for KASMA_URL"),

    NEEDED("DATABASE_URL", "POSTGRES_DB_URL", is_postgres, "PostgreSQL as the server's role"),
    NEEDED("DATABASE_SYSTEM_URL", NULL, is_postgres, "PostgreSQL as kasma_system, direct: relay and sweeper"),
    SECRET("DATABASE_OWNER_URL", is_postgres, "PostgreSQL as the owner; for migrate alone"),
    SECRET("DATABASE_READ_URL", is_postgres, "a read replica"),
    INT("DATABASE_POOL", "8", 2, 500, "connections of a worker"),
    INT("DATABASE_QUEUE", "4096", 1, 1000000, "calls that may wait for a connection: 503 beyond"),
    BOOL("DATABASE_PREPARE", "on", "prepared statements; off behind a transaction pooler that does not track them"),
    INT("DATABASE_WAIT_MS", "3000", 10, 60000, "longest wait for a connection"),
    INT("DATABASE_STATEMENT_MS", "15000", 100, 600000, "longest wait for an answer; the connection is dropped beyond"),
    INT("DATABASE_CONNECT_MS", "3000", 100, 60000, "longest time to connect"),
    TEXT("POSTGRES_SYNCHRONIZE", NULL, "ignored; migrations are made by `kasma migrate`"),
    TEXT("MONGO_SYNCHRONIZE", NULL, "ignored; indexes are made by `kasma migrate`"),
    NEEDED("REDIS_URL", "REDIS_STORAGE_URL", is_redis, "Redis: sessions, queues, locks, cache"),
    CHECKED("REDLOCK_NODES", NULL, is_redis_list,
            "URLs of the servers of a distributed lock, with commas; unset: REDIS_URL"),
    TEXT("REDIS_HOST", NULL, "Redis of the queues, when it is another one"),
    INT("REDIS_PORT", "6379", 1, 65535, "its port"),
    SECRET("REDIS_PASSWORD", NULL, "its password"),
    CHECKED("REDIS_TLS", "off", is_off, "off; TLS to Redis is not supported"),
    NEEDED("MONGODB_URL", "MONGO_DB_URL", is_mongodb,
           "MongoDB or a server that speaks its protocol, with the database"),
    INT("MONGO_POOL", "4", 1, 64, "threads that talk to MongoDB"),
    INT("MONGO_QUEUE", "1024", 1, 100000, "calls that may wait for MongoDB: 503 beyond"),

    NEEDED("JWT_SECRET", NULL, is_token_secret, "signs access tokens; at least 32 bytes"),
    NEEDED("SERVER_KEY", NULL, is_server_key,
           "seals what must be read again: base64 of 32 bytes, or <version>:<base64> with commas, newest first"),
    CHECKED("JWT_KEYS", NULL, is_key_list,
            "signing keys: <kid>=<PEM file> with commas, newest first (Ed25519 or RSA); unset: HS256 by JWT_SECRET"),
    CHECKED("JWT_EXPIRES_IN", "15m", is_duration, "life of an access token"),
    CHECKED("REFRESH_EXPIRES_IN", "7d", is_duration, "life of a refresh token"),
    SECRET("OTP_PEPPER", is_internal_secret, "part of the hash of one-time codes"),
    SECRET("GATEWAY_SHARED_SECRET", is_internal_secret, "X-User-Id is believed with it; unset: never"),
    SECRET("INTERNAL_WEBHOOK_SECRET", is_internal_secret,
           "opens the internal routes; two with a comma during a change"),
    SECRET("SOCKET_INTERNAL_API_KEY", is_internal_secret, "opens the publish route of the realtime hub"),
    SECRET("MESSAGE_ENCRYPTION_KEY", is_internal_secret, "seals private messages"),
    SECRET("METRICS_TOKEN", is_internal_secret,
           "bearer token that /metrics asks for; unset: loopback and private peers only"),
    CHECKED("PASSWORD_ARGON2", "19456,2,1", is_argon2, "memory KiB, passes, lanes (always 1) of new password hashes"),
    INT("PASSWORD_QUEUE", "64", 1, 10000, "password checks that may wait or run: 503 beyond"),
    CHECKED("BOOTSTRAP_ADMIN_EMAIL", NULL, is_email, "first platform owner, who gets a one-time code"),
    BOOL("AUTH_REDIS_COMPAT", "off", "also write the session keys of the former backend"),
    CHECKED("TRUSTED_PROXIES", NULL, is_network_list, "addresses whose X-Forwarded-For is believed, with commas"),
    CHECKED("CORS_ORIGINS", NULL, is_origin_list, "origins allowed beside the apps' own, with commas"),
    CHECKED("PUBLIC_URL", NULL, is_http, "how clients reach this server, for links in mails and pages"),
    TEXT("RATE_LIMITS", "default", "default, off, or a file"),
    BOOL("RATE_LIMIT_LOOPBACK", "off", "limit loopback peers outside production too"),
    BOOL("SWAGGER_ENABLED", "on", "serve the API page and document"),
    TEXT("METRICS_TENANTS", "off", "top20 adds a tenant label for the twenty busiest"),
    INT("AUDIT_RETENTION_DAYS", "400", 30, 36500, "days the audit trail is kept"),

    INT("IDEMPOTENCY_LEASE_MS", "60000", 1000, 600000,
        "how long a request that holds an idempotency key may be silent; for tests, production has 60000"),
    CHECKED("QUEUE_PREFIX", "bull", is_queue_prefix, "first part of the queue keys in Redis"),
    INT("BULLMQ_LAYOUT", "5", 5, 6, "queue layout written on pause"),
    INT("WORKER_CONCURRENCY", "8", 1, 1000, "jobs of a queue at once"),
    INT("WORK_NICE", "5", 0, 19, "how far job workers stand back behind `serve` for the processor; nice(1)"),
    CHECKED("SCHEDULES", NULL, is_period_list,
            "own periods of schedules, outside production: name=milliseconds, with commas"),

    TEXT("MAIL_HOST", NULL, "SMTP server; unset: .eml files in MAIL_DIR, refused in production"),
    INT("MAIL_PORT", "587", 1, 65535, "its port"),
    BOOL("MAIL_SECURE", "off", "TLS from the first byte"),
    CHECKED("MAIL_STARTTLS", "auto", is_starttls,
            "without MAIL_SECURE: required, try or off; auto = required with a MAIL_USER, else try"),
    TEXT("MAIL_CA_FILE", NULL, "authorities of its certificate; unset: the system's"),
    INT("MAIL_TIMEOUT_MS", "30000", 100, 600000, "for handing over one mail"),
    TEXT("MAIL_USER", NULL, "its user"),
    SECRET("MAIL_PASS", NULL, "its password"),
    TEXT("MAIL_FROM_EMAIL", "no-reply@kasma.invalid", "sender"),
    TEXT("MAIL_FROM_NAME", "Kasma", "name of the sender"),
    TEXT("MAIL_DIR", "var/mail", "where mails are written when no SMTP server is set"),
    TEXT("MEDIA_DIR", "var/media", "where uploads are kept when no media account is set"),
    TEXT("WEBHOOK_PRIVATE_HOSTS", NULL,
         "hosts (host or host:port, with commas) that webhooks may reach by http and on addresses that are not public"),
    CHECKED("TRANSACTION_SERVICE_URL", NULL, is_http, "remote payment service; unset: built in"),
    CHECKED("NOTI_SERVICE_URL", NULL, is_http, "remote notice service; unset: built in"),
    CHECKED("SOCKET_SERVICE_URL", NULL, is_http, "remote socket service; unset: built in"),
    TEXT("CLOUDINARY_CLOUD_NAME", NULL, "media account"),
    SECRET("CLOUDINARY_API_KEY", NULL, "media account"),
    SECRET("CLOUDINARY_API_SECRET", NULL, "media account"),

    INT("BODY_LIMIT", "1048576", 1024, 1073741824, "bytes of a request body after decoding: 413 beyond"),
    INT("HEADER_LIMIT", "16384", 1024, 61440, "bytes of request line and headers: 431 beyond"),
    INT("URL_LIMIT", "8192", 256, 61440, "bytes of the request target: 414 beyond"),
    INT("MAX_CONNECTIONS", "16384", 1, 1000000, "open connections of a worker: 503 beyond"),
    INT("MAX_IN_FLIGHT", "4096", 1, 1000000, "requests of a worker at work: 503 beyond"),
    INT("MAX_PIPELINED", "16", 1, 1000, "requests of one connection at work"),
    INT("HEADER_TIMEOUT_MS", "10000", 50, 600000, "for a whole head: 408 beyond"),
    INT("BODY_TIMEOUT_MS", "20000", 50, 3600000, "for a body: 408 beyond"),
    INT("KEEPALIVE_TIMEOUT_MS", "65000", 50, 3600000, "idle keep-alive"),
    INT("REQUEST_TIMEOUT_MS", "30000", 50, 3600000, "for a handler: 503 beyond"),
    INT("WRITE_TIMEOUT_MS", "30000", 50, 3600000, "without a byte taken by the client"),
    INT("REALTIME_SILENCE_MS", "60000", 500, 3600000,
        "a WebSocket that says nothing, or a client that takes nothing, is dropped after so long"),
    INT("REALTIME_CONNECTIONS", "10", 1, 1000000,
        "open WebSockets and event streams of one user; the oldest gives way"),
    TEXT("SPOOL_DIR", "/tmp", "large bodies while they are received; of this machine or container alone"),
};
const size_t config_table_count = sizeof config_table / sizeof *config_table;
