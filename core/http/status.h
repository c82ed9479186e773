/* Reason phrases, and the bodies that the platform fixes for refusals of the server itself. */
#ifndef KASMA_HTTP_STATUS_H
#define KASMA_HTTP_STATUS_H

#include "runtime/buf.h"

/* "Not Found"; "Unknown" for a number without a name. */
struct str status_reason(int status);
/* The fixed JSON body of a refusal, appended to `out`; nothing for those that are sent without a body (431, 408, 414,
 * and 400 without a text). `detail` is the text of 400, 404 and 415. False: out of memory. */
bool status_body(int status, struct str detail, struct buf *out);

#endif
