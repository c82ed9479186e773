/* Tells when files change: inotify on their folders, and a look at their stamps every second as a net. */
#ifndef KASMA_SCRIPT_RULES_WATCH_H
#define KASMA_SCRIPT_RULES_WATCH_H

#include <stdbool.h>

/* `changed` is called from the loop, after a burst of events has passed, and every second. */
void watch_open(void (*changed)(void), bool folders);
void watch_close(void);
/* Watches a folder; again: nothing happens. Folders that cannot be watched are left to the net. */
void watch_folder(const char *path);

#endif
