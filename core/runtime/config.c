/* One table of settings and one reader for all sources. Values are kept as the text that was given and judged when they
 * are read in, so that a bad one is a line in the list of problems and never a surprise later.
 *
 * Texts that were handed out stay good for ever: a value that HUP replaces is kept in a list (a few bytes a reload),
 * because nobody could know who still holds it. */
#include "runtime/config.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "runtime/config_table.h"
#include "runtime/log.h"

#define FILE_MAX ((size_t)256 * 1024)
#define VALUE_MAX ((size_t)64 * 1024)
#define NAME_MAX_BYTES 80
#define SETTINGS_MAX 160

/* In the order of their rank: the first that has a value gives it. */
enum source { FLAG, ENVIRONMENT, DOTENV, CONF, DEFAULT };

struct value {
    char *text; /* NULL: unset, the table's default counts */
    enum source source;
    char name[NAME_MAX_BYTES]; /* the name that was used: the setting's, its alias, or either with _FILE */
};

static struct value values[SETTINGS_MAX];
static bool loaded;
static enum config_env env_now = ENV_DEVELOPMENT;

struct kept {
    struct kept *next;
    const char *text;
};
static struct kept *kept;

static void problem(struct buf *out, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void problem(struct buf *out, const char *fmt, ...) {
    char text[512];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    /* Out of memory: the one byte still says that there was a problem. */
    if (n < 0 || !buf_printf(out, "%s\n", text)) log_line(LOG_ERROR, "no memory for: %s", n < 0 ? fmt : text);
}

static bool find(const char *name, size_t *index) {
    for (size_t i = 0; i < config_table_count; i++) {
        const struct setting *s = &config_table[i];
        if (strcmp(s->name, name) != 0 && (!s->alias || strcmp(s->alias, name) != 0)) continue;
        *index = i;
        return true;
    }
    return false;
}

static const char *origin_of(const struct value *v, size_t i) {
    switch (v->text ? v->source : DEFAULT) {
    case FLAG:
        return "flag";
    case ENVIRONMENT:
        return "environment";
    case DOTENV:
        return ".env";
    case CONF:
        return "kasma.conf";
    case DEFAULT:
        break;
    }
    return v->text || config_table[i].fallback ? "default" : "unset";
}

static bool acceptable(const struct setting *s, const char *used, const char *text, struct buf *problems) {
    int64_t n;
    bool flag;
    const char *why = NULL;
    if (s->type == CONFIG_INT && (!str_int64(str_of(text), &n) || n < s->min || n > s->max)) {
        problem(problems, "%s must be a whole number from %lld to %lld", used, (long long)s->min, (long long)s->max);
        return false;
    }
    if (s->type == CONFIG_BOOL && !config_parse_bool(text, &flag)) why = "must be on or off";
    if (s->type == CONFIG_TEXT && s->check) why = s->check(text);
    if (!why && s->secret && !strstr(text, "://") && config_is_published(text))
        why = "is a published value or a placeholder: make one of your own";
    if (why) problem(problems, "%s %s", used, why);
    return why == NULL;
}

/* One value of one source into `list`. Sources come in the order of their rank, so a value that is there stays. */
static void take(struct value *list, const char *used, size_t i, const char *text, enum source source,
                 struct buf *problems) {
    struct value *v = &list[i];
    if (!*text) return;
    if (v->text) {
        /* Two names of one thing that say different things: which of them is meant nobody can know. */
        if (strcmp(v->name, used) != 0 && strcmp(v->text, text) != 0 && (v->source == source || config_table[i].alias))
            problem(problems, "%s and %s are both set and differ", v->name, used);
        return;
    }
    if (!acceptable(&config_table[i], used, text, problems)) return;
    int n = snprintf(v->name, sizeof v->name, "%s", used);
    v->text = n > 0 ? strdup(text) : NULL;
    v->source = source;
    if (!v->text) problem(problems, "out of memory at %s", used);
}

/* The whole text of a file with a NUL, or NULL: errno says why. */
static char *read_file(const char *path) {
    FILE *f = fopen(path, "re");
    if (!f) return NULL;
    char *text = malloc(FILE_MAX);
    size_t n = text ? fread(text, 1, FILE_MAX, f) : 0;
    int why = n == FILE_MAX ? EFBIG : ferror(f) ? EIO : text ? 0 : ENOMEM;
    if (fclose(f) != 0) why = EIO;
    if (why) {
        free(text);
        errno = why;
        return NULL;
    }
    text[n] = '\0';
    return text;
}

/* NAME_FILE: the value is the file's text without blanks at its ends. */
static void take_file(struct value *list, const char *used, size_t i, const char *path, enum source source,
                      struct buf *problems) {
    if (!*path) return;
    char *text = read_file(path);
    if (!text) {
        problem(problems, "%s: cannot read %s: %s", used, path, strerror(errno));
        return;
    }
    struct str value = str_trim(str_of(text));
    text[(size_t)(value.at - text) + value.len] = '\0';
    take(list, used, i, value.at, source, problems);
    free(text);
}

/* One name = value. False: the table has no such name. */
static bool assign(struct value *list, const char *name, const char *text, enum source source, struct buf *problems) {
    size_t i, n = strlen(name);
    if (find(name, &i)) {
        take(list, name, i, text, source, problems);
        return true;
    }
    char stem[NAME_MAX_BYTES];
    if (n <= 5 || n >= sizeof stem || strcmp(name + n - 5, "_FILE") != 0) return false;
    memcpy(stem, name, n - 5);
    stem[n - 5] = '\0';
    if (!find(stem, &i)) return false;
    take_file(list, name, i, text, source, problems);
    return true;
}

static void read_environment(struct value *list, struct buf *problems) {
    for (char **e = environ; *e; e++) {
        const char *eq = strchr(*e, '=');
        size_t n = eq ? (size_t)(eq - *e) : 0;
        bool ours = strncmp(*e, "KASMA_", 6) == 0;
        char name[NAME_MAX_BYTES];
        if (n == 0 || n >= sizeof name || strlen(eq + 1) > VALUE_MAX) {
            if (ours) problem(problems, "%.40s... in the environment is too long", *e);
            continue;
        }
        memcpy(name, *e, n);
        name[n] = '\0';
        if (!assign(list, name, eq + 1, ENVIRONMENT, problems) && ours)
            problem(problems, "%s in the environment is no setting", name);
    }
}

/* Takes the quotes off in place: "..." knows \n \" \\, '...' knows nothing; without quotes ` #` begins a comment. */
static bool unquote(char *text) {
    char quote = *text, *out = text;
    if (quote != '"' && quote != '\'') {
        char *comment = strstr(text, " #");
        if (comment) *comment = '\0';
        struct str rest = str_trim(str_of(text));
        text[rest.len] = '\0';
        return true;
    }
    char *in = text + 1;
    for (; *in && *in != quote; in++) {
        if (quote == '"' && *in == '\\' && in[1]) {
            in++;
            *out++ = (char)(*in == 'n' ? '\n' : *in);
        } else {
            *out++ = *in;
        }
    }
    struct str rest = str_trim(str_of(*in ? in + 1 : in));
    bool ok = *in == quote && (rest.len == 0 || *rest.at == '#');
    *out = '\0';
    return ok;
}

static void read_line(struct value *list, char *line, const char *path, int number, enum source source,
                      struct buf *problems) {
    struct str whole = str_trim(str_of(line));
    if (whole.len == 0 || *whole.at == '#') return;
    line = line + (whole.at - line);
    line[whole.len] = '\0';
    char *eq = strchr(line, '=');
    struct str name = eq ? str_trim(str_n(line, (size_t)(eq - line))) : str_n(line, 0);
    if (str_starts(name, STR("export "))) name = str_trim(str_n(name.at + 7, name.len - 7));
    char key[NAME_MAX_BYTES];
    if (!eq || name.len == 0 || name.len >= sizeof key) {
        problem(problems, "%s:%d is no NAME=value", path, number);
        return;
    }
    memcpy(key, name.at, name.len);
    key[name.len] = '\0';
    struct str value = str_trim(str_of(eq + 1));
    char *text = eq + 1 + (value.at - (eq + 1));
    text[value.len] = '\0';
    if (!unquote(text)) {
        problem(problems, "%s:%d: the quotes of %s do not end", path, number, key);
    } else if (!assign(list, key, text, source, problems) && (source == CONF || strncmp(key, "KASMA_", 6) == 0)) {
        /* A .env may serve other programs too; kasma.conf is ours alone. */
        problem(problems, "%s:%d: %s is no setting", path, number, key);
    }
}

/* A file that is absent is no problem; one that cannot be read is. */
static void read_lines(struct value *list, const char *path, enum source source, struct buf *problems) {
    char *text = read_file(path);
    if (!text) {
        if (errno != ENOENT && errno != ENOTDIR) problem(problems, "cannot read %s: %s", path, strerror(errno));
        return;
    }
    int number = 0;
    for (char *line = text; line;) {
        char *end = strchr(line, '\n');
        if (end) *end = '\0';
        read_line(list, line, path, ++number, source, problems);
        line = end ? end + 1 : NULL;
    }
    free(text);
}

/* The setting of --some-name, with what follows '=' in `*value` (NULL: nothing follows). With `own`, KASMA_ before the
 * name need not be typed: --queues is KASMA_QUEUES. */
static bool flag_of(const char *word, bool own, size_t *index, const char **value) {
    static const char prefix[] = "KASMA_";
    char text[sizeof prefix + NAME_MAX_BYTES];
    char *name = text + sizeof prefix - 1;
    size_t n = 0;
    if (strncmp(word, "--", 2) != 0 || !word[2]) return false;
    const char *p = word + 2;
    for (; *p && *p != '='; p++) {
        bool fits = (*p >= 'a' && *p <= 'z') || (*p >= '0' && *p <= '9') || *p == '-';
        if (!fits || n + 1 >= NAME_MAX_BYTES) return false;
        name[n++] = (char)(*p == '-' ? '_' : *p >= 'a' ? *p - ('a' - 'A') : *p);
    }
    name[n] = '\0';
    *value = *p == '=' ? p + 1 : NULL;
    if (find(name, index)) return true;
    memcpy(text, prefix, sizeof prefix - 1);
    return own && find(text, index);
}

/* The commands whose every word is a setting. Others have options of their own that are called alike. */
static bool takes_settings_alone(const char *command) {
    return command && (strcmp(command, "serve") == 0 || strcmp(command, "work") == 0 || strcmp(command, "all") == 0);
}

static void read_flags(struct value *list, int *argc, char **argv, struct buf *problems) {
    int kept_words = 0;
    bool own = takes_settings_alone(*argc > 1 ? argv[1] : NULL);
    for (int i = 0; i < *argc; i++) {
        size_t index;
        const char *value;
        char *word = argv[i];
        if (i == 0 || !flag_of(word, own, &index, &value)) {
            argv[kept_words++] = word;
            continue;
        }
        bool unused, yes_no = config_table[index].type == CONFIG_BOOL;
        if (!value && i + 1 < *argc && (!yes_no || config_parse_bool(argv[i + 1], &unused))) value = argv[++i];
        if (!value && yes_no) value = "on";
        if (value)
            take(list, config_table[index].name, index, value, FLAG, problems);
        else
            problem(problems, "%s needs a value", word);
    }
    argv[kept_words] = NULL;
    *argc = kept_words;
}

/* ---- what follows from the values ---- */

static const char *text_in(const struct value *list, const char *name) {
    size_t i;
    if (!find(name, &i)) return NULL;
    return list[i].text ? list[i].text : config_table[i].fallback;
}

static void set_default(struct value *list, const char *name, const char *text) {
    size_t i;
    if (!find(name, &i) || list[i].text) return;
    list[i].text = strdup(text);
    list[i].source = DEFAULT;
}

/* The product's folders: beside an installed binary, else the source tree it was built from. */
static void find_folders(struct value *list) {
    static const char *const inner[][2] = {{"KASMA_LUA_DIR", "lua"},
                                           {"KASMA_RULES_DIR", "rules"},
                                           {"KASMA_MIGRATIONS_DIR", "migrations"},
                                           {"KASMA_CONSOLE_DIR", "console"}};
    char home[PATH_MAX] = KASMA_SOURCE_DIR, path[PATH_MAX + 16];
    const char *given = text_in(list, "KASMA_HOME");
    ssize_t n = given ? -1 : readlink("/proc/self/exe", path, PATH_MAX - 1);
    if (n > 0) {
        path[n] = '\0';
        char *slash = strrchr(path, '/');
        if (slash) *slash = '\0';
        char beside[PATH_MAX];
        int len = snprintf(beside, sizeof beside, "%s/../share/kasma", path);
        if (len > 0 && (size_t)len < sizeof beside && access(beside, R_OK | X_OK) == 0)
            memcpy(home, beside, (size_t)len + 1);
    }
    set_default(list, "KASMA_HOME", home);
    given = text_in(list, "KASMA_HOME");
    for (size_t i = 0; i < sizeof inner / sizeof *inner; i++) {
        int len = snprintf(path, sizeof path, "%s/%s", given ? given : home, inner[i][1]);
        if (len > 0 && (size_t)len < sizeof path) set_default(list, inner[i][0], path);
    }
}

/* KASMA_ENV goes before NODE_ENV, whatever their sources. */
static enum config_env environment_in(const struct value *list) {
    size_t i;
    const char *word = find("KASMA_ENV", &i) ? list[i].text : NULL;
    if (!word) word = text_in(list, "NODE_ENV");
    if (!word) return ENV_DEVELOPMENT;
    return strcmp(word, "production") == 0 ? ENV_PRODUCTION : strcmp(word, "test") == 0 ? ENV_TEST : ENV_DEVELOPMENT;
}

static void check_production(const struct value *list, struct buf *problems) {
    const char *argon2 = text_in(list, "PASSWORD_ARGON2");
    int64_t memory;
    if (argon2 && str_int64(str_n(argon2, strcspn(argon2, ",")), &memory) && memory < 7168)
        problem(problems, "PASSWORD_ARGON2 must take at least 7168 KiB in production");
    if (text_in(list, "KASMA_CRASH_AT")) problem(problems, "KASMA_CRASH_AT is for tests, not for production");
    if (text_in(list, "SCHEDULES")) problem(problems, "SCHEDULES is for development and tests, not for production");
}

/* ---- loading ---- */

static bool keep(const char *text) {
    struct kept *k = malloc(sizeof *k);
    if (!k) return false;
    *k = (struct kept){.next = kept, .text = text};
    kept = k;
    return true;
}

static void forget(struct value *list) {
    for (size_t i = 0; i < config_table_count; i++) free(list[i].text);
    memset(list, 0, sizeof(struct value) * SETTINGS_MAX);
}

/* Takes over from `fresh` what may change in a running process. */
static void take_over(struct value *fresh) {
    for (size_t i = 0; i < config_table_count; i++) {
        struct value *old = &values[i], *new = &fresh[i];
        const char *a = old->text ? old->text : config_table[i].fallback,
                   *b = new->text ? new->text : config_table[i].fallback;
        if ((!a && !b) || (a && b && strcmp(a, b) == 0)) continue;
        if (!config_table[i].live) {
            log_line(LOG_WARN, "%s was changed: that takes a restart", config_table[i].name);
        } else if (!old->text || keep(old->text)) {
            *old = *new;
            new->text = NULL;
        }
    }
}

bool config_load(int *argc, char **argv, struct buf *problems) {
    _Static_assert(SETTINGS_MAX >= 128, "room for the table");
    size_t before = problems->len;
    struct value *fresh = calloc(SETTINGS_MAX, sizeof *fresh);
    if (!fresh || config_table_count > SETTINGS_MAX) {
        problem(problems, "out of memory for the settings");
        free(fresh);
        return false;
    }
    read_flags(fresh, argc, argv, problems);
    for (size_t i = 0; i < config_table_count; i++) /* those of the first call hold */
        if (values[i].text && values[i].source == FLAG && !fresh[i].text) {
            fresh[i] = values[i];
            fresh[i].text = strdup(values[i].text);
        }
    read_environment(fresh, problems);
    const char *dotenv = text_in(fresh, "KASMA_DOTENV"), *conf = text_in(fresh, "KASMA_CONF");
    if (dotenv) read_lines(fresh, dotenv, DOTENV, problems);
    if (conf) read_lines(fresh, conf, CONF, problems);
    find_folders(fresh);
    enum config_env env = environment_in(fresh);
    if (env == ENV_PRODUCTION) check_production(fresh, problems);
    bool ok = problems->len == before;
    if (ok && loaded) {
        take_over(fresh);
    } else if (!loaded) {
        /* Also when there are problems: what was good can be shown, and nothing starts. */
        forget(values);
        memcpy(values, fresh, sizeof values);
        memset(fresh, 0, sizeof values);
        env_now = env;
        loaded = ok;
        if (ok && (config_str("POSTGRES_SYNCHRONIZE") || config_str("MONGO_SYNCHRONIZE")))
            log_line(LOG_WARN, "POSTGRES_SYNCHRONIZE and MONGO_SYNCHRONIZE are ignored: run kasma migrate");
    }
    forget(fresh);
    free(fresh);
    const char *word = config_str("LOG_LEVEL");
    if (word && ok && !log_set_levels(word, true)) log_line(LOG_ERROR, "LOG_LEVEL is not taken over");
    return ok;
}

bool config_complete(struct buf *problems) {
    size_t before = problems->len;
    const char *boot = config_str("BOOT");
    if (boot && strcmp(boot, "kasma.boot") != 0) return true;
    for (size_t i = 0; i < config_table_count; i++)
        if (config_table[i].needed && !values[i].text)
            problem(problems, "%s is not set: %s", config_table[i].name, config_table[i].help);
    if (env_now == ENV_PRODUCTION && !config_str("OTP_PEPPER"))
        problem(problems, "OTP_PEPPER is not set: production needs it");
    return problems->len == before;
}

/* ---- asking ---- */

static size_t must_find(const char *name, enum config_type type) {
    size_t i;
    if (!find(name, &i) || config_table[i].type != type) {
        log_line(LOG_ERROR, "no setting %s of this type", name);
        log_flush();
        abort();
    }
    return i;
}

static const char *text_of(size_t i) {
    return values[i].text ? values[i].text : config_table[i].fallback;
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
    return text && config_parse_bool(text, &flag) && flag;
}

enum config_env config_env(void) {
    return env_now;
}

bool config_has(const char *name, enum config_type *type) {
    size_t i;
    bool there = find(name, &i);
    if (there) *type = config_table[i].type;
    return there;
}

/* A secret for people: of a URL all but the password, of anything else nothing. */
static const char *masked(const char *text) {
    static char shown[256];
    const char *host = strrchr(text, '@'), *scheme = strstr(text, "://");
    if (!scheme) return "********";
    const char *user = scheme + 3, *colon = host ? memchr(user, ':', (size_t)(host - user)) : NULL;
    /* Parameters may carry secrets too (password=...). */
    const char *rest = host ? host : user;
    size_t head = (size_t)((colon ? colon : rest) - text), tail = strcspn(rest, "?");
    int n = snprintf(shown, sizeof shown, "%.*s%s%.*s", (int)(head > 100 ? 100 : head), text, colon ? ":********" : "",
                     (int)(tail > 120 ? 120 : tail), rest);
    return n > 0 && (size_t)n < sizeof shown ? shown : "********";
}

bool config_entry(size_t i, struct config_entry *out) {
    if (i >= config_table_count) return false;
    const struct setting *s = &config_table[i];
    const char *text = text_of(i);
    *out = (struct config_entry){.name = s->name,
                                 .help = s->help,
                                 .origin = origin_of(&values[i], i),
                                 .shown = !text       ? ""
                                          : s->secret ? masked(text)
                                                      : text,
                                 .type = s->type,
                                 .secret = s->secret,
                                 .live = s->live};
    return true;
}
