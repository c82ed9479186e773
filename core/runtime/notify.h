/* The service manager's notification protocol (systemd): one datagram to the socket that NOTIFY_SOCKET names. */
#ifndef KASMA_RUNTIME_NOTIFY_H
#define KASMA_RUNTIME_NOTIFY_H

#include <stdint.h>

/* Sends "READY=1" and the like; nothing happens when no manager listens. */
void notify_send(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Milliseconds between two WATCHDOG=1 (half of what the manager allows); 0: none is expected. */
uint64_t notify_watchdog_ms(void);

#endif
