/* One JSON line per event on stderr: {"t":...,"level":...,"pid":...,"part":...,"msg":...,<fields>}. Lines are gathered
 * in a buffer and written when it fills, at the end of a loop turn that logged (log_flush), and at once for warn and
 * above.
 *
 * A part of the program may have a level of its own ("info,stores=debug,mail=error"). Of C the part is the folder under
 * core/, of Lua the module, or the file of the framework (outbox, jobs). */
#ifndef KASMA_RUNTIME_LOG_H
#define KASMA_RUNTIME_LOG_H

#include "runtime/str.h"

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

/* Of every part that has none of its own; those that have keep theirs. */
void log_set_level(enum log_level least);
enum log_level log_get_level(void);
/* "debug", "info", "warn", "error"; false for another word. */
bool log_level_parse(struct str word, enum log_level *out);
/* "info", or "info,stores=debug,mail=warn": a level for all, then parts with theirs, at most 16. False: it is none, and
 * nothing has changed. `set` false: only looks. */
bool log_set_levels(const char *text, bool set);
/* Whether an event of that level is written for some part; for this part. */
bool log_wanted(enum log_level level);
bool log_wanted_of(struct str part, enum log_level level);

/* A message with no fields but what the format holds. Never pass a secret. */
#define log_line(level, ...) log_line_in(__FILE__, (level), __VA_ARGS__)
void log_line_in(const char *file, enum log_level level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* `fields` is the inside of a JSON object without braces (`"tenant":"acme","ms":3`), already encoded, or empty. */
#define log_event(level, message, fields) log_event_of(log_part_of(__FILE__), (level), (message), (fields))
void log_event_of(struct str part, enum log_level level, struct str message, struct str fields);
/* The part that a C file belongs to. */
struct str log_part_of(const char *file);
void log_flush(void);

#endif
