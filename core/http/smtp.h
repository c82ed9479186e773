/* Outbound mail: SMTP by libcurl in a few threads; the loop never waits. Connections are kept and used again for the
 * next message.
 *
 * The message comes whole (RFC 5322, lines end in CRLF); dots are stuffed on the way. Whatever the server said is an
 * answer, also a refusal: its code, the command it answered and its last line. An error is a dialogue that did not take
 * place or did not end. */
#ifndef KASMA_HTTP_SMTP_H
#define KASMA_HTTP_SMTP_H

#include "runtime/error.h"
#include "runtime/str.h"

struct smtp_call;

enum smtp_tls {
    SMTP_TLS_OFF,
    SMTP_TLS_TRY,      /* STARTTLS when the server offers it */
    SMTP_TLS_REQUIRED, /* STARTTLS, or no mail */
    SMTP_TLS_IMPLICIT, /* TLS from the first byte */
};

struct smtp_ask {
    struct str host;
    uint16_t port;
    enum smtp_tls tls;
    struct str ca_file;    /* authorities beside which the server's certificate is checked; empty: the system's */
    struct str helo;       /* empty: the machine's name */
    struct str user, pass; /* user empty: no AUTH */
    struct str from, to;   /* bare addresses */
    struct str message;
    uint32_t timeout_ms; /* of the whole dialogue; 0: 30000 */
};

struct smtp_answer {
    int code;            /* the last reply's; 250 to the message's end: the server has taken it over */
    const char *command; /* what the last reply answered, in capitals: "RCPT", "DATA", ...; "" at the greeting */
    struct str reply;    /* that reply's last line, cut at 500 bytes */
    bool accepted;
};

/* Exactly one of `answer` and `err` is given; the answer is valid during the call. Errors: ERR_UNAVAILABLE (no
 * connection, no TLS, a dialogue that broke off), ERR_TIMEOUT, ERR_MEMORY. */
typedef void smtp_done(void *data, const struct smtp_answer *answer, const struct error *err);

/* Everything in `ask` is copied. `done` is called once, from the loop, after this has returned. NULL: `err`
 * (ERR_INVALID: an address or host that cannot stand in the dialogue; ERR_LIMIT: a message above 25 MiB; ERR_BUSY,
 * ERR_MEMORY). */
struct smtp_call *smtp_send(const struct smtp_ask *ask, smtp_done *done, void *data, struct error *err);
/* Breaks the dialogue off; `done` will not be called. The server may have taken the message all the same. */
void smtp_cancel(struct smtp_call *call);
/* Ends the threads with their connections, once what they speak has ended. At the end of a process. */
void smtp_close(void);

/* True for an address that can stand between < and > in the dialogue and in a header: one @, no blank, bracket, quote
 * or control byte, at most 320 bytes. */
bool smtp_address_ok(struct str address);

#endif
