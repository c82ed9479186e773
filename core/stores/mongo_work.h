/* What a thread of the MongoDB pool does with one request: all talk with libmongoc is here. */
#ifndef KASMA_STORES_MONGO_WORK_H
#define KASMA_STORES_MONGO_WORK_H

#include <mongoc/mongoc.h>

#include "stores/mongo.h"

/* Carries the request out; takes as long as the server takes. False: `err` is filled. */
bool mongo_work(mongoc_client_t *client, const char *database, uint32_t timeout_ms, const struct mongo_request *request,
                struct mongo_result *result, struct error *err);
/* False: ERR_UNAVAILABLE. */
bool mongo_ping(mongoc_client_t *client, uint32_t timeout_ms, struct error *err);
void mongo_result_clear(struct mongo_result *result);

#endif
