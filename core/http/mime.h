/* Content types of files by the end of their names. */
#ifndef KASMA_HTTP_MIME_H
#define KASMA_HTTP_MIME_H

#include "runtime/str.h"

/* application/octet-stream when the name says nothing. */
struct str mime_of(struct str file_name);

#endif
