/* One JSON line per event on stderr: {"t":...,"level":...,"msg":...,<fields>}. Lines are gathered in a buffer and
 * written when it fills, at the end of a loop turn that logged (log_flush), and at once for warn and above. */
#ifndef KASMA_RUNTIME_LOG_H
#define KASMA_RUNTIME_LOG_H

#include "runtime/str.h"

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

void log_set_level(enum log_level least);
enum log_level log_get_level(void);
/* "debug", "info", "warn", "error"; false for another word. */
bool log_level_parse(struct str word, enum log_level *out);

/* A message with no fields but what the format holds. Never pass a secret. */
void log_line(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* `fields` is the inside of a JSON object without braces (`"tenant":"acme","ms":3`), already encoded, or empty. */
void log_event(enum log_level level, struct str message, struct str fields);
void log_flush(void);

#endif
