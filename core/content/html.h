/* Rich text from outside, made safe to show: parsed by libgumbo as a browser would, and written anew from an
 * allow-list. What is not on the list is dropped; the text inside stays, but for elements whose content is no text
 * (script, style, ...). */
#ifndef KASMA_CONTENT_HTML_H
#define KASMA_CONTENT_HTML_H

#include "runtime/buf.h"
#include "runtime/error.h"

/* Most bytes of input. */
#define HTML_MAX ((size_t)200 * 1024)

/* Appends the safe form of `html` to `out`. False: larger than HTML_MAX (ERR_LIMIT), nested deeper than 200 elements
 * (ERR_LIMIT), so tangled that parsing takes more than 64 MiB or 0.3 s (ERR_LIMIT), or out of memory. */
bool html_sanitize(struct str html, struct buf *out, struct error *err);
/* Appends the text of `html` without tags, blanks folded, cut at `max` characters (code points). Same failures. */
bool html_text(struct str html, size_t max, struct buf *out, struct error *err);

#endif
