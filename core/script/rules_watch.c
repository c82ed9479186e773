#include "script/rules_watch.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/log.h"
#include "runtime/loop.h"

#define SETTLE_MS 20 /* editors write, rename and chmod: one look after all of it */
#define NET_MS 1000

struct folder {
    uv_fs_event_t event; /* first: closing finds the folder by it */
    struct folder *next;
    char path[];
};

static struct folder *folders;
static uv_timer_t *settle, *net;
static void (*on_change)(void);
static bool watching;

static void free_handle(uv_handle_t *handle) {
    free(handle);
}

static void look(uv_timer_t *timer) {
    (void)timer;
    if (on_change) on_change();
}

static uv_timer_t *new_timer(void) {
    uv_timer_t *t = malloc(sizeof *t);
    if (!t) return NULL;
    if (uv_timer_init(loop_get(), t) != 0) {
        free(t);
        return NULL;
    }
    uv_unref((uv_handle_t *)t);
    return t;
}

void watch_open(void (*changed)(void), bool with_folders) {
    watching = with_folders;
    on_change = changed;
    settle = new_timer();
    net = new_timer();
    if (!settle || !net || uv_timer_start(net, look, NET_MS, NET_MS) != 0)
        log_line(LOG_WARN, "changed rule files are only seen on reload: no timer");
}

void watch_close(void) {
    on_change = NULL;
    if (settle) uv_close((uv_handle_t *)settle, free_handle);
    if (net) uv_close((uv_handle_t *)net, free_handle);
    settle = net = NULL;
    while (folders) {
        struct folder *f = folders;
        folders = f->next;
        uv_close((uv_handle_t *)&f->event, free_handle);
    }
}

static void event(uv_fs_event_t *handle, const char *name, int events, int status) {
    (void)handle;
    (void)name;
    (void)events;
    if (status < 0 || !settle) return; /* the net sees what this one has missed */
    int started = uv_timer_start(settle, look, SETTLE_MS, 0);
    (void)started; /* fails only on a closing handle */
}

void watch_folder(const char *path) {
    if (!net || !watching) return;
    for (struct folder *f = folders; f; f = f->next)
        if (strcmp(f->path, path) == 0) return;
    size_t len = strlen(path);
    struct folder *f = malloc(sizeof *f + len + 1);
    if (!f) return;
    memcpy(f->path, path, len + 1);
    if (uv_fs_event_init(loop_get(), &f->event) != 0) {
        free(f);
        return;
    }
    uv_unref((uv_handle_t *)&f->event);
    if (uv_fs_event_start(&f->event, event, path, 0) != 0) {
        uv_close((uv_handle_t *)&f->event, free_handle);
        return;
    }
    f->next = folders;
    folders = f;
}
