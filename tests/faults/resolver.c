/* Names as a test wants them: preloaded, it answers those of the file RESOLVER_FILE, one line `name address...` each.
 * The second look at a name takes the name's second line, and so on; the last one stays. Each look is noted in
 * RESOLVER_FILE.seen. */
#define _GNU_SOURCE /* NOLINT: strsep, RTLD_NEXT */
#include <dlfcn.h>
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAMES = 16, LINE = 512 };

typedef int look_up(const char *, const char *, const struct addrinfo *, struct addrinfo **);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    char name[128];
    int looks;
} seen[NAMES];

/* How often the name was asked for before. */
static int looks_at(const char *name) {
    for (size_t i = 0; i < NAMES; i++) {
        if (seen[i].name[0] == 0 && strlen(name) < sizeof seen[i].name) memcpy(seen[i].name, name, strlen(name) + 1);
        if (strcmp(seen[i].name, name) == 0) return seen[i].looks++;
    }
    return 0;
}

/* The addresses that this look at the name is to get, as words of `line`; false when the file has none. */
static int addresses_of(const char *path, const char *name, char line[LINE]) {
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    char text[LINE];
    int found = 0, left = -1;
    while (fgets(text, sizeof text, file)) {
        size_t n = strlen(name);
        if (strncmp(text, name, n) != 0 || text[n] != ' ') continue;
        if (left < 0) left = looks_at(name);
        if (found && left == 0) break;
        if (found) left--;
        memcpy(line, text, LINE);
        found = 1;
    }
    return fclose(file) == 0 && found;
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **answer) {
    look_up *real = (look_up *)dlsym(RTLD_NEXT, "getaddrinfo");
    const char *path = getenv("RESOLVER_FILE");
    char line[LINE], note[LINE];
    pthread_mutex_lock(&lock);
    int ours = path && name && addresses_of(path, name, line);
    if (ours) {
        FILE *file = snprintf(note, sizeof note, "%s.seen", path) > 0 ? fopen(note, "ae") : NULL;
        ours = file && fputs(line, file) >= 0;
        if (file && fclose(file) != 0) ours = 0;
    }
    pthread_mutex_unlock(&lock);
    if (!ours) return real(name, service, hints, answer);
    struct addrinfo numeric = hints ? *hints : (struct addrinfo){0};
    numeric.ai_flags |= AI_NUMERICHOST;
    numeric.ai_flags &= ~AI_ADDRCONFIG;
    struct addrinfo *first = NULL, **end = &first;
    char *at = line, *word = NULL;
    if (!strsep(&at, " \n")) return EAI_NONAME; /* the name itself */
    while ((word = strsep(&at, " \n")) && *word) {
        if (real(word, service, &numeric, end) != 0) continue;
        while (*end) end = &(*end)->ai_next;
    }
    *answer = first;
    return first ? 0 : EAI_NONAME;
}
