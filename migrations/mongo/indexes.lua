-- The indexes of the document collections. Documents are read by _id or by equality on one of these, always with the
-- tenant first, but for platform documents. Making an index that is there changes nothing, so the whole list is applied by
-- every `kasma migrate`; an index that is no longer here is left for an operator to drop.
return {
    { "user_profile", { { "user_id", 1 } }, { unique = true, name = "user" } },
    { "audit_log", { { "tenant_key", 1 }, { "seq", 1 } }, { name = "chain" } },
    { "product_details", { { "tenant_key", 1 }, { "product_id", 1 }, { "revision", 1 } }, { unique = true, name = "revision" } },
    { "shopping_carts", { { "tenant_key", 1 }, { "user_id", 1 } }, { name = "user" } },
    { "wishlists", { { "tenant_key", 1 }, { "user_id", 1 } }, { name = "user" } },
    { "abandoned_carts", { { "tenant_key", 1 }, { "status", 1 } }, { name = "status" } },
    { "marketing_logs", { { "tenant_key", 1 }, { "logType", 1 }, { "day", 1 } }, { name = "type_day" } },
    { "marketing_logs", { { "expiresAt", 1 } }, { ttl_s = 1, name = "expiry" } },
    { "rule_runs", { { "expiresAt", 1 } }, { ttl_s = 1, name = "expiry" } },
    { "analytics_events", { { "tenant_key", 1 }, { "day", 1 } }, { name = "day" } },
    { "analytics_events", { { "expiresAt", 1 } }, { ttl_s = 1, name = "expiry" } },
    { "exchange_rates", { { "tenant_key", 1 }, { "fromCurrency", 1 }, { "toCurrency", 1 } }, { name = "pair" } },
    { "warehouse_layouts", { { "tenant_key", 1 }, { "warehouse_id", 1 } }, { unique = true, name = "warehouse" } },
}
