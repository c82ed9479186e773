/* What is looked at before a source goes to the parser. LuaJIT's parser runs in C, where no budget holds, and the lists
 * of jumps that it keeps for `and`, `or`, `elseif`, `break` and `goto` are walked from the beginning each time one is
 * added: 64 KiB of `a or a or a` take it a fifth of a second. So these words are counted (outside of texts and
 * comments), and a source that has far more of them than anybody writes is refused. */
#include <ctype.h>

#include "script/sandbox_internal.h"

struct scan {
    const char *at, *end;
    int line;
};

static void skip_line(struct scan *s) {
    while (s->at < s->end && *s->at != '\n') s->at++;
}

/* At a '[': the number of '=' of the long bracket that begins there, or -1 when none does. */
static long bracket_level(const struct scan *s) {
    const char *p = s->at + 1;
    while (p < s->end && *p == '=') p++;
    return p < s->end && *p == '[' ? p - s->at - 1 : -1;
}

static void skip_long(struct scan *s, long level) {
    s->at += level + 2;
    while (s->at < s->end) {
        char c = *s->at++;
        if (c == '\n') s->line++;
        if (c != ']' || s->end - s->at < level + 1) continue;
        long n = 0;
        while (n < level && s->at[n] == '=') n++;
        if (n == level && s->at[n] == ']') {
            s->at += level + 1;
            return;
        }
        s->at += n;
    }
}

static void skip_quoted(struct scan *s) {
    char quote = *s->at++;
    while (s->at < s->end && *s->at != quote && *s->at != '\n') {
        if (*s->at == '\\' && s->at + 1 < s->end) {
            s->at++;
            if (*s->at == '\n') s->line++;
            if (*s->at == 'z') { /* skips white space, lines too */
                while (s->at + 1 < s->end && isspace((unsigned char)s->at[1])) s->line += *++s->at == '\n';
            }
        }
        s->at++;
    }
    if (s->at < s->end && *s->at == quote) s->at++;
}

static bool is_jump(const char *word, size_t len) {
    static const char *const words[] = {"and", "or", "elseif", "break", "goto"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strlen(words[i]) == len && memcmp(words[i], word, len) == 0) return true;
    return false;
}

int sandbox_jumps(struct str source, unsigned most) {
    struct scan s = {.at = source.at, .end = source.at + source.len, .line = 1};
    unsigned jumps = 0;
    while (s.at < s.end) {
        char c = *s.at;
        long level;
        if (c == '\n') {
            s.line++;
            s.at++;
        } else if (c == '-' && s.end - s.at > 1 && s.at[1] == '-') {
            s.at += 2;
            level = s.at < s.end && *s.at == '[' ? bracket_level(&s) : -1;
            if (level >= 0) {
                skip_long(&s, level);
            } else {
                skip_line(&s);
            }
        } else if (c == '[' && (level = bracket_level(&s)) >= 0) {
            skip_long(&s, level);
        } else if (c == '"' || c == '\'') {
            skip_quoted(&s);
        } else if (isalnum((unsigned char)c) || c == '_') {
            const char *word = s.at;
            while (s.at < s.end && (isalnum((unsigned char)*s.at) || *s.at == '_')) s.at++;
            /* A number may run into a word: `1or`. */
            size_t len = (size_t)(s.at - word);
            while (len && isdigit((unsigned char)*word)) word++, len--;
            if (is_jump(word, len) && ++jumps > most) return s.line;
        } else {
            s.at++;
        }
    }
    return 0;
}
